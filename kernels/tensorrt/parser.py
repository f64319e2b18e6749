"""What NVIDIA's parser and builder say about an ONNX file: runs the check program (`kernels/tensorrt/check/driver.cpp`)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.tensorrt.toolkit import Libraries


@dataclass(frozen=True)
class Profile:
    """Sizes of one network input: least, those to optimise for, largest."""

    input: str
    least: tuple[int, ...]
    best: tuple[int, ...]
    most: tuple[int, ...]

    @property
    def argument(self) -> str:
        """As the check program takes it."""
        return ":".join([self.input, *("x".join(map(str, sizes)) for sizes in (self.least, self.best, self.most))])


@dataclass(frozen=True)
class PluginLayer:
    """A layer that runs a plugin of ours. `restored`: one made from its serialised fields serialises to the same bytes."""

    layer: str
    operator: str
    dtype: str
    shape: tuple[int, ...]
    restored: bool


@dataclass(frozen=True)
class Findings:
    """One model as the parser saw it. Unknown sizes are −1; `messages`: warnings and errors that were logged.

    `plan_bytes`, `plan_seconds`: of the plan, None where none was asked for or built.
    """

    parsed: bool
    errors: tuple[str, ...]
    messages: tuple[str, ...]
    layers: int
    plugins: tuple[PluginLayer, ...]
    outputs: dict[str, tuple[str, tuple[int, ...]]]
    plan_bytes: int | None
    plan_seconds: float | None

    def problems(self) -> list[str]:
        """Why the model would not do, in words; empty: it does."""
        found = [*self.errors, *(() if self.parsed or self.errors else ("not parsed", *self.messages))]
        return found + [f"{p.layer}: its plugin is not restored as it was" for p in self.plugins if not p.restored]


def ask(
    check: Path, libraries: Libraries, plugin: Path, model: Path, profiles: Sequence[Profile] = (), plan: Path | None = None
) -> Findings:
    """Parse `model` with the plugins of `plugin`; with `profiles` also build a plan, written to `plan` if given.

    Raises `RuntimeError` where the program fails, with what it said.
    """
    command = [str(check), "--infer", str(libraries.infer), "--parser", str(libraries.parser)]
    command += ["--plugin", str(plugin.absolute()), "--model", str(model)]
    for profile in profiles:
        command += ["--profile", profile.argument]
    if plan is not None:
        command += ["--plan", str(plan)]
    paths = os.pathsep.join([*map(str, libraries.folders), os.environ.get("LD_LIBRARY_PATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LD_LIBRARY_PATH": paths}, check=False)
    if done.returncode:
        raise RuntimeError(f"{check.name} ended with {done.returncode} on {model.name}: {done.stderr.strip() or 'no message'}")
    return _findings(json.loads(done.stdout))


def _findings(said: dict[str, Any]) -> Findings:
    plan = said["plan"] or {}
    return Findings(
        parsed=said["parsed"],
        errors=tuple(said["errors"]) if said["plugin_loaded"] else ("the plugin library is refused", *said["errors"]),
        messages=tuple(said["messages"]),
        layers=said["layers"],
        plugins=tuple(
            PluginLayer(p["layer"], p["operator"], p["output"]["type"], tuple(p["output"]["shape"]), p["restored"])
            for p in said["plugins"]
        ),
        outputs={o["name"]: (o["type"], tuple(o["shape"])) for o in said["outputs"]},
        plan_bytes=plan.get("bytes"),
        plan_seconds=plan.get("seconds"),
    )
