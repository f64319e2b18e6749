"""Every row that can be measured, in order. A target is never bent; what is not measured yet is said to be so."""

from __future__ import annotations

from loadtest.scoreboard.balancer_rows import BALANCER
from loadtest.scoreboard.engine_rows import ENGINE
from loadtest.scoreboard.exactness import EXACTNESS
from loadtest.scoreboard.figure import Row
from loadtest.scoreboard.host_rows import HOST
from loadtest.scoreboard.load_rows import LOAD
from loadtest.scoreboard.scheduling_rows import SCHEDULING
from loadtest.scoreboard.store_rows import STORE

ROWS: tuple[Row, ...] = tuple(
    sorted((*EXACTNESS, *LOAD, *HOST, *ENGINE, *SCHEDULING, *STORE, *BALANCER), key=lambda row: int(row.id[1:]))
)
LATER = ("S3",)
