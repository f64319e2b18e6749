"""Every row that can be measured, in order. A target is never bent; what is not measured yet is said to be so."""

from __future__ import annotations

from loadtest.scoreboard.exactness import EXACTNESS
from loadtest.scoreboard.figure import Row

ROWS: tuple[Row, ...] = tuple(sorted(EXACTNESS, key=lambda row: int(row.id[1:])))
LATER = ("S1", "S2", "S3", "S4", "S5", "S6", "S7", "S9", "S10", "S11", "S15", "S16", "S17")
