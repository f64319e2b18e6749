"""Architectures by name: those of this package, and those that other packages register.

A third party names its configuration class in the entry-point group ``kunlun.architectures`` and is then trained, exported and
served like the others::

    [project.entry-points."kunlun.architectures"]
    two_tower = "my_package.two_tower:TwoTowerConfig"

A model in YAML or JSON is a mapping with ``architecture: <name>`` (default `kunlun`, so older files keep their meaning), or
the name of a preset, or a mapping with ``preset: <name>`` and what differs from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, ValidationError

from model.architectures.base import ArchitectureConfig
from model.config import PRESETS, ConfigError, NestedInvalid, read_yaml

DEFAULT = "kunlun"
GROUP = "kunlun.architectures"
BUILT_IN = {
    "dcn_v2": "model.architectures.dcn_v2.config:DCNv2Config",
    "din": "model.architectures.din.config:DINConfig",
    "hstu": "model.architectures.hstu.config:HSTUConfig",
    "interformer": "model.architectures.interformer.config:InterFormerConfig",
    "kunlun": "model.architectures.kunlun.config:KunlunConfig",
    "logistic_regression": "model.architectures.logistic_regression.config:LogisticRegressionConfig",
    "wukong": "model.architectures.wukong.config:WukongRankerConfig",
}


def architecture_names() -> tuple[str, ...]:
    """Every known architecture."""
    return tuple(sorted({*BUILT_IN, *(point.name for point in entry_points(group=GROUP))}))


def architecture_class(name: str) -> type[ArchitectureConfig]:
    """The configuration class of an architecture; raises `ConfigError` for an unknown name."""
    if name in BUILT_IN:
        module, attribute = BUILT_IN[name].split(":")
        found: Any = getattr(import_module(module), attribute)
    else:
        point = next((point for point in entry_points(group=GROUP) if point.name == name), None)
        if point is None:
            raise ConfigError(f"architecture: expected one of {', '.join(architecture_names())}, found {name!r}")
        found = point.load()
    if not (isinstance(found, type) and issubclass(found, ArchitectureConfig)):
        raise ConfigError(f"architecture {name!r}: expected a subclass of ArchitectureConfig, found {found!r}")
    return found


def parse_architecture(data: Mapping[str, Any]) -> ArchitectureConfig:
    """The configuration that `data` describes; raises `ConfigError` naming fields."""
    if "preset" in data:
        data = merged(preset_data(data["preset"]), {key: value for key, value in data.items() if key != "preset"})
    kind = architecture_class(str(data.get("architecture", DEFAULT))).variant_of(data)
    try:
        return kind.model_validate(dict(data))
    except ValidationError as error:
        raise NestedInvalid(error, kind) from error


def load_preset(name: str) -> ArchitectureConfig:
    """A shipped model configuration, for example `tiny` (tests) or `small` (public data); raises `ConfigError`."""
    return parse_architecture(preset_data(name))


def preset_data(name: object) -> dict[str, Any]:
    """The mapping of a shipped model configuration; raises `ConfigError` naming those there are."""
    known = sorted(path.stem for path in PRESETS.glob("*.yaml") if ".schema" not in path.name)
    if name not in known:
        raise ConfigError(f"preset: expected one of {', '.join(known)}, found {name!r}")
    return read_yaml(PRESETS / f"{name}.yaml")


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` in it, mapping by mapping; a change to null removes the key."""
    result = dict(base)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


def _parse(value: object) -> object:
    match value:
        case str():
            return load_preset(value)
        case Mapping():
            return parse_architecture(value)
    return value


AnyArchitecture = Annotated[SerializeAsAny[ArchitectureConfig], BeforeValidator(_parse)]
"""Field type of a configuration that holds a model of any architecture."""
