"""Errors the core and the protocol adapters raise; one table in `serving.protocol.errors` maps each to a gRPC code."""

from __future__ import annotations


class ServingError(Exception):
    """Base of every error a caller may see."""


class InvalidField(ServingError):
    """A field of a request that cannot be used: names the field, what was expected, what was found."""

    def __init__(self, field: str, expected: str, found: str) -> None:
        super().__init__(f"{field}: expected {expected}, found {found}")
        self.field, self.expected, self.found = field, expected, found


class NotFound(InvalidField):
    """An unknown model or version: names the field, what is served, what was asked for."""


class Overloaded(ServingError):
    """Refused early; `retry_after_s` is the predicted time until the queue has drained."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExpired(ServingError):
    """The request's budget is spent, or cannot suffice; nothing was computed for it."""


class StoreUnavailable(ServingError):
    """The store did not acknowledge in time; the call may be repeated safely."""


class ReceiptRejected(InvalidField):
    """A receipt that cannot be trusted; `reason` (forged, truncated, expired, unknown_key, format) is a metric label."""

    def __init__(self, field: str, expected: str, found: str, reason: str) -> None:
        super().__init__(field, expected, found)
        self.reason = reason


class Unready(ServingError):
    """The server is starting or stopping."""
