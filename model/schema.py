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
    buckets: Annotated[int, Field(ge=2, le=1 << 30)]


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
    data are kept in the manifest) or cut into buckets and embedded. A missing value is row 0 for a
    categorical feature, zeros for a multi-valued one, and the training mean for a number.
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
            if self.log1p and self.buckets is not None:
                raise ValueError(f"feature {self.name!r}: `log1p` has no effect on `buckets`; give one of them")
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

    `cap` is the number of newest events the model reads, `capacity` the number the store keeps (at least
    `read_window`, so that serving reads what offline preparation reads).
    `attributes` are part of the stored record, whose width is fixed: a multi-valued one takes 8 bytes for each of its
    `max_values`. An attribute named like an item feature is that feature as it was when the event happened.
    `min_fold_interval_s` lets frequent events (impressions) change the user state at most that often.
    """

    name: Name
    cap: Annotated[int, Field(ge=1, le=MAX_HISTORY)]
    capacity: Annotated[int, Field(ge=1, le=MAX_HISTORY)] | None = None
    attributes: tuple[Feature, ...] = ()
    min_fold_interval_s: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _capacity_covers_cap(self) -> EventType:
        if self.capacity is not None and self.capacity < self.read_window:
            raise ValueError(
                f"event type {self.name!r}: capacity {self.capacity} is below {self.read_window}: "
                f"cap {self.cap} and the slack for events that arrive out of order"
            )
        _distinct(f"events.{self.name}.attributes", [f.name for f in self.attributes], ("item", "time_ms", "arrival_ms"))
        for feature in self.attributes:
            if feature.derived is not None:
                raise ValueError(f"attribute {feature.name!r}: only context features can be derived")
        return self

    @property
    def read_window(self) -> int:
        """Arrivals a request reads (see `read_window`)."""
        return read_window(self.cap)

    @property
    def stored(self) -> int:
        """Events kept in the store per user."""
        return max(self.capacity or 2 * self.cap, self.read_window)


class Affinity(StrictModel):
    """What a user's own record of `event` and `outcome` says of a candidate (see `model.affinity`).

    `event` is what happens to every shown item (an impression), `outcome` both an event type and a task: which of these
    events succeeded. `by` names what a candidate and an event may have in common: ``item``, the item itself, or item features
    that the event type carries as attributes of the same name, as they were when it happened (categorical, multi-valued, or
    cut into buckets). `prior`: events that an unknown user is taken to have had at the usual rate.

    Outcomes must be seen at least as far back and as soon as the events, or events whose outcome is out of sight would count
    as failures: the outcome's `cap` is at least the event's, its `min_fold_interval_s` 0 or a divisor of the event's.
    """

    name: Name
    event: Name
    outcome: Name
    by: Annotated[tuple[Name, ...], Field(min_length=1)] = ("item",)
    prior: Annotated[float, Field(gt=0)] = 8.0


class Task(StrictModel):
    """One binary outcome to predict; its labels are the log's `label_<name>` column."""

    name: Name
    weight: Annotated[float, Field(gt=0)] = 1.0


