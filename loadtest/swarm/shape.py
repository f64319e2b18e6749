"""Base of our shapes: one that cannot go on ends the run and says why. (Locust would keep its users for ever.)"""

from __future__ import annotations

from abc import abstractmethod

from locust import LoadTestShape

from loadtest.swarm.shapes import Level
from loadtest.swarm.users import OpenLoopUser
from loadtest.swarm.worker import Worker


class Shape(LoadTestShape):
    """Takes `-u` and the other options of a run without a shape."""

    abstract = True
    use_common_options = True

    @property
    def worker(self) -> Worker:
        """Of this process."""
        return OpenLoopUser.worker

    def tick(self) -> Level | None:
        """Users now; None at the end."""
        try:
            return self.level()
        except Exception as error:
            self.worker.fault(str(error))
            return None

    @abstractmethod
    def level(self) -> Level | None:
        """The same; may raise."""
