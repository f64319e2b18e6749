"""A Prometheus that scrapes the given servers every second and evaluates the recording rules of `deploy/prometheus`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from loadtest.processes import LOOPBACK, end, free_ports, wait_until

RULES = Path(__file__).parents[1] / "deploy" / "prometheus"
"""Directory of the ``*.rules.yaml`` that we ship."""

_WINDOW = re.compile(r"\[(5m|1h)\]")


class PrometheusProcess:
    """A running Prometheus."""

    def __init__(self, port: int) -> None:
        self._url = f"http://{LOOPBACK}:{port}"

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of every series that an instant query finds."""
        with urllib.request.urlopen(
            f"{self._url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}", timeout=10
        ) as reply:
            found = json.load(reply)["data"]["result"]
        return [(series["metric"], float(series["value"][1])) for series in found]

    def value(self, expression: str) -> float:
        """The only value of an instant query; raises `LookupError`."""
        found = self.query(expression)
        if len(found) != 1:
            raise LookupError(f"{expression}: expected one series, found {len(found)}")
        return found[0][1]

    def is_ready(self) -> bool:
        """True when it answers."""
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=1) as reply:
                return bool(reply.status == 200)
        except (OSError, urllib.error.URLError):
            return False


def is_installed() -> bool:
    """Whether there is a Prometheus on this machine."""
    return shutil.which("prometheus") is not None


@contextmanager
def prometheus(directory: Path, targets: Sequence[str], window: str) -> Iterator[PrometheusProcess]:
    """Scraping `targets` (host:port); every window of the rules is `window` (``40s``) here, and evaluated every second."""
    directory = directory.resolve()  # Prometheus reads paths as relative to its configuration
    directory.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(directory / "data", ignore_errors=True)  # what an earlier run has seen
    for file in RULES.glob("*.rules.yaml"):
        rules = _WINDOW.sub(f"[{window}]", file.read_text(encoding="utf-8")).replace("interval: 30s", "interval: 1s")
        (directory / file.name).write_text(rules, encoding="utf-8")
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "rule_files": [str(directory / "*.rules.yaml")],
        "scrape_configs": [{"job_name": "kunlun", "static_configs": [{"targets": list(targets)}]}],
    }
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    [port] = free_ports(1)
    arguments = [f"--config.file={directory / 'prometheus.yaml'}", f"--storage.tsdb.path={directory / 'data'}"]
    arguments.append(f"--web.listen-address={LOOPBACK}:{port}")
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(["prometheus", *arguments], stdout=log, stderr=subprocess.STDOUT)
    try:
        running = PrometheusProcess(port)
        wait_until(running.is_ready, "prometheus did not start", 30)
        wait_until(lambda: len(running.query("up == 1")) == len(targets), "prometheus did not reach its targets", 30)
        time.sleep(2)  # every counter has been seen at 0
        yield running
    finally:
        end(process)
