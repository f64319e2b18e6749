"""Messages between protocol and core. Frozen, torch-free, grpc-free.

Protocol adapters build `RankRequest` from the wire and turn `RankResult` back; the core sees
nothing else. Records are rows of the schema's dtypes (`model.records`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from model.records import Records


class Rung(IntEnum):
    """Degradation of a reply; numbers and names are those of `kunlun.v1.Rung`."""

    FULL = 1
    STALE_STATE = 2
    FEWER_CANDIDATES = 3
    SHORT_HISTORY = 4
    PRIOR = 5
    BACKUP_ENGINE = 6


class Priority(IntEnum):
    """What a request is worth under overload; numbers and names are those of `kunlun.v1.Priority`."""

    LOW = 1
    NORMAL = 2
    HIGH = 3


@dataclass(frozen=True)
class Overrides:
    """Feature values sent with a request, which win over stored ones: `records` [N], and which fields were sent."""

    records: Records
    fields: tuple[str, ...]


@dataclass(frozen=True)
class CandidateBlock:
    """The candidates of one request, in the caller's order."""

    keys: NDArray[np.int64]  # [C]
    overrides: Overrides | None = None  # item features [C]
    columns: Mapping[str, NDArray[np.float64]] = field(
        default_factory=dict
    )  # request columns [C], all that the value expression reads

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class RankRequest:
    """One validated ranking request. `deadline` and `started` are on `time.monotonic()`."""

    request_id: str
    user_id: str
    user_key: int
    candidates: CandidateBlock
    context: Records  # [1]
    received_ms: int  # wall clock, ms since the epoch: the request time of every derived feature
    deadline: float
    started: float  # when the call arrived
    top_k: int = 0  # 0: all
    user_overrides: Overrides | None = None  # [1]
    min_event_version: int = 0  # history version that must be visible; 0: any
    priority: Priority = Priority.NORMAL
    keeps_features: bool = False  # the result is to carry the features it was made of


@dataclass(frozen=True)
class StageTimes:
    """Seconds per stage of one request."""

    store_s: float = 0.0
    queue_s: float = 0.0
    encode_s: float = 0.0
    score_s: float = 0.0


@dataclass(frozen=True)
class ServedFeatures:
    """What one Rank was answered from, values sent with the request in place of stored ones.

    `is_intact`: the store was read and the histories are whole; else these are not the user's features.
    """

    user: Records  # [1]
    has_user: bool  # anything of the user's features was stored or sent
    histories: Mapping[str, Records]  # per event type, oldest first
    items: Records  # [k], in the order of the result
    is_intact: bool

    @property
    def nbytes(self) -> int:
        return self.user.nbytes + self.items.nbytes + sum(h.nbytes for h in self.histories.values())


@dataclass(frozen=True)
class RankResult:
    """The ordered top k. `order` holds positions in the request's candidates, best first."""

    model: str
    version: str
    order: NDArray[np.int64]  # [k]
    probabilities: NDArray[np.float32]  # [k, tasks], calibrated
    values: NDArray[np.float64]  # [k], value expression
    rung: Rung
    rung_reason: str
    newest_event_age_ms: int  # -1: no history
    history_length: int
    user_state_cached: bool
    unknown_items: int
    unknown_user: bool
    times: StageTimes
    features: ServedFeatures | None = None  # when the request asked for them


@dataclass(frozen=True)
class UserEvent:
    """One validated event: its record (without arrival time, which the store sets) and its identity."""

    event_id: str
    user_id: str
    type: str
    record: Records  # [1], dtype event_dtype(type); arrival_ms is filled in by the store


@dataclass(frozen=True)
class RecordedEvents:
    """What the store acknowledged. `versions`: history version per user id after the call."""

    stored: int
    duplicates: int
    versions: Mapping[str, int]
