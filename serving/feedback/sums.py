"""What feedback is summed up in: additive vectors by key, and how they lie in the store.

Everything online is a sum over impressions, so minutes, slices and versions are merged by addition:

* ``ne``: of a task, version and slice, `model.metrics.normalized_entropy.NEState` and the late positives;
* ``scores``: of a task and version, the histograms of all impressions' scores and of the positives' (`score_histogram`);
* ``canary``: of a task, live version and canary version, `model.metrics.paired_ne.PairedNE`;
* ``counts``: how outcomes and labels fared (`COUNTS`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple, fields
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.metrics.normalized_entropy import NEState
from model.metrics.paired_ne import PairedNE
from model.metrics.score_histogram import BINS

Vector = NDArray[np.float64]
COUNTS = ("outcomes", "repeated", "expired", "unreadable", "lists", "labels", "joined_labels")
"""Outcomes read, those with nothing new, those after the attribution window, entries that are no outcome of these tasks;
lists with impressions, distinct labels, and those among them whose impression is known."""


class Kind(StrEnum):
    """What a vector holds."""

    NE = "ne"
    SCORES = "scores"
    CANARY = "canary"
    COUNTS = "counts"


class SumKey(NamedTuple):
    """What is summed up separately. `detail`: the slice of ``ne``, the canary's version of ``canary``."""

    kind: Kind
    task: str = ""
    version: str = ""
    detail: str = ""


Sums = dict[SumKey, Vector]
"""Vectors [WIDTHS[kind]] by key."""

WIDTHS = {
    Kind.NE: len(fields(NEState)) + 1,
    Kind.SCORES: 2 * BINS,
    Kind.CANARY: len(fields(PairedNE)),
    Kind.COUNTS: len(COUNTS),
}
_SPARSE = np.dtype([("at", "<u2"), ("value", "<f8")])


def add(into: Sums, more: Mapping[SumKey, Vector]) -> None:
    """Add `more` to `into`, in place; vectors of `more` stay as they are."""
    for key, vector in more.items():
        into[key] = into[key] + vector if key in into else vector


def ne_state(vector: Vector) -> NEState:
    """The NE sums of an ``ne`` vector."""
    return NEState(*vector[:-1].tolist())


def late_positives(vector: Vector) -> float:
    """Positives of an ``ne`` vector that came late."""
    return float(vector[-1])


def paired_ne(vector: Vector) -> PairedNE:
    """The sums of a ``canary`` vector."""
    return PairedNE(*vector.tolist())


def of_paired_ne(state: PairedNE) -> Vector:
    """The inverse."""
    return np.array(astuple(state))


def encode_key(key: SumKey) -> bytes:
    """A field name in the store."""
    return json.dumps(key, ensure_ascii=False, separators=(",", ":")).encode()


def decode_key(field: bytes) -> SumKey:
    """The inverse; raises `ValueError`."""
    kind, task, version, detail = json.loads(field)
    return SumKey(Kind(kind), task, version, detail)


def encode_vector(kind: Kind, vector: Vector) -> bytes:
    """Little-endian float64, of histograms only the bins that are not 0."""
    if kind is not Kind.SCORES:
        return vector.astype("<f8").tobytes()
    at = np.flatnonzero(vector)
    sparse = np.empty(len(at), _SPARSE)
    sparse["at"], sparse["value"] = at, vector[at]
    return sparse.tobytes()


def decode_vector(kind: Kind, data: bytes) -> Vector:
    """The inverse; raises `ValueError`."""
    if kind is not Kind.SCORES:
        vector = np.frombuffer(data, "<f8").astype(np.float64)
        if len(vector) != WIDTHS[kind]:
            raise ValueError(f"{kind} sums: expected {WIDTHS[kind]} numbers, found {len(vector)}")
        return vector
    sparse, vector = np.frombuffer(data, _SPARSE), np.zeros(WIDTHS[kind])
    if len(sparse) and sparse["at"].max() >= len(vector):
        raise ValueError(f"{kind} sums: expected bins below {len(vector)}, found {sparse['at'].max()}")
    vector[sparse["at"]] = sparse["value"]
    return vector


def encode_sums(sums: Mapping[SumKey, Vector]) -> dict[bytes, bytes]:
    """Fields of a hash."""
    return {encode_key(key): encode_vector(key.kind, vector) for key, vector in sums.items()}


def decode_sums(found: Mapping[bytes, bytes]) -> Sums:
    """The inverse; raises `ValueError`."""
    sums = {}
    for field, data in found.items():
        key = decode_key(field)
        sums[key] = decode_vector(key.kind, data)
    return sums
