"""`kunlun rank` against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from protocol_server import ProtocolServer, protocol_server

from kunlun.cli import main


@pytest.fixture(scope="module")
def server() -> Iterator[ProtocolServer]:
    with protocol_server() as running:
        yield running


def arguments(server: ProtocolServer, *more: str) -> list[str]:
    return ["rank", "--server", server.address, "--user", "ann", "--items", "tea,coffee,cocoa", "--column", "bid=1,2,3", *more]


def test_prints_a_table(server: ProtocolServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(server, "--context", "surface=home", "--context", "page=2", "--timings")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["rank", "item", "p_click", "p_like", "value", "was"]
    assert sorted(line.split()[1] for line in lines[1:4]) == ["cocoa", "coffee", "tea"]
    assert {line.rindex("#") for line in lines[1:4]} == {lines[0].rindex("w") + 1}, "columns line up"
    assert "shop 7 · 0 events of history, no history" in lines[5]
    assert "score 4.00 ms" in lines[-1]


def test_prints_json(server: ProtocolServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(server, "--top-k", "2", "--json")) == 0
    reply = json.loads(capsys.readouterr().out)
    assert len(reply["items"]) == 2
    assert set(reply["scores"]) == {"click", "like"}


@pytest.mark.parametrize(
    ("more", "status", "text"),
    [
        (
            ["--context", "surfac=home"],
            1,
            "context_features: expected a context feature (did you mean 'surface'?)",
        ),
        (["--context", "home"], 2, "--context: expected NAME=VALUE, found 'home'"),
        (["--column", "bid=x"], 2, "--column: expected NAME=NUMBER,NUMBER,…, found 'bid=x'"),
        (["--context", "surface=7"], 1, "context_features.surface: expected string_values, found int64_values"),
    ],
)
def test_mistakes_are_one_line(
    server: ProtocolServer, capsys: pytest.CaptureFixture[str], more: list[str], status: int, text: str
) -> None:
    assert main(arguments(server, *more)) == status
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_digits_can_be_sent_as_text(server: ProtocolServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(server, "--context", 'surface="7"')) == 0
    assert "cocoa" in capsys.readouterr().out
