"""A real HAProxy with the configuration of `deploy/haproxy`; addresses and ports alone are changed."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loadtest.balancer.traffic import SETS
from loadtest.processes import LOOPBACK, end, free_ports, wait_until

CONFIG = Path(__file__).parents[2] / "deploy" / "haproxy" / "haproxy.cfg"
BIND = re.compile(r"^frontend (\w+)\n    bind :\d+", re.MULTILINE)
CHECKS = re.compile(r"^    option tcp-check\n(?:    tcp-check .*\n)+", re.MULTILINE)
TEMPLATE = re.compile(r"^    server-template .*$", re.MULTILINE)
CONNECTIONS = """
# What a balancer of connections does (a Kubernetes Service with a readiness probe): it never looks inside one.
defaults
    mode tcp
    timeout connect 500ms
    timeout client 1h
    timeout server 1h

listen by_connection
    bind {address}
    balance roundrobin
{checks}    default-server check inter 200ms fall 2 rise 1
{servers}
"""


class HAProxyProcess:
    """A running HAProxy: `address` balances by load, `by_user` by user, `by_connection` connections alone."""

    name = "HAProxy"

    def __init__(self, ports: dict[str, int], replicas: Sequence[str]) -> None:
        self.address, self.by_user = f"{LOOPBACK}:{ports['by_load']}", f"{LOOPBACK}:{ports['by_user']}"
        self.by_connection = f"{LOOPBACK}:{ports['by_connection']}"
        self._stats, self._replicas = f"http://{LOOPBACK}:{ports['stats']}/stats;csv", replicas

    def healthy(self, sets: Sequence[str] = SETS) -> set[str]:
        """Addresses of the replicas that get calls."""
        up = [{row["svname"] for row in self._servers(backend) if row["status"].startswith("UP")} for backend in sets]
        return {self._replicas[int(name[1:])] for name in set.intersection(*up)}

    def repeated(self) -> int:
        """Calls that HAProxy has sent once more so far."""
        rows = [row for backend in SETS for row in self._servers(backend)]
        return sum(int(row["wretr"] or 0) + int(row["wredis"] or 0) for row in rows)

    def ejected(self) -> int:
        """Never: health checks alone take a replica out."""
        return 0

    def _servers(self, backend: str) -> list[dict[str, str]]:
        return [row for row in self._rows() if row["# pxname"] == backend and re.fullmatch(r"r\d+", row["svname"])]

    def _rows(self) -> list[dict[str, str]]:
        with urllib.request.urlopen(self._stats, timeout=10) as reply:
            return list(csv.DictReader(reply.read().decode().splitlines()))

    def is_live(self) -> bool:
        """True when it answers."""
        try:
            return bool(self._rows())
        except OSError:
            return False


def is_installed() -> bool:
    """Whether there is a HAProxy on this machine."""
    return shutil.which("haproxy") is not None


def version() -> str | None:
    """Of the HAProxy that is installed; None: there is none."""
    if not is_installed():
        return None
    said = subprocess.run(["haproxy", "-v"], capture_output=True, text=True, timeout=60, check=True).stdout
    return said.split()[2]  # HAProxy version 2.6.12-1+deb12u3 2025/10/03 - https://haproxy.org/


@contextmanager
def haproxy(workdir: Path, replicas: Sequence[str]) -> Iterator[HAProxyProcess]:
    """Balancing over `replicas` (host:port), which need not be up."""
    workdir.mkdir(parents=True, exist_ok=True)
    text = CONFIG.read_text(encoding="utf-8")
    names = [*BIND.findall(text), "by_connection"]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    servers = "\n".join(f"    server r{number} {address}" for number, address in enumerate(replicas))
    text = BIND.sub(lambda found: f"frontend {found[1]}\n    bind {LOOPBACK}:{ports[found[1]]}", text)
    text = TEMPLATE.sub(servers, text)
    text += CONNECTIONS.format(address=f"{LOOPBACK}:{ports['by_connection']}", checks=CHECKS.findall(text)[0], servers=servers)
    file, log = workdir / "haproxy.cfg", workdir / "haproxy.log"
    file.write_text(text, encoding="utf-8")
    with log.open("w") as output:
        process = subprocess.Popen(["haproxy", "-db", "-f", str(file)], stdout=output, stderr=subprocess.STDOUT)
    try:
        running = HAProxyProcess(ports, replicas)

        def is_live() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"haproxy ended with status {process.returncode}:\n{log.read_text()[-2000:]}")
            return running.is_live()

        wait_until(is_live, "haproxy did not start", 60)
        yield running
    finally:
        end(process)
