"""Outcomes: what became of a served list, as they travel through the store's outcome stream.

Format (little-endian): i64 reported ms · u16 shown · u16 labels · u16[shown] positions ·
(u16 position, u8 task)[labels] · the receipt.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.core.errors import InvalidField
from serving.feedback.receipt import ServedList, read_receipt, receipt_identity

_HEAD = struct.Struct("<qHH")
_LABEL = np.dtype([("position", "<u2"), ("task", "u1")])


@dataclass(frozen=True)
class Outcome:
    """Positions of `served` that were shown, and (position, task number) pairs that turned positive."""

    identity: bytes
    served: ServedList
    shown: tuple[int, ...]
    labels: tuple[tuple[int, int], ...]
    reported_ms: int


def check_positions(where: str, positions: Sequence[int], served: ServedList) -> None:
    """Raise `InvalidField` unless all positions are distinct and were returned."""
    beyond = [p for p in positions if p >= len(served)]
    if beyond:
        raise InvalidField(where, f"positions below {len(served)}, the number of returned items", str(beyond[0]))
    if len(set(positions)) != len(positions):
        doubled = next(p for i, p in enumerate(positions) if p in positions[:i])
        raise InvalidField(where, "distinct positions", f"{doubled} twice")


def encode_outcome(receipt: bytes, shown: Sequence[int], labels: Sequence[tuple[int, int]], reported_ms: int) -> bytes:
    """Bytes of an outcome; the receipt and the positions were verified before."""
    pairs = np.array(list(labels), dtype=_LABEL) if labels else np.empty(0, dtype=_LABEL)
    return b"".join(
        [_HEAD.pack(reported_ms, len(shown), len(labels)), np.asarray(shown, dtype="<u2").tobytes(), pairs.tobytes(), receipt]
    )


def decode_outcome(data: bytes) -> Outcome:
    """The inverse; raises `ValueError` on bytes that are no outcome."""
    try:
        reported_ms, shown_count, label_count = _HEAD.unpack_from(data)
        at = _HEAD.size
        shown = np.frombuffer(data, dtype="<u2", count=shown_count, offset=at)
        at += 2 * shown_count
        labels = np.frombuffer(data, dtype=_LABEL, count=label_count, offset=at)
        receipt = data[at + _LABEL.itemsize * label_count :]
        served = read_receipt(receipt)
    except (struct.error, ValueError, InvalidField) as error:
        raise ValueError(f"outcome stream: not an outcome ({error})") from error
    return Outcome(
        receipt_identity(receipt),
        served,
        tuple(shown.tolist()),
        tuple((int(p), int(t)) for p, t in labels.tolist()),
        reported_ms,
    )
