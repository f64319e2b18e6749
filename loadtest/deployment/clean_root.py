"""The image `cpu` without a container engine: its scripts executed in a clean Debian, its server started there, and asked.

Needs root, debootstrap, and the project's virtual environment (for the demo's model, unless --repository and --data name
another). The build scripts, the user, the environment and the commands are those of the Dockerfile.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from loadtest.deployment.container import Container, run_as_root
from loadtest.deployment.demo_model import build_demo_model
from loadtest.deployment.dockerfile import Image, read_image
from loadtest.processes import StageFailed

ROOT = Path(__file__).parents[2]
SUITE, VARIANT = "bookworm", "minbase"
FORBIDDEN = ("cc", "gcc", "g++", "ld", "pip", "pip3", "curl", "wget")
WAIT_S, PROBE_S = 300.0, 3.0
LARGEST_ENVIRONMENT_MB = 400
"""Target for /opt/kunlun, the layer that is ours; two thirds are OpenVINO, Arrow and NumPy."""


class Transcript:
    """What was done and what came of it: shown as it comes, and kept."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._lines: list[str] = []

    def say(self, text: str) -> None:
        """One step."""
        self._lines.append(text)
        self._show(text)

    def write(self, path: Path) -> None:
        """All of it."""
        path.write_text("\n".join(self._lines) + "\n", encoding="utf-8")


