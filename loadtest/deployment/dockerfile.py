"""What a Dockerfile's final stage tells a container engine: user, environment, commands. Exec form only."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

DOCKERFILE = Path(__file__).parents[2] / "Dockerfile"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""That of Debian's images, which the file's own stands on."""


@dataclass
class Image:
    """Instructions of one target and of the stages of this file that it stands on."""

    user: str = "0:0"
    environment: dict[str, str] = field(default_factory=dict)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    health_start_s: int = 0
    runs: list[str] = field(default_factory=list)


def read_image(target: str, path: Path = DOCKERFILE) -> Image:
    """The image of `target`; raises `LookupError` when the file has no such stage."""
    stages: dict[str, Image] = {}
    image = Image()
    for instruction, text in _instructions(path.read_text(encoding="utf-8")):
        match instruction:
            case "FROM":
                base, _, name = text.partition(" AS ")
                own = stages.get(base, Image())
                image = stages[name] = Image(
                    own.user, dict(own.environment), own.entrypoint, own.command, own.health, own.health_start_s, list(own.runs)
                )
            case "USER":
                image.user = text
            case "ENV":
                assignments = dict(part.split("=", 1) for part in text.split())
                image.environment |= {name: value.replace("$PATH", DEFAULT_PATH) for name, value in assignments.items()}
            case "ENTRYPOINT":
                image.entrypoint = json.loads(text)
            case "CMD":
                image.command = json.loads(text)
            case "HEALTHCHECK":
                flags, _, command = text.partition("CMD ")
                image.health = json.loads(command)
                if start := re.search(r"--start-period=([0-9]+)s", flags):
                    image.health_start_s = int(start[1])
            case "RUN":
                image.runs.append(text)
    if target not in stages:
        raise LookupError(f"{path}: expected a stage {target!r}, found {', '.join(stages)}")
    return stages[target]


def _instructions(text: str) -> list[tuple[str, str]]:
    """Instruction and arguments, continued lines joined, comments left out."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", "", lines)
    pairs = (line.split(maxsplit=1) for line in joined.splitlines() if line.strip())
    return [(name, rest.strip()) for name, rest in pairs]
