"""Our rows in Locust's statistics.

Stages of a Rank (as the server reports them) and the generator's own lateness have the type `stage` and stand outside the
totals: they show up in the web UI, the CSV files and the HTML report.
"""

from __future__ import annotations

import locust.stats
from locust.env import Environment

from loadtest.swarm.measures import three_figures

GRPC, STAGE = "grpc", "stage"
SEND_LAG = "send_lag"
"""How much later than drawn a call was sent."""


def keep_three_figures() -> None:
    """From now on, in this process. Raises `ImportError` for a Locust that rounds elsewhere."""
    if not hasattr(locust.stats, "bucket_response_time"):
        raise ImportError("locust: expected one whose statistics round by `bucket_response_time`; install locust>=2.47,<3")
    locust.stats.bucket_response_time = three_figures  # type: ignore[assignment]


def observe_stage(environment: Environment, stage: str, ms: float) -> None:
    """One stage of one Rank."""
    environment.stats.entries[(stage, STAGE)].log(ms, 0)  # type: ignore[arg-type]
