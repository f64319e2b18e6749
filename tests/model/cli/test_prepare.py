"""`kunlun prepare` writes a log that loads, says what it did, and names mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kunlun.cli import main
from model.data.request_log import load_request_log


def test_synthetic_ends_with_one_json_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["prepare", "--output", str(tmp_path / "log"), "--requests", "150", "--users", "9", "--seed", "2", "--json"]) == 0
    )
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["counts"]["requests"] == 150 == len(load_request_log(tmp_path / "log"))
    assert figures["source"]["parameters"]["seed"] == 2
    assert figures["counts"]["users"] <= 9
    assert set(figures["bayes"]["click"]) >= {"ne_bayes", "ne_no_order", "ne_no_history"}
    assert json.loads((tmp_path / "log" / "dataset.json").read_text())["bayes"] == figures["bayes"]


def test_one_request_is_enough(tmp_path: Path) -> None:
    assert main(["prepare", "--output", str(tmp_path / "log"), "--requests", "1"]) == 0
    assert len(load_request_log(tmp_path / "log")) == 1


@pytest.mark.parametrize("cap", [2, 15, 40])
def test_histories_may_be_of_any_length(tmp_path: Path, cap: int) -> None:
    assert main(["prepare", "--output", str(tmp_path / "log"), "--requests", "30", "--history-cap", str(cap)]) == 0
    assert [e.cap for e in load_request_log(tmp_path / "log").schema.events] == [cap, cap // 2]


def test_metarank_reports_counts_and_rejected_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ranking = {"event": "ranking", "id": "r", "user": "u", "timestamp": "1", "items": [{"id": "a"}], "fields": []}
    (tmp_path / "in.jsonl").write_text(json.dumps(ranking) + "\n{oops\n")
    arguments = ["prepare", "--source", "metarank", "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "log")]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "1 requests with 1 shown items" in out
    assert "rejected: 1 × not valid JSON (first: line 2)" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "metarank"], "--input: expected a log file for --source metarank, found none"),
        (["--source", "metarank", "--input", "/nowhere.gz"], "/nowhere.gz: cannot be read"),
        (["--input", "x"], "--input and --schema: not for --source synthetic"),
        (["--requests", "0"], "--requests: expected at least 1, found 0"),
        (["--seed", "-1"], "--seed: expected at least 0, found -1"),
        (["--source", "ratings", "--input", "x", "--negatives", "1", "--seed", "-1"], "--seed: expected at least 0, found -1"),
    ],
)
def test_mistakes_are_named_with_exit_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["prepare", "--output", str(tmp_path / "log"), *arguments]) == 2
    assert message in capsys.readouterr().err
