"""Limits on what a caller may send, beside those the schema declares; checked before anything is allocated."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from serving.core.errors import InvalidField

MAX_REQUEST_ID = 64
MAX_USER_ID = 256
MAX_EVENT_ID = 128
MAX_ITEM_KEY = 512
MAX_EVENTS = 1000
MAX_OUTCOMES = 1000
MAX_RECORDS = 2000
MAX_TOKEN = 65_536
MAX_AHEAD_MS = 3_600_000
"""How far a caller's clock may run ahead of ours."""


def check_text(field: str, text: str, longest: int) -> None:
    """Raise `InvalidField` unless `text` has 1 to `longest` characters."""
    if not 0 < len(text) <= longest:
        raise InvalidField(field, f"1 to {longest} characters", f"{len(text)}")


def check_time(field: str, time_ms: int, now_ms: int) -> int:
    """A time in milliseconds since the epoch, `now_ms` for 0; raises `InvalidField`."""
    if time_ms < 0:
        raise InvalidField(field, "milliseconds since the epoch, or 0 for now", str(time_ms))
    if time_ms > now_ms + MAX_AHEAD_MS:
        raise InvalidField(
            field,
            f"at most {MAX_AHEAD_MS // 60_000} minutes in the future (milliseconds since the epoch)",
            f"{time_ms}, which is {(time_ms - now_ms) // 1000} s ahead of the server's clock",
        )
    return time_ms or now_ms


def unknown(field: str, what: str, name: str, known: Iterable[str]) -> InvalidField:
    """The error for a name that is not declared, with the nearest one that is."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        hint = f" (did you mean {near[0]!r}?)"
    else:
        hint = f" (one of: {', '.join(names)})" if names else " (the schema declares none)"
    return InvalidField(field, f"{what}{hint}", repr(name))