class CleanRoot:
    """Builds and tries the image in `work`; `say` is told every step, as a transcript."""

    def __init__(self, work: Path, image: Image, say: Callable[[str], None]) -> None:
        self._work, self._image, self._say = work, image, say
        self._base, self._build, self._root = work / "debian", work / "build", work / "root"

    def make(self) -> dict[str, Any]:
        """The root of the image; sizes in MB (10^6 bytes)."""
        began = time.perf_counter()
        if not (self._base / "etc/debian_version").is_file():
            shutil.rmtree(self._base, ignore_errors=True)
            self._say(f"$ debootstrap --variant={VARIANT} {SUITE} debian")
            subprocess.run(["debootstrap", f"--variant={VARIANT}", SUITE, str(self._base)], check=True, stdout=subprocess.PIPE)
        for root in (self._build, self._root):
            shutil.rmtree(root, ignore_errors=True)
            subprocess.run(["cp", "--archive", str(self._base), str(root)], check=True)
            shutil.copyfile("/etc/resolv.conf", root / "etc/resolv.conf")
        _copy_sources(self._build / "src")
        self._say("$ sh deploy/image/build.sh /src /opt/kunlun        # in a copy of it")
        run_as_root(self._build, ["sh", "/src/deploy/image/build.sh", "/src", "/opt/kunlun"], _pip_settings(self._build))
        self._say("$ sh deploy/image/runtime.sh                       # in another copy")
        script = ROOT / "deploy/image/runtime.sh"
        shutil.copyfile(script, self._root / "tmp/runtime.sh")
        run_as_root(self._root, ["sh", "/tmp/runtime.sh"], {})
        self._say("$ cp -a build/opt/kunlun root/opt/kunlun")
        python = _megabytes(self._root)
        subprocess.run(["cp", "--archive", str(self._build / "opt/kunlun"), str(self._root / "opt/kunlun")], check=True)
        sizes = {
            "debian_mb": _megabytes(self._base),
            "with_python_mb": python,
            "environment_mb": _megabytes(self._root / "opt/kunlun"),
            "image_mb": _megabytes(self._root),
        }
        self._say(f"# sizes: {sizes}")
        return sizes | {"build_seconds": round(time.perf_counter() - began, 1)}

    def forbidden(self) -> list[str]:
        """What the image should not hold and does: compilers, installers, torch."""
        places = [self._root / place for place in ("opt/kunlun/bin", "usr/local/bin", "usr/bin", "bin", "usr/sbin")]
        tools = [name for name in FORBIDDEN if any((place / name).exists() for place in places)]
        return tools + [str(found.name) for found in self._root.glob("opt/kunlun/lib/python3*/site-packages/torch")]

    def serve(self, repository: Path, data: Path) -> dict[str, Any]:
        """Prepare a log, compile, serve as the image says, probe, load, rank, stop; figures. Raises `StageFailed`."""
        image, models = self._image, self._work / "models"
        shutil.rmtree(models, ignore_errors=True)
        shutil.copytree(repository, models, ignore=shutil.ignore_patterns(".engines"))
        (self._work / "state").mkdir(exist_ok=True)
        for owned in (models, self._work / "state"):
            subprocess.run(["chown", "--recursive", image.user, str(owned)], check=True)
        volumes = {"/models": models, "/var/lib/kunlun": self._work / "state", "/tmp/data": data}
        log = self._work / "server.log"

        def container(*command: str) -> Container:
            whole = [*image.entrypoint, *(command or image.command)]
            self._say(f"\n[a container of user {image.user}, root read-only, /models a volume] {' '.join(whole)}")
            return Container(self._root, image.user, image.environment, volumes, whole, log)

        def run(*command: str) -> None:
            running = container(*command)
            try:
                status = running.wait(WAIT_S)
            finally:
                running.kill()
            self._say(_shortened(running.log.rstrip()))
            if status != 0:
                raise StageFailed(f"kunlun {command[0]} ended with status {status}")

        # Where compose's demo writes its log: a place below a mount, in a root that is read-only.
        run("prepare", "--source", "synthetic", "--output", demo_data(), "--json")
        version = next(path.parent for path in sorted(models.glob("*/*/manifest.json")))
        run("compile", f"/models/{version.relative_to(models)}", "--json")
        began = time.perf_counter()
        server = container()
        try:
            figures = self._probe(server, began)
            figures |= self._ask(server)
            stopping = time.perf_counter()
            status = server.stop()
            figures |= {"exit_status": status, "stop_seconds": round(time.perf_counter() - stopping, 2)}
            self._say(f"[SIGTERM] status {status}; its log:")
        finally:
            server.kill()
        self._say("\n".join(_without_times(server.log)))
        return figures

    def _probe(self, server: Container, began: float) -> dict[str, Any]:
        """Until the image's own health check succeeds."""
        attempts = 0
        while True:
            attempts += 1
            done = server.execute(*self._image.health)
            if attempts == 1 or done.returncode == 0:
                self._say(f"[inside] {' '.join(self._image.health)}\n{done.stdout.rstrip()}")
            if done.returncode == 0:
                return {"health_attempts": attempts, "ready_seconds": round(time.perf_counter() - began, 1)}
            if time.perf_counter() - began > WAIT_S:
                raise StageFailed(f"the server did not become healthy:\n{server.log[-2000:]}")
            time.sleep(PROBE_S)

    def _ask(self, server: Container) -> dict[str, Any]:
        """Who it runs as, what it may write, what it has opened, and two Ranks around the loading of features."""
        self._executed(server, "id", "-u")
        written = server.execute("sh", "-c", "touch /opt/kunlun/x; touch /x")
        self._say(f"[inside] touch /opt/kunlun/x /x\n{written.stdout.rstrip()}")
        if written.returncode == 0:
            raise StageFailed("the root file system of the container can be written to")
        items = ",".join(f"i{number}" for number in range(20))
        first = json.loads(self._executed(server, "kunlun", "rank", "--user", "u1", "--items", items, "--top-k", "3", "--json"))
        socket = self._executed(server, "sh", "-c", "ls /tmp/kunlun-store-*/store.sock").strip()
        loaded = json.loads(self._executed(server, "kunlun", "load", "/tmp/data", "--store", f"unix://{socket}", "--json"))
        second = json.loads(
            self._executed(server, "kunlun", "rank", "--user", "u1", "--items", items, "--top-k", "3", "--json")
        )
        return {
            "ranked": len(second["items"]),
            "rung": second["rung"],
            "history_before_load": first["history_length"],
            "history_after_load": second["history_length"],
            "loaded_rows": {part: found["loaded"] for part, found in loaded.items()},
        }

    def _executed(self, server: Container, *command: str) -> str:
        done = server.execute(*command)
        self._say(f"[inside] {' '.join(command)}\n{_shortened(done.stdout.rstrip())}")
        if done.returncode != 0:
            raise StageFailed(f"{' '.join(command)} ended with status {done.returncode}")
        return done.stdout.splitlines()[-1]


