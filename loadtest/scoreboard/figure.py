"""A promise of the scoreboard and what a measurement of it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loadtest.bench import Bench

LINES = "lines"
"""Directory of the last result of every row, in the bench's working directory."""


@dataclass(frozen=True)
class Figure:
    """A row's result: the value, whether it meets the target, and what it was measured on."""

    value: Any
    ok: bool
    conditions: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One promise."""

    id: str
    measure: str
    target: str
    run: Callable[[Bench], Figure]
