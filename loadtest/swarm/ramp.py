"""Shape: from `--users` to `--peak-users` and back in `--shape-seconds`; `-f loadtest/locustfile.py,loadtest/swarm/ramp.py`."""

from __future__ import annotations

from typing import Any

from locust import LoadTestShape

from loadtest.swarm.shapes import Level, ramp_level


class Ramp(LoadTestShape):
    """See `ramp_level`."""

    use_common_options = True

    def tick(self) -> Level | None:
        """Users now; None at the end."""
        assert self.runner is not None
        options: Any = self.runner.environment.parsed_options
        return ramp_level(self.get_run_time(), options.shape_seconds, options.num_users or 1, options.peak_users)
