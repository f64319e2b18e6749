"""`kunlun health` against a real server: what container probes run."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from protocol_server import ProtocolServer, protocol_server

from kunlun.cli import main


@pytest.fixture(scope="module")
def server() -> Iterator[ProtocolServer]:
    with protocol_server() as running:
        yield running


def test_a_serving_server_is_status_0(server: ProtocolServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "--server", server.address, "--timeout-s", "30"]) == 0
    assert capsys.readouterr().out == f"{server.address} is serving\n"


def test_nobody_there_is_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:  # accepts, and never speaks HTTP/2
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(["health", "--server", address, "--timeout-s", "0.3"]) == 1
    assert capsys.readouterr().err == f"kunlun health: {address} is not serving, or cannot be reached\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tls-key", "k"], "--tls-ca: expected together with --tls-certificate and --tls-key, found none"),
        (["--tls-ca", "c", "--tls-key", "k"], "--tls-certificate and --tls-key: expected both or neither, found one"),
        (["--tls-ca", "absent.pem"], "absent.pem cannot be read: No such file or directory"),
    ],
)
def test_mistakes_are_one_line(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", *flags]) == 2
    assert capsys.readouterr().err == f"kunlun health: {message}\n"
