"""The one table from error type to gRPC code, and the `google.rpc.Status` details that go with it.

Used by the guard around every call (`serving.protocol.guard`). A refused field travels as
`BadRequest` (field, expected, found), overload as `RetryInfo`; both sit in the standard
`grpc-status-details-bin` trailer, which every gRPC client library can read. A type that is not in
the table becomes INTERNAL without its text: nobody outside sees what a bug said.
"""

from __future__ import annotations

import functools
import math

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from model.records import FieldError
from serving.core.errors import (
    DeadlineExpired,
    InvalidField,
    NotFound,
    Overloaded,
    StoreUnavailable,
    Unready,
)

DETAILS_TRAILER = "grpc-status-details-bin"
RETRY_STORE_S = 0.2
RETRY_UNREADY_S = 0.5

CODES: dict[type[Exception], grpc.StatusCode] = {
    NotFound: grpc.StatusCode.NOT_FOUND,
    InvalidField: grpc.StatusCode.INVALID_ARGUMENT,
    FieldError: grpc.StatusCode.INVALID_ARGUMENT,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExpired: grpc.StatusCode.DEADLINE_EXCEEDED,
    StoreUnavailable: grpc.StatusCode.UNAVAILABLE,
    Unready: grpc.StatusCode.UNAVAILABLE,
}


def code_of(error: BaseException) -> grpc.StatusCode:
    """The gRPC code of an error: its nearest class in the table, INTERNAL when there is none."""
    for kind in type(error).__mro__:
        if kind in CODES:
            return CODES[kind]
    return grpc.StatusCode.INTERNAL


def message_of(error: BaseException) -> str:
    """The text a caller may see."""
    return str(error) if code_of(error) is not grpc.StatusCode.INTERNAL else "internal error; see the server's log"


def trailing_details(error: BaseException) -> tuple[tuple[str, bytes], ...]:
    """Trailing metadata that carries the error as a `google.rpc.Status`."""
    status = status_pb2.Status(code=code_of(error).value[0], message=message_of(error))
    for detail in _details(error):
        status.details.add().Pack(detail)
    return ((DETAILS_TRAILER, status.SerializeToString()),)


def overload_details(error: Overloaded) -> tuple[tuple[str, bytes], ...]:
    """`trailing_details` of an overload, made once per message and whole millisecond of advice."""
    return _overload_details(str(error), math.ceil(error.retry_after_s * 1e3))


@functools.lru_cache(maxsize=256)
def _overload_details(message: str, retry_after_ms: int) -> tuple[tuple[str, bytes], ...]:
    return trailing_details(Overloaded(message, retry_after_ms / 1e3))


def _details(error: BaseException) -> list[Message]:
    if isinstance(error, InvalidField | FieldError):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=f"expected {error.expected}, found {error.found}"
        )
        return [error_details_pb2.BadRequest(field_violations=[violation])]
    if isinstance(error, Overloaded):
        return [_retry_info(error.retry_after_s)]
    if isinstance(error, StoreUnavailable):
        return [_retry_info(RETRY_STORE_S)]
    if isinstance(error, Unready):
        return [_retry_info(RETRY_UNREADY_S)]
    return []


def _retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    delay = Duration()
    delay.FromNanoseconds(int(max(seconds, 0.0) * 1e9))
    return error_details_pb2.RetryInfo(retry_delay=delay)
