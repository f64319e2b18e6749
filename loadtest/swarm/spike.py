"""Shape: `--users`, but `--peak-users` in the middle third; `-f loadtest/locustfile.py,loadtest/swarm/spike.py`."""

from __future__ import annotations

from typing import Any

from locust import LoadTestShape

from loadtest.swarm.shapes import Level, spike_level


class Spike(LoadTestShape):
    """See `spike_level`."""

    use_common_options = True

    def tick(self) -> Level | None:
        """Users now; None at the end."""
        assert self.runner is not None
        options: Any = self.runner.environment.parsed_options
        return spike_level(self.get_run_time(), options.shape_seconds, options.num_users or 1, options.peak_users)
