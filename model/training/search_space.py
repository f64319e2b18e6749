"""What a hyper-parameter search varies: fields of a training configuration by dotted path, read from YAML.

::

    optimizer.dense_lr: {low: 3.0e-4, high: 1.0e-2, log: true}
    epochs: {low: 1, high: 4}                          # integers, since both ends are
    optimizer.embedding_decay: {choices: [0.0, 0.1, 1.0]}
    model.width: {choices: [64, 128]}                  # a field of the preset that `model` names
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from optuna.trial import BaseTrial
from pydantic import ValidationError, model_validator

from model.config import ConfigError, StrictModel, describe, read_yaml
from model.training.config import TrainConfig, parse_config

Scalar = bool | int | float | str | None


class Dimension(StrictModel):
    """Values of one field: `choices`, or a range from `low` to `high` (both included), on a `log` scale or in `step`s."""

    choices: tuple[Scalar, ...] = ()
    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    step: int | float | None = None

    @model_validator(mode="after")
    def _choices_or_range(self) -> Dimension:
        if bool(self.choices) == (self.low is not None or self.high is not None):
            raise ValueError("give either `choices` or `low` and `high`")
        if not self.choices and (self.low is None or self.high is None or not self.low < self.high):
            raise ValueError("expected `low` below `high`")
        if self.log and (self.step is not None or self.choices or not self.low or self.low <= 0):
            raise ValueError("`log` is for ranges above 0 without `step`")
        if self.step is not None and (self.choices or self.step <= 0 or (self.is_whole and not isinstance(self.step, int))):
            raise ValueError("`step` is for ranges: above 0, and an integer where both ends are")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether values are integers, since both ends are."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def suggest(self, trial: BaseTrial, name: str) -> Scalar:
        """A value for a trial."""
        if self.choices:
            return trial.suggest_categorical(name, self.choices)
        assert self.low is not None
        assert self.high is not None
        if self.is_whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return trial.suggest_float(name, self.low, self.high, log=self.log, step=self.step)

    @property
    def ends(self) -> tuple[Scalar, ...]:
        """Values whose validity speaks for all: every choice, or both ends."""
        return self.choices or (self.low, self.high)


def load_space(path: Path, base: Mapping[str, Any]) -> dict[str, Dimension]:
    """Read a search space for the configuration `base` (plain data); raises `ConfigError` for values that do not fit."""
    data, space = read_yaml(path), {}
    if not data:
        raise ConfigError(f"{path}: expected at least one field to vary, found none")
    for name, values in data.items():
        try:
            space[str(name)] = Dimension.model_validate(values)
        except ValidationError as error:
            raise ConfigError(describe(error, Dimension, f"{path}: {name}")) from error
        for value in space[str(name)].ends:
            try:
                with_values(base, {str(name): value})
            except ConfigError as error:
                raise ConfigError(f"{path}: {name}: {value!r} does not fit: {error}") from error
    return space


def with_values(base: Mapping[str, Any], values: Mapping[str, Scalar]) -> tuple[TrainConfig, dict[str, Any]]:
    """`base` with values at dotted paths, parsed and as plain data; raises `ConfigError`."""
    data = deepcopy(dict(base))
    for name, value in values.items():
        *folders, field = name.split(".")
        at = data
        for folder in folders:
            inner = at.setdefault(folder, {})
            if folder == "model" and isinstance(inner, str):
                inner = at[folder] = {"preset": inner}
            if not isinstance(inner, dict):
                raise ConfigError(f"{name}: expected a mapping at {folder!r}, found {inner!r}")
            at = inner
        at[field] = value
    if isinstance(data.get("model"), dict) and not data["model"].keys() & {"preset", "architecture"} and "model" not in base:
        data["model"] = {"preset": TrainConfig.model_fields["model"].default, **data["model"]}
    return parse_config(data), data
