"""Entries of the served log: what one Rank was answered from, as it travels through the store's stream.

With the receipt's outcomes an entry is a training example whose features are those that were served. Records
are the schema's (`model.records`), so an entry belongs to one `layout`: a digest of every record's version and of the
names that outcomes go by number for (tasks) or entries by order (request columns, event types). Format (little-endian)::

    u8 format · 8 bytes layout · u32 length of what follows · zlib of:
    16 bytes receipt identity · i64 issued ms · i64 received ms · u8 rung · u8 has user · u16 k
    u16 lengths of 3 texts · request id · user id · model version      UTF-8
    context record · user record
    i64[k] item keys · k item records · f32[columns · k] request columns, NaN: not sent
    per event type: u32 count · records, oldest first
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.records import Records, event_dtype, feature_dtype, record_version
from model.schema import Schema
from serving.core.types import RankRequest, RankResult
from serving.feedback.receipt import ServedList, receipt_identity

FORMAT = 1
LAYOUT_BYTES = 8
LEVEL = 1
_OUTER = struct.Struct(f"<B{LAYOUT_BYTES}sI")
_HEAD = struct.Struct("<16sqqBBH3H")
_COUNT = struct.Struct("<I")


class OtherLayout(ValueError):
    """An entry of a schema whose records look different: it cannot be read with this one."""


@dataclass(frozen=True)
class ServedEntry:
    """One served list of k items and what it was made of; values sent with the request are in place of stored ones.

    `received_ms` is the request's time, `issued_ms` the receipt's. `has_user`: anything of the user's features was known.
    `histories` are those that the request saw, per event type, oldest first. `columns`: request columns float32 [k].
    """

    identity: bytes
    request_id: str
    user_id: str
    model_version: str
    issued_ms: int
    received_ms: int
    rung: int
    has_user: bool
    context: Records  # [1]
    user: Records  # [1]
    item_keys: NDArray[np.int64]  # [k], best first
    items: Records  # [k]
    columns: Mapping[str, NDArray[np.float32]]
    histories: Mapping[str, Records]


def entry_of(served: ServedList, receipt: bytes, request: RankRequest, result: RankResult) -> ServedEntry:
    """The entry of a Rank whose result carries its features; `served` is what `receipt` says."""
    assert result.features is not None
    features, k = result.features, len(served)
    order = result.order[:k]
    return ServedEntry(
        identity=receipt_identity(receipt),
        request_id=request.request_id,
        user_id=request.user_id,
        model_version=result.version,
        issued_ms=served.issued_ms,
        received_ms=request.received_ms,
        rung=int(result.rung),
        has_user=features.has_user,
        context=request.context,
        user=features.user,
        item_keys=served.item_keys,
        items=features.items[:k],
        columns={name: values[order].astype(np.float32) for name, values in request.candidates.columns.items()},
        histories=features.histories,
    )


class ServedLogFormat:
    """Encodes and decodes entries of one schema."""

    def __init__(self, schema: Schema) -> None:
        self._context, self._user = feature_dtype(schema.context), feature_dtype(schema.user)
        self._item = feature_dtype(schema.item_features)
        self._events = {e.name: event_dtype(e) for e in schema.events}
        self._columns = schema.request_columns
        self.layout = layout_of(schema)

    def encode(self, entry: ServedEntry) -> bytes:
        """Bytes of an entry whose records are of this schema; about 50 µs per 10 kB."""
        texts = [text.encode() for text in (entry.request_id, entry.user_id, entry.model_version)]
        k = len(entry.item_keys)
        numbers = (entry.identity, entry.issued_ms, entry.received_ms, entry.rung, entry.has_user, k)
        parts = [_HEAD.pack(*numbers, *map(len, texts)), *texts, entry.context.tobytes(), entry.user.tobytes()]
        parts += [entry.item_keys.astype("<i8").tobytes(), entry.items.tobytes()]
        for name in self._columns:
            column = entry.columns.get(name)
            parts.append((np.full(k, np.nan, "<f4") if column is None else column.astype("<f4")).tobytes())
        for name in self._events:
            history = entry.histories[name]
            parts += [_COUNT.pack(len(history)), history.tobytes()]
        body = b"".join(parts)
        return _OUTER.pack(FORMAT, self.layout, len(body)) + zlib.compress(body, LEVEL)

    def decode(self, data: bytes) -> ServedEntry:
        """The inverse; raises `OtherLayout` for another schema's entry, `ValueError` for bytes that are no entry."""
        try:
            number, layout, size = _OUTER.unpack_from(data)
            if number != FORMAT:
                raise ValueError(f"expected format {FORMAT}, found {number}")
            if layout != self.layout:
                raise OtherLayout(f"served log: expected layout {self.layout.hex()}, found {layout.hex()}")
            unpacker = zlib.decompressobj()
            body = unpacker.decompress(data[_OUTER.size :], size + 1)
            if len(body) != size or not unpacker.eof or unpacker.unused_data:
                raise ValueError(f"expected {size} bytes, found {len(body)}{'' if unpacker.eof else ' or more'}")
            return self._read(body)
        except OtherLayout:
            raise
        except (struct.error, zlib.error, ValueError) as error:
            raise ValueError(f"served log: not an entry ({error})") from error

    def _read(self, body: bytes) -> ServedEntry:
        identity, issued_ms, received_ms, rung, has_user, k, *lengths = _HEAD.unpack_from(body)
        at, texts = _HEAD.size, []
        for length in lengths:
            texts.append(body[at : at + length].decode())
            at += length

        def take(dtype: np.dtype[np.void] | str, count: int) -> NDArray[np.void]:
            nonlocal at
            kind = np.dtype(dtype)
            if not kind.itemsize:  # a group without features
                return np.zeros(count, kind)
            found = np.frombuffer(body, kind, count, at) if count else np.empty(0, kind)
            at += count * kind.itemsize
            return found

        context, user = take(self._context, 1), take(self._user, 1)
        keys, items = take("<i8", k).view(np.int64), take(self._item, k)
        columns = {name: take("<f4", k).view(np.float32) for name in self._columns}
        histories = {}
        for name, dtype in self._events.items():
            (count,) = _COUNT.unpack_from(body, at)
            at += _COUNT.size
            histories[name] = take(dtype, count)
        if at != len(body):
            raise ValueError(f"expected {at} bytes, found {len(body)}")
        return ServedEntry(
            *(identity, *texts, issued_ms, received_ms, rung, bool(has_user), context, user, keys, items, columns, histories)
        )


def layout_of(schema: Schema) -> bytes:
    """8 bytes that change when an entry's records do, or what its numbers stand for."""
    item = schema.item.id_type
    groups = (schema.user, [f for f in schema.context if f.derived is None], schema.item_features)
    versions = [record_version(feature_dtype(group), group, schema.hash, item) for group in groups]
    events = {e.name: record_version(event_dtype(e), e.attributes, schema.hash, item) for e in schema.events}
    meaning = [versions, events, list(schema.request_columns), [task.name for task in schema.tasks]]
    return hashlib.sha256(json.dumps(meaning).encode()).digest()[:LAYOUT_BYTES]
