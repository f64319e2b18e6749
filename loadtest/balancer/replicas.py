"""Replicas that share a store and a receipt key, each on a loopback address of its own with one port, as pods have."""

from __future__ import annotations

import secrets
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from loadtest.processes import RunningServer, ServerProcess, free_ports
from loadtest.prometheus_text import Sample, scrape
from loadtest.store_process import store_process

FEW_SHAPES = {"max_batch_candidates": 64, "max_batch_requests": 4, "max_batch_users": 2}
"""Quick to warm up: what is measured here is how replicas come and go."""

LIMIT_S = 300.0
"""For starting, stopping and being noticed; long, since machines may be busy."""


class Replica:
    """One server; `address` stays when it is started again."""

    def __init__(self, config: Mapping[str, Any], directory: Path, host: str, port: int) -> None:
        self.address = f"{host}:{port}"
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / "server.yaml"
        file.write_text(yaml.safe_dump(dict(config) | {"host": host, "port": port, "metrics_port": 0}), encoding="utf-8")
        self._process = ServerProcess(["--config", str(file)], directory)
        self._server: RunningServer | None = None

    @property
    def is_started(self) -> bool:
        """Whether it has been ready once."""
        return self._server is not None

    def start(self) -> None:
        """Start it; it is not ready yet."""
        self._process.start()

    def wait_until_ready(self) -> None:
        """Until it says that it serves."""
        self._server = self._process.wait_until_ready(LIMIT_S)

    def stop(self) -> None:
        """SIGTERM, and wait until everything in flight is answered and the process has ended with status 0."""
        self._process.stop(LIMIT_S)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._process.close()

    def freeze(self) -> None:
        """From now on it answers nothing and keeps its connections."""
        self._process.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        self._process.process.send_signal(signal.SIGCONT)

    def metrics(self) -> list[Sample]:
        """What it exports."""
        assert self._server is not None
        return scrape(f"http://{self._server.metrics}/metrics")


@contextmanager
def replica_set(config: Mapping[str, Any], count: int, workdir: Path) -> Iterator[list[Replica]]:
    """`count` replicas, none of them started. `config`: what they serve, keys of `ServerConfig`."""
    with tempfile.TemporaryDirectory(prefix="kunlun-store-") as directory, store_process(Path(directory)) as store:
        key = Path(directory, "receipt.key")
        key.write_text(secrets.token_hex(16), encoding="ascii")
        shared = {"store": store.url, "receipt_key_file": str(key), "slots": 1}
        hosts = [f"127.0.0.{number + 2}" for number in range(count)]
        [port] = free_ports(1, hosts)
        made = [Replica(dict(config) | shared, workdir / f"replica{number}", host, port) for number, host in enumerate(hosts)]
        try:
            yield made
        finally:
            for replica in made:
                replica.kill()


def start_all(replicas: Sequence[Replica]) -> None:
    """Start them side by side, and wait until all are ready."""
    for replica in replicas:
        replica.start()
    for replica in replicas:
        replica.wait_until_ready()
