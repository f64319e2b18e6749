"""The priority of a Rank request whose message has not been parsed: what early refusal needs to know of it.

Walks the top-level fields of the wire format and skips their contents: a few microseconds, and only
under overload. Bytes that do not parse have normal priority; parsing will say what is wrong with them.
"""

from __future__ import annotations

from kunlun.v1 import ranker_pb2
from serving.core.types import Priority

_FIELD = ranker_pb2.RankRequest.DESCRIPTOR.fields_by_name["priority"].number
_FIXED_BYTES = {1: 8, 5: 4}
_VARINT, _LENGTH = 0, 2


def asks_high_priority(data: bytes) -> bool:
    """True when the serialized `RankRequest` says PRIORITY_HIGH (the last mention counts, as in protobuf)."""
    at, found = 0, 0
    try:
        while at < len(data):
            tag, at = _varint(data, at)
            number, kind = tag >> 3, tag & 7
            if kind in _FIXED_BYTES:
                at += _FIXED_BYTES[kind]
                continue
            if kind not in (_VARINT, _LENGTH):
                return False
            value, at = _varint(data, at)
            if kind == _LENGTH:
                at += value
            elif number == _FIELD:
                found = value
    except IndexError:
        return False
    return found == Priority.HIGH


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins at `at`, and where it ends; raises `IndexError` beyond the end."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
