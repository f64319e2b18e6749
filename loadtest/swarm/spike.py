"""Shape: `--users`, but `--peak-users` in the middle third; `-f loadtest/locustfile.py,loadtest/swarm/spike.py`."""

from __future__ import annotations

from loadtest.swarm.shape import Shape
from loadtest.swarm.shapes import Level, spike_level


class Spike(Shape):
    """See `spike_level`."""

    def level(self) -> Level | None:
        """Users now; None at the end."""
        options = self.worker.options
        return spike_level(self.get_run_time(), options.shape_seconds, options.num_users or 1, options.peak_users)
