"""Receipts: a signed record of what was served, kept by the caller and sent back with impressions and labels.

Because the receipt carries the served predictions and the names of their tasks, no prediction log is stored, and any
replica can take the outcome, of whatever model and schema. Format (little-endian)::

    u8 format · u8 key id · i64 issued ms · u8 rung · u8 tasks · u16 k · u8 lengths of 4 texts · u16 length of the fifth
    request id · model version · slice value · canary version · task names, a line each      UTF-8
    i64[k] item keys · f32[k · tasks] predictions · with a canary version: f32[k · tasks] its predictions
    16 bytes HMAC-SHA256 of all of the above
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from serving.core.errors import ReceiptRejected

FORMAT = 2
MAC_BYTES = 16
MAX_TEXT = 255
_HEAD = struct.Struct("<BBqBBHBBBBH")


@dataclass(frozen=True)
class ShadowPredictions:
    """What another version would have said of the same list: float32 [k, tasks]."""

    version: str
    predictions: NDArray[np.float32]


@dataclass(frozen=True)
class ServedList:
    """What one response said: item keys int64 [k], predictions float32 [k, tasks], best first. `tasks`: their names."""

    request_id: str
    issued_ms: int
    model_version: str
    slice_value: str
    rung: int
    item_keys: NDArray[np.int64]
    predictions: NDArray[np.float32]
    tasks: tuple[str, ...]
    canary: ShadowPredictions | None = None

    def __len__(self) -> int:
        return len(self.item_keys)


class ReceiptSigner:
    """Signs with the active key, verifies with any known one (rotation: add the new key everywhere, then activate it)."""

    def __init__(self, keys: Mapping[int, bytes], active_id: int, max_age_s: float = 7 * 86_400) -> None:
        if active_id not in keys:
            raise ValueError(f"receipt keys: active id {active_id} is not among {sorted(keys)}")
        for identity, key in keys.items():
            if not 0 <= identity <= 255 or len(key) < 16:
                raise ValueError(
                    f"receipt keys: key {identity} needs an id of 0 to 255 and at least 16 bytes, found {len(key)} bytes"
                )
        self._keys, self._active, self._max_age_ms = dict(keys), active_id, int(max_age_s * 1000)

    def sign(self, served: ServedList) -> bytes:
        """The receipt of `served`."""
        canary = served.canary
        texts = [
            _text(t)
            for t in (served.request_id, served.model_version, served.slice_value, "" if canary is None else canary.version)
        ]
        texts.append("\n".join(served.tasks).encode())
        tasks = served.predictions.shape[1]
        head = _HEAD.pack(FORMAT, self._active, served.issued_ms, served.rung, tasks, len(served), *map(len, texts))
        numbers = [served.item_keys.astype("<i8"), served.predictions.astype("<f4")]
        if canary is not None:
            numbers.append(canary.predictions.astype("<f4"))
        body = b"".join([head, *texts, *(array.tobytes() for array in numbers)])
        return body + self._mac(self._active, body)

    def open(self, receipt: bytes, now_ms: int) -> ServedList:
        """Verify and read a receipt; raises `ReceiptRejected`."""
        if len(receipt) < _HEAD.size + MAC_BYTES:
            raise _rejected("truncated", f"at least {_HEAD.size + MAC_BYTES} bytes", f"{len(receipt)}")
        version, key_id = receipt[0], receipt[1]
        if version != FORMAT:
            raise _rejected("format", f"format {FORMAT}", f"format {version}")
        if len(receipt) != _length(receipt):
            raise _rejected("truncated", f"{_length(receipt)} bytes", f"{len(receipt)}")
        if key_id not in self._keys:
            raise _rejected("unknown_key", "a key id this server knows", f"key id {key_id}")
        body, mac = receipt[:-MAC_BYTES], receipt[-MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(key_id, body)):
            raise _rejected("forged", "an unchanged receipt", "a signature that does not match")
        served = read_receipt(receipt)
        if now_ms - served.issued_ms > self._max_age_ms:
            age_s = (now_ms - served.issued_ms) // 1000
            raise _rejected("expired", f"a receipt of at most {self._max_age_ms // 1000} s", f"{age_s} s")
        return served

    def _mac(self, key_id: int, body: bytes) -> bytes:
        return hmac.digest(self._keys[key_id], body, sha256)[:MAC_BYTES]


def read_receipt(receipt: bytes) -> ServedList:
    """Read a receipt whose signature was verified before (the outcome stream holds verified ones)."""
    _, _, issued_ms, rung, tasks, k, *lengths = _HEAD.unpack_from(receipt)
    matrices, expected = 1 + bool(lengths[3]), _length(receipt)
    if len(receipt) != expected:
        raise _rejected("truncated", f"{expected} bytes", f"{len(receipt)}")
    at, texts = _HEAD.size, []
    for length in lengths:
        texts.append(receipt[at : at + length].decode())
        at += length
    keys = np.frombuffer(receipt, dtype="<i8", count=k, offset=at)
    at += 8 * k
    predictions = np.frombuffer(receipt, dtype="<f4", count=k * tasks * matrices, offset=at).reshape(matrices, k, tasks)
    canary = ShadowPredictions(texts[3], predictions[1]) if texts[3] else None
    return ServedList(texts[0], issued_ms, texts[1], texts[2], rung, keys, predictions[0], tuple(texts[4].split("\n")), canary)


def _length(receipt: bytes) -> int:
    """Bytes of a whole receipt, by its first ones."""
    lengths: list[int]
    _, _, _, _, tasks, k, *lengths = _HEAD.unpack_from(receipt)
    per_item: int = 8 + 4 * tasks * (1 + bool(lengths[3]))
    return _HEAD.size + sum(lengths) + int(k) * per_item + MAC_BYTES


def receipt_identity(receipt: bytes) -> bytes:
    """What makes a receipt unique: its signature."""
    return receipt[-MAC_BYTES:]


def _text(text: str) -> bytes:
    """UTF-8, cut at a character boundary to at most 255 bytes."""
    return text.encode()[:MAX_TEXT].decode(errors="ignore").encode()


def _rejected(reason: str, expected: str, found: str) -> ReceiptRejected:
    return ReceiptRejected("receipt", expected, found, reason)
