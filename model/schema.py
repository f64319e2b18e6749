"""The schema: one typed description of features, events and tasks.

Owns the meaning of every input. Data preparation, model, export, request validation and feature
store are all driven by the same frozen `Schema` object, so that training and serving cannot drift
apart. Torch-free. Read from YAML (`load_schema`), stored as JSON inside the artifact's manifest
(`Schema.model_dump(mode="json")`), and identified by `schema_digest`.

Invariant: a schema is immutable and validated as a whole; unknown keys are rejected with the
nearest known one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from model.config import StrictModel, load_yaml
from model.value_expression import ValueExpression

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
MAX_HISTORY = 65_536


class IdType(StrEnum):
    """How ids travel on the wire: packed 64-bit integers, or strings that the server hashes."""

    INT64 = "int64"
    STRING = "string"


class HashSpec(StrictModel):
    """The declared hash from string ids to int64 keys (see `model.hashing`)."""

    algorithm: Literal["xxh64"] = "xxh64"
    seed: Annotated[int, Field(ge=0)] = 0


class Vocabulary(StrictModel):
    """Exact ids seen in training get a row of their own; every other id shares row 0 (OOV)."""

    kind: Literal["vocabulary"] = "vocabulary"
    min_count: Annotated[int, Field(ge=1)] = 1
    max_size: Annotated[int, Field(ge=1)] = 10_000_000


class HashBuckets(StrictModel):
    """Ids are hashed into a fixed number of rows (1 … buckets); row 0 stays for missing values."""

    kind: Literal["hash"]
    buckets: Annotated[int, Field(ge=2)]


class Table(StrictModel):
    """One embedding table; features that name the same table share it."""

    width: Annotated[int, Field(ge=1, le=4096)]
    encoding: Annotated[Vocabulary | HashBuckets, Field(discriminator="kind")] = Vocabulary()


class Bucketing(StrictModel):
    """A numeric feature cut at boundaries (explicit, or training quantiles) and embedded."""

    width: Annotated[int, Field(ge=1, le=4096)] = 8
    boundaries: tuple[float, ...] = ()
    quantiles: Annotated[int, Field(ge=2, le=1024)] | None = None

    @model_validator(mode="after")
    def _one_way_to_cut(self) -> Bucketing:
        if bool(self.boundaries) == (self.quantiles is not None):
            raise ValueError("give either `boundaries` or `quantiles`")
        if list(self.boundaries) != sorted(set(self.boundaries)):
            raise ValueError("`boundaries` must be strictly increasing")
        return self


class Derived(StrEnum):
    """Context features the server computes itself, identically offline and online."""

    SECONDS_SINCE_NEWEST_EVENT = "seconds_since_newest_event"
    HOUR_OF_DAY = "hour_of_day"
    DAY_OF_WEEK = "day_of_week"


class FeatureKind(StrEnum):
    CATEGORICAL = "categorical"
    MULTI = "multi"
    NUMERIC = "numeric"


class Feature(StrictModel):
    """One declared feature.

    `categorical`: one id per row, embedded from `table`. `multi`: up to `max_values` ids, their
    rows averaged. `numeric`: normalised (`log1p` first if asked; mean and deviation of the training
    data are kept in the manifest) or cut into buckets and embedded. A missing value is row 0 for
    ids, and the training mean for numbers.
    """

    name: Name
    kind: FeatureKind
    table: Name | None = None
    id_type: IdType = IdType.STRING
    max_values: Annotated[int, Field(ge=1, le=1024)] = 16
    log1p: bool = False
    buckets: Bucketing | None = None
    derived: Derived | None = None

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> Feature:
        if self.kind is FeatureKind.NUMERIC:
            if self.table is not None:
                raise ValueError(f"feature {self.name!r}: a numeric feature takes `buckets`, not `table`")
        elif self.table is None:
            raise ValueError(f"feature {self.name!r}: a {self.kind.value} feature needs a `table`")
        elif self.log1p or self.buckets is not None:
            raise ValueError(f"feature {self.name!r}: `log1p` and `buckets` are for numeric features")
        if self.derived is not None and self.kind is not FeatureKind.NUMERIC:
            raise ValueError(f"feature {self.name!r}: derived features are numeric")
        return self

    @property
    def is_dense(self) -> bool:
        """True when the feature reaches the graph as one normalised float."""
        return self.kind is FeatureKind.NUMERIC and self.buckets is None


class ItemIdentity(StrictModel):
    """How items are identified; `table` embeds the id itself, in candidates and in histories."""

    id_type: IdType = IdType.STRING
    table: Name


class EventType(StrictModel):
    """One kind of user event; each forms its own history and gets its own tower.

    `cap` is the number of newest events the model reads, `capacity` the number the store keeps.
    `min_fold_interval_s` lets frequent events (impressions) change the user state at most that often.
    """

    name: Name
    cap: Annotated[int, Field(ge=1, le=MAX_HISTORY)]
    capacity: Annotated[int, Field(ge=1, le=MAX_HISTORY)] | None = None
    attributes: tuple[Feature, ...] = ()
    min_fold_interval_s: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _capacity_covers_cap(self) -> EventType:
        if self.capacity is not None and self.capacity < self.cap:
            raise ValueError(f"event type {self.name!r}: capacity {self.capacity} is below cap {self.cap}")
        for feature in self.attributes:
            if feature.kind is FeatureKind.MULTI:
                raise ValueError(f"attribute {feature.name!r}: event attributes are single-valued (records are fixed-width)")
            if feature.derived is not None:
                raise ValueError(f"attribute {feature.name!r}: only context features can be derived")
        return self

    @property
    def stored(self) -> int:
        """Events kept in the store per user."""
        return self.capacity if self.capacity is not None else 2 * self.cap


class Task(StrictModel):
    """One binary outcome to predict; `event` is the event type whose occurrence is the label."""

    name: Name
    weight: Annotated[float, Field(gt=0)] = 1.0


def _checked_expression(text: str) -> str:
    ValueExpression.parse(text)
    return text


class Schema(StrictModel):
    """Everything the system knows about its inputs. See the class docstrings of the parts."""

    schema_version: Literal[1] = 1
    name: Name
    hash: HashSpec = HashSpec()
    tables: dict[Name, Table]
    item: ItemIdentity
    user: tuple[Feature, ...] = ()
    user_id_table: Name | None = None
    context: tuple[Feature, ...] = ()
    item_features: tuple[Feature, ...] = ()
    request_columns: tuple[Name, ...] = ()
    events: tuple[EventType, ...]
    tasks: Annotated[tuple[Task, ...], Field(min_length=1)]
    value: Annotated[str, AfterValidator(_checked_expression)]
    slice: Name | None = None
    max_candidates: Annotated[int, Field(ge=1, le=100_000)] = 4096

    @model_validator(mode="after")
    def _names_resolve(self) -> Schema:
        for group, names in (
            ("user", [f.name for f in self.user]),
            ("context", [f.name for f in self.context]),
            ("item_features and request_columns", [*(f.name for f in self.item_features), *self.request_columns]),
            ("events", [e.name for e in self.events]),
            ("tasks", [t.name for t in self.tasks]),
        ):
            doubled = sorted({n for n in names if names.count(n) > 1})
            if doubled:
                raise ValueError(f"{group}: declared twice: {', '.join(doubled)}")
        for where, table in self._table_uses():
            if table not in self.tables:
                raise ValueError(f"{where}: table {table!r} is not declared; tables: {', '.join(sorted(self.tables))}")
        for group_name, features in (("user", self.user), ("item_features", self.item_features)):
            for feature in features:
                if feature.derived is not None:
                    raise ValueError(f"{group_name}: {feature.name!r} is derived; only context features can be")
        known = {t.name: "task" for t in self.tasks} | dict.fromkeys(self.request_columns, "column")
        for name in sorted(ValueExpression.parse(self.value).names):
            task = name.removeprefix("p_")
            if name not in self.request_columns and not (name.startswith("p_") and known.get(task) == "task"):
                raise ValueError(
                    f"value: unknown name {name!r}; available: "
                    + ", ".join([*(f"p_{t.name}" for t in self.tasks), *self.request_columns])
                )
        if self.slice is not None and self.slice not in {f.name for f in self.context}:
            raise ValueError(f"slice: {self.slice!r} is not a context feature")
        return self

    def _table_uses(self) -> Iterator[tuple[str, str]]:
        yield "item", self.item.table
        if self.user_id_table is not None:
            yield "user_id_table", self.user_id_table
        groups = [("user", self.user), ("context", self.context), ("item_features", self.item_features)]
        groups += [(f"events.{e.name}.attributes", e.attributes) for e in self.events]
        for where, features in groups:
            for feature in features:
                if feature.table is not None:
                    yield f"{where}.{feature.name}", feature.table

    def event(self, name: str) -> EventType:
        """The event type called `name`; `KeyError` if there is none."""
        for event in self.events:
            if event.name == name:
                return event
        raise KeyError(name)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON form."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def load_schema(path: str | Path) -> Schema:
    """Read a schema from YAML; raises `ConfigError` naming the field, what was expected and found."""
    return load_yaml(Schema, path)


def schema_from_json(data: dict[str, Any]) -> Schema:
    """Rebuild a schema from its JSON form (the manifest's)."""
    return Schema.model_validate(data)