def read_window(cap: int) -> int:
    """Arrivals to read so that moderate disorder cannot push a newer event out of the newest `cap`."""
    return cap + max(8, cap // 4)


def fold_interval_ms(interval_s: float) -> int:
    """`min_fold_interval_s` in whole milliseconds; 0: events count at once."""
    return max(1, int(interval_s * 1000)) if interval_s > 0 else 0


def _distinct(group: str, names: list[str], reserved: tuple[str, ...] = ()) -> None:
    """Raise unless all names differ and none is reserved."""
    doubled = sorted({n for n in names if names.count(n) > 1})
    if doubled:
        raise ValueError(f"{group}: declared twice: {', '.join(doubled)}")
    taken = [n for n in names if n in reserved]
    if taken:
        raise ValueError(f"{group}: {taken[0]!r} is reserved here; choose another name")


def _check_sight(where: str, event: EventType, outcome: EventType) -> None:
    """Raise if a request may see an event whose outcome it no longer sees, or does not see yet."""
    if outcome.cap < event.cap:
        raise ValueError(
            f"{where}: outcome {outcome.name!r} has cap {outcome.cap}, expected at least the {event.cap} of {event.name!r}: "
            f"older events would count as failures. Raise events.{outcome.name}.cap or lower events.{event.name}.cap"
        )
    ours, theirs = (fold_interval_ms(e.min_fold_interval_s) for e in (outcome, event))
    if ours and (not theirs or theirs % ours):
        raise ValueError(
            f"{where}: outcome {outcome.name!r} has min_fold_interval_s {outcome.min_fold_interval_s:g}, expected 0 or a "
            f"divisor of the {event.min_fold_interval_s:g} of {event.name!r}: events that are folded in before their outcomes "
            f"would count as failures. Lower events.{outcome.name}.min_fold_interval_s"
        )


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
    events: Annotated[tuple[EventType, ...], Field(min_length=1)]
    affinities: tuple[Affinity, ...] = ()
    tasks: Annotated[tuple[Task, ...], Field(min_length=1)]
    value: Annotated[str, AfterValidator(_checked_expression)]
    slice: Name | None = None
    max_candidates: Annotated[int, Field(ge=1, le=100_000)] = 4096

    @model_validator(mode="after")
    def _names_resolve(self) -> Schema:
        context = [f.name for f in self.context]
        _distinct("user", [f.name for f in self.user], ("user_id",))
        _distinct("context", context, ("request_id", "time_ms", "user_id", "items", "positions", "propensity"))
        columns = [*(f.name for f in self.item_features), *self.request_columns]
        _distinct("item_features and request_columns", columns, ("item_id",))
        _distinct("events", [e.name for e in self.events], ("user", "context", "item"))
        _distinct("tasks", [t.name for t in self.tasks])
        _distinct("request_columns and tasks", [*self.request_columns, *(f"p_{t.name}" for t in self.tasks)])
        for name in context:
            if name.startswith(("label_", "truth_", "column_")):
                raise ValueError(f"context: {name!r}: names beginning with label_, truth_ or column_ are the log's own")
        for where, table in self._table_uses():
            if table not in self.tables:
                raise ValueError(f"{where}: table {table!r} is not declared; tables: {', '.join(sorted(self.tables))}")
        for group_name, features in (("user", self.user), ("item_features", self.item_features)):
            for feature in features:
                if feature.derived is not None:
                    raise ValueError(f"{group_name}: {feature.name!r} is derived; only context features can be")
        self._check_affinities()
        known = {t.name: "task" for t in self.tasks} | dict.fromkeys(self.request_columns, "column")
        for name in sorted(ValueExpression.parse(self.value).names):
            task = name.removeprefix("p_")
            if name not in self.request_columns and not (name.startswith("p_") and known.get(task) == "task"):
                raise ValueError(
                    f"value: unknown name {name!r}; available: "
                    + ", ".join([*(f"p_{t.name}" for t in self.tasks), *self.request_columns])
                )
        slices = [f.name for f in self.context if f.kind is FeatureKind.CATEGORICAL]
        if self.slice is not None and self.slice not in slices:
            raise ValueError(
                f"slice: {self.slice!r} is not a categorical context feature; there are: {', '.join(slices) or 'none'}"
            )
        return self

    def _check_affinities(self) -> None:
        _distinct("affinities", [a.name for a in self.affinities])
        events, tasks = {e.name: e for e in self.events}, [t.name for t in self.tasks]
        features = {f.name: f for f in self.item_features}
        if self.affinities:
            _distinct("item_features (with affinities)", list(features), ("item",))
        for a in self.affinities:
            where = f"affinities.{a.name}"
            for role, name in (("event", a.event), ("outcome", a.outcome)):
                if name not in events:
                    raise ValueError(f"{where}: {role} {name!r} is not an event type; there are: {', '.join(events)}")
            if a.outcome not in tasks or a.outcome == a.event:
                others = ", ".join(t for t in tasks if t in events and t != a.event) or "none"
                raise ValueError(
                    f"{where}: outcome {a.outcome!r} must be a task as well, and not the event itself; there are: {others}"
                )
            _check_sight(where, events[a.event], events[a.outcome])
            _distinct(f"{where}.by", list(a.by))
            carried = {f.name: f for f in events[a.event].attributes}
            for name in a.by:
                if name == "item":
                    continue
                ours, theirs = features.get(name), carried.get(name)
                if ours is None or ours.is_dense:
                    raise ValueError(
                        f"{where}.by: {name!r} is not `item` or an item feature with ids or buckets; there are: "
                        + ", ".join(["item", *(f.name for f in features.values() if not f.is_dense)])
                    )
                if theirs is None or (theirs.kind, theirs.id_type) != (ours.kind, ours.id_type):
                    raise ValueError(
                        f"{where}.by: event type {a.event!r} has no attribute {name!r} of kind {ours.kind.value} and the item "
                        f"feature's id type; give it the item's feature: attributes: [{{name: {name}, …}}]"
                    )

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
        data = self.model_dump(mode="json")
        if not self.affinities:
            del data["affinities"]  # artifacts and runs from before there were any keep their digest
        canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def load_schema(path: str | Path) -> Schema:
    """Read a schema from YAML; raises `ConfigError` naming the field, what was expected and found."""
    return load_yaml(Schema, path)


def schema_from_json(data: dict[str, Any]) -> Schema:
    """Rebuild a schema from its JSON form (the manifest's)."""
    return Schema.model_validate(data)
