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
        (["--top-k", "-1"], 2, "--top-k: expected 0 (all) to 4294967295, found -1"),
        (["--top-k", "4294967296"], 2, "--top-k: expected 0 (all) to 4294967295, found 4294967296"),
        (["--items", "99999999999999999999"], 2, "--items: expected numbers of 64 bits (or --string-ids), found '99999"),
        (["--items", "1," + "9" * 5000], 2, "--items: expected numbers of 64 bits (or --string-ids), found '99999"),
        (["--items", "1,2,3"], 1, "candidates.ids: expected none: the schema identifies items by keys, found 3"),
        (["--context", "page=" + "9" * 5000], 1, "context_features.page: expected finite numbers, found inf"),
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


def test_an_item_that_only_looks_like_a_number_is_a_string(server: ProtocolServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(server, "--items=--5,6,-7")) == 0
    assert "--5" in capsys.readouterr().out


def test_a_number_beyond_64_bits_is_sent_as_a_float(server: ProtocolServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(server, "--context", "page=99999999999999999999")) == 0
    assert "tea" in capsys.readouterr().out
