"""Variants differ from the default in what they say, and all of them are models; the page says what was measured."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtest.ablations.page import page
from loadtest.ablations.trained import Study, TrainedModel
from loadtest.ablations.variants import DEFAULT, VARIANTS
from loadtest.checks import ablations
from loadtest.checks.ablations import _is_defined
from loadtest.pipeline import CONFIGS
from model.architectures.registry import parse_architecture
from model.data.synthetic import synthetic_schema


def test_names_are_unique_and_the_default_comes_first() -> None:
    names = [v.name for v in VARIANTS]
    assert names[0] == DEFAULT
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_every_variant_is_a_model_that_differs_from_some_default(variant: Any) -> None:
    schema, bases = synthetic_schema(), [{"preset": "tiny"}, yaml.safe_load((CONFIGS / "ablations.yaml").read_text())["model"]]
    differs = []
    for base in bases:
        config = parse_architecture(variant.model(base, schema))
        config.check_schema(schema)
        differs.append(config != parse_architecture(base))
    assert any(differs) == (variant.name != DEFAULT)


def test_results_are_kept_by_everything_that_decides_them(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{}")
    study = Study(tmp_path, tmp_path, {"epochs": 1})
    one = TrainedModel(study, "a model", "tiny", 0)
    same = TrainedModel(study, "a model", {"preset": "tiny"}, 0)
    others = [TrainedModel(study, "a model", "tiny", 1), TrainedModel(study, "a model", "small", 0)]
    others.append(TrainedModel(study, "a model", "tiny", 0, {"epochs": 2}))
    assert one.workdir == same.workdir
    assert len({m.workdir for m in [one, *others]}) == 4


def _row(name: str, ne: float) -> dict[str, Any]:
    speeds = {"train_examples_per_s": 1.25, "encode_per_s": 1.0, "score_per_s": 1.0, "requests_per_s": 0.5}
    return {
        "name": name,
        "question": "why",
        "ne": ne,
        "ne_change_percent": {"value": 0.4, "low": -0.1, "high": 0.9},
        "mflop": {"user": 1.0, "candidate": 0.25, "request_24": 7.0, "request_100": 26.0, "request_500": 126.0},
        "state_bytes": 768,
        "speed_ratio": speeds,
        "paper": "QPS +1 %",
    }


def test_the_page_holds_every_row_and_its_command() -> None:
    line = {"data": "synthetic", "fast": True, "requests": 16_000, "model": {"preset": "tiny"}, "seeds": 1, "precision": "auto"}
    text = page(line | {"mean_history": {"click": 3.1}, "rows": [_row("default", 0.8), _row("other", 0.9)]})
    assert "`make ablations FAST=1 PAGE=1`" in text
    assert (
        "| other | 0.9000 | +0.40 [-0.10, +0.90] | 1.00 | 0.250 | 7.0 | 26.0 | 126.0 | 768 | ×1.25 | ×0.50 | QPS +1 % |" in text
    )


def test_a_variant_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["ablations", "--only", "neithr"])
    with pytest.raises(SystemExit):
        ablations.main()
    assert "invalid choice: 'neithr'" in capsys.readouterr().err


def test_a_row_without_an_ne_is_not_ok() -> None:
    assert _is_defined(_row("a", 0.8))
    assert not _is_defined(_row("a", math.nan))
