"""What child processes need: ports that are free on every host."""

from __future__ import annotations

import socket

import pytest

from loadtest import processes
from loadtest.processes import LOOPBACK, free_ports


def test_ports_are_distinct_and_free_on_every_host() -> None:
    hosts = [LOOPBACK, "127.0.0.2"]
    ports = free_ports(5, hosts)
    assert len(set(ports)) == 5
    assert set(ports) <= set(processes.PORTS)
    for port in ports:
        for host in hosts:
            socket.create_server((host, port)).close()


def test_a_port_that_is_taken_on_one_host_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    [port] = free_ports(1)
    monkeypatch.setattr(processes, "PORTS", range(port, port + 1))
    assert free_ports(1, attempts=1) == [port]
    with (
        socket.create_server(("127.0.0.2", port)),
        pytest.raises(OSError, match=r"expected 1 ports that are free on 127.0.0.1, 127.0.0.2, found 0 in 1 attempts"),
    ):
        free_ports(1, [LOOPBACK, "127.0.0.2"], attempts=1)
