"""Shape: from `--users` to `--peak-users` and back in `--shape-seconds`; `-f loadtest/locustfile.py,loadtest/swarm/ramp.py`."""

from __future__ import annotations

from loadtest.swarm.shape import Shape
from loadtest.swarm.shapes import Level, ramp_level


class Ramp(Shape):
    """See `ramp_level`."""

    def level(self) -> Level | None:
        """Users now; None at the end."""
        options = self.worker.options
        return ramp_level(self.get_run_time(), options.shape_seconds, options.num_users or 1, options.peak_users)
