"""Strict, frozen configuration objects read from YAML, with errors a person can act on.

Owns: the base class of every configuration (`StrictModel`) and the conversion of validation errors
into `ConfigError`, which names the file, the field, what was expected and what was found, and for
an unknown key the nearest known one.
"""

from __future__ import annotations

import difflib
import json
import types
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

PRESETS = Path(__file__).parent / "presets"


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is meant for the person who wrote it."""


class StrictModel(BaseModel):
    """Immutable, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class NestedInvalid(ConfigError):
    """A part of a configuration that was parsed on its own, as `kind`, and is not valid; `describe` shows where and why."""

    def __init__(self, error: ValidationError, kind: type[BaseModel]) -> None:
        super().__init__(describe(error, kind, kind.__name__))
        self.error, self.kind = error, kind


Config = TypeVar("Config", bound=StrictModel)


def load_yaml(kind: type[Config], path: str | Path) -> Config:
    """Parse the YAML file at `path` as `kind`; raises `ConfigError`."""
    return _validated(kind, read_yaml(path), str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in the YAML file at `path`; raises `ConfigError`."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    return _mapping(text, str(path))


def parse_yaml(kind: type[Config], text: str, source: str = "<string>") -> Config:
    """Parse YAML `text` as `kind`; `source` names it in errors."""
    return _validated(kind, _mapping(text, source), source)


def _mapping(text: str, source: str) -> dict[str, Any]:
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: expected a mapping of keys, found {type(data).__name__}")
    return data


def _validated(kind: type[Config], data: dict[str, Any], source: str) -> Config:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise ConfigError(describe(error, kind, source)) from error


def describe(error: ValidationError, kind: type[BaseModel], source: str) -> str:
    """One line per problem: where, what was expected, what was found, and a likely correction."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "(top level)"
        nested = problem.get("ctx", {}).get("error")
        if isinstance(nested, NestedInvalid):
            lines.append(describe(nested.error, nested.kind, f"{source}: {where}"))
        elif problem["type"] == "extra_forbidden":
            lines.append(f"{source}: {where}: unknown key{_nearest(kind, problem['loc'])}")
        elif problem["type"] == "missing":
            lines.append(f"{source}: {where}: required key is missing")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            found = problem.get("input")
            shown = f"; found {found!r}" if isinstance(found, str | int | float | bool | None) else ""
            lines.append(f"{source}: {where}: {message}{shown}")
    return "\n".join(lines)


def _nearest(kind: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """The closest known key beside the unknown one that `loc` ends in."""
    candidates = {name for owner in _owners([kind], loc[:-1]) for name in owner.model_fields}
    near = difflib.get_close_matches(str(loc[-1]), sorted(candidates), n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known keys: {', '.join(sorted(candidates))}" if candidates else ""


def _owners(kinds: list[type[BaseModel]], loc: tuple[int | str, ...]) -> list[type[BaseModel]]:
    """The model classes that a path of keys can lead to (list indices and union tags are passed over)."""
    for part in loc:
        stepped = [
            inner
            for kind in kinds
            if isinstance(part, str) and part in kind.model_fields
            for inner in _models_in(kind.model_fields[part].annotation)
        ]
        kinds = stepped or kinds
    return kinds


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, tuple, list, dict, Annotated):
        return [found for argument in get_args(annotation) for found in _models_in(argument)]
    return []


def save_json(model: StrictModel, path: Path) -> None:
    """Write a model as JSON, aside and then renamed, so that nobody reads half of it."""
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(model.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    aside.replace(path)
