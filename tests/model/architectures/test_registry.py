"""Architectures by name: presets, what differs from them, third parties, and files from before there were several."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from model.architectures import registry
from model.architectures.kunlun.config import KunlunConfig
from model.architectures.registry import architecture_names, load_preset, parse_architecture
from model.config import ConfigError
from model.training.config import TrainConfig, parse_config


def test_a_model_is_a_preset_a_change_of_one_or_a_whole_mapping() -> None:
    tiny = load_preset("tiny")
    assert isinstance(tiny, KunlunConfig)
    assert parse_config({"model": "tiny"}).model == tiny
    assert parse_config({"model": tiny.model_dump()}).model == tiny
    wider = parse_config({"model": {"preset": "tiny", "n_kv": 16, "default_tower": {"window": 8}}}).model
    assert isinstance(wider, KunlunConfig)
    assert (wider.n_kv, wider.default_tower) == (16, tiny.default_tower.model_copy(update={"window": 8}))


def test_null_takes_a_key_of_the_preset_away() -> None:
    wukong = {"experts": 2, "fm_rank": 4, "hidden": 8}
    literal = parse_architecture({"preset": "tiny", "candidate": {"hidden": None, "wukong": wukong}})
    assert isinstance(literal, KunlunConfig)
    assert literal.candidate.hidden is None


def test_a_run_keeps_the_whole_model_whatever_its_class() -> None:
    config = parse_config({"model": "tiny"})
    again = TrainConfig.model_validate(config.model_dump(mode="json"))
    assert again == config
    assert config.model_dump()["model"]["architecture"] == "kunlun"


def test_models_from_before_there_were_architectures_are_kunlun() -> None:
    data = load_preset("tiny").model_dump(mode="json")
    del data["architecture"]
    assert parse_architecture(data) == load_preset("tiny")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("tinny", "training configuration: model: preset: expected one of .*small.*tiny.*, found 'tinny'"),
        ({"architecture": "din2"}, "architecture: expected one of .*kunlun.*, found 'din2'"),
        ({"preset": "tiny", "widht": 3}, "training configuration: model: widht: unknown key; did you mean 'width'"),
        ({"preset": "tiny", "default_tower": {"heads": 3}}, "model: default_tower: width 32 must be heads"),
    ],
)
def test_what_is_wrong_is_named(model: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"model": model})


def test_a_third_party_registers_a_class_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    own = EntryPoint("own", "model.architectures.kunlun.config:KunlunConfig", registry.GROUP)
    wrong = EntryPoint("wrong", "pathlib:Path", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [own, wrong] if group == registry.GROUP else [])
    assert {"own", "kunlun"} <= set(architecture_names())
    assert registry.architecture_class("own") is KunlunConfig
    with pytest.raises(ConfigError, match="architecture 'wrong': expected a subclass of ArchitectureConfig, found"):
        registry.architecture_class("wrong")
