"""Errors of the client, parsed from what the server put into the call's trailers.

The server sends `google.rpc.Status` details (`BadRequest`, `RetryInfo`). Those message types are not
part of protobuf's runtime, so the few fields that matter are read here straight from the wire format.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

DETAILS_TRAILER = "grpc-status-details-bin"
_BAD_REQUEST, _RETRY_INFO = "google.rpc.BadRequest", "google.rpc.RetryInfo"
_STATUS_DETAILS, _VIOLATIONS, _RETRY_DELAY = 3, 1, 1


@dataclass(frozen=True)
class FieldViolation:
    """One refused field: its path, and what was expected and found."""

    field: str
    description: str


class KunlunError(Exception):
    """A call that failed for good. `code` is the gRPC code's name; `retry_after_s` is the server's advice, if any."""

    def __init__(
        self,
        code: str,
        message: str,
        violations: tuple[FieldViolation, ...] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.violations, self.retry_after_s = code, message, violations, retry_after_s

    @classmethod
    def of(cls, error: grpc.RpcError) -> KunlunError:
        """The error of a failed call."""
        trailers: dict[str, Any] = {item.key: item.value for item in error.trailing_metadata() or ()}
        return cls.read(error.code().name, error.details() or "", trailers.get(DETAILS_TRAILER, b""))

    @classmethod
    def read(cls, code: str, message: str, status: bytes) -> KunlunError:
        """From a code and a serialized `google.rpc.Status`; unreadable details are left out."""
        violations: tuple[FieldViolation, ...] = ()
        retry_after_s = None
        try:
            for detail in _details(status):
                if detail.TypeName() == _BAD_REQUEST:
                    violations += tuple(_violation(data) for data in _submessages(detail.value, _VIOLATIONS))
                elif detail.TypeName() == _RETRY_INFO:
                    for data in _submessages(detail.value, _RETRY_DELAY):
                        retry_after_s = Duration.FromString(data).ToNanoseconds() / 1e9
        except DecodeError:
            pass
        return cls(code, message, violations, retry_after_s)


def _details(status: bytes) -> Iterable[AnyMessage]:
    """The details of a serialised `google.rpc.Status`."""
    return [AnyMessage.FromString(data) for data in _submessages(status, _STATUS_DETAILS)]


def _violation(data: bytes) -> FieldViolation:
    texts = {number: value.decode(errors="replace") for number, value in wire_fields(data) if isinstance(value, bytes)}
    return FieldViolation(texts.get(1, ""), texts.get(2, ""))


def _submessages(data: bytes, number: int) -> list[bytes]:
    return [value for found, value in wire_fields(data) if found == number and isinstance(value, bytes)]


def wire_fields(data: bytes) -> list[tuple[int, Any]]:
    """(field number, value) of every field of a serialised message of unknown type; raises `DecodeError`."""
    return [(field.field_number, field.data) for field in UnknownFieldSet(Empty.FromString(data))]  # type: ignore[attr-defined]