def demo_data(compose: Path = ROOT / "deploy/compose.yaml") -> str:
    """Where the service `demo-model` keeps its log."""
    command: list[str] = yaml.safe_load(compose.read_text(encoding="utf-8"))["services"]["demo-model"]["command"]
    return command[command.index("--data") + 1]


def _copy_sources(target: Path) -> None:
    """The checkout as the builder gets it: what git knows, uncommitted changes included."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        source = ROOT / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target / name)


def _pip_settings(root: Path, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """This machine's settings of pip for the build (a mirror, a proxy), with their certificates copied into `root`."""
    settings = {
        name: value for name, value in environment.items() if name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_PROXY")
    }
    if certificates := environment.get("PIP_CERT"):
        shutil.copyfile(certificates, root / "tmp/certificates.pem")
        settings["PIP_CERT"] = "/tmp/certificates.pem"
    return settings


def _megabytes(path: Path) -> int:
    done = subprocess.run(["du", "--summarize", "--block-size=1", str(path)], check=True, stdout=subprocess.PIPE, text=True)
    return round(int(done.stdout.split()[0]) / 1e6)


def _shortened(text: str, lines: int = 12, width: int = 240) -> str:
    every = [line if len(line) <= width else f"{line[:width]}…" for line in text.splitlines()]
    return "\n".join(every if len(every) <= lines else [*every[:lines], f"… {len(every) - lines} more lines"])


def _without_times(log: str) -> list[str]:
    """Log lines without date and time."""
    return [line.split(" ", 2)[2] if line[:2] == "20" else line for line in log.splitlines()]


def clean_root(work: Path, repository: Path | None, data: Path | None, say: Callable[[str], None]) -> dict[str, Any]:
    """The whole run in `work`; figures with `ok`. Raises `StageFailed`."""
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        raise StageFailed("clean root: expected to run as root with debootstrap installed (apt-get install debootstrap)")
    work.mkdir(parents=True, exist_ok=True)
    if repository is None or data is None:
        repository, data = work / "demo/models", work / "demo/data"
        build_demo_model(repository, data)
    root = CleanRoot(work, read_image("cpu"), say)
    figures: dict[str, Any]
    try:
        figures = root.make()
    except subprocess.CalledProcessError as error:
        raise StageFailed(f"{error.cmd[-3:]} ended with status {error.returncode}:\n{(error.stdout or '')[-2000:]}") from error
    figures["forbidden"] = root.forbidden()
    figures |= root.serve(repository, data)
    figures["ok"] = (
        figures["environment_mb"] <= LARGEST_ENVIRONMENT_MB
        and not figures["forbidden"]
        and (figures["rung"], figures["exit_status"]) == ("FULL", 0)
        and figures["history_after_load"] > figures["history_before_load"]
    )
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.deployment.clean_root", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/clean_root"), help="default: build/clean_root; Debian is kept")
    parser.add_argument("--repository", type=Path, help="model repository (default: the demo's model, trained in --work)")
    parser.add_argument("--data", type=Path, help="its canonical log")
    parser.add_argument("--transcript", type=Path, help="write the transcript here, too")
    arguments = parser.parse_args()
    transcript = Transcript(lambda text: print(text, flush=True))
    try:
        figures = clean_root(arguments.work.resolve(), arguments.repository, arguments.data, transcript.say)
    except StageFailed as error:
        print(f"clean_root: {error}", file=sys.stderr)
        return 1
    if arguments.transcript is not None:
        transcript.write(arguments.transcript)
    print(json.dumps(figures))
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
