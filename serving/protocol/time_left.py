"""The time that a call has left, as every gRPC front end tells it."""

from __future__ import annotations

from typing import Any

NEVER_S = 1e9
"""Longer than any deadline: some front ends say so, instead of None, of a call without one."""


def time_left_s(context: Any) -> float | None:
    """Seconds until the caller's deadline; None without one."""
    left = context.time_remaining()
    return None if left is None or left > NEVER_S else float(left)
