"""User class: Ranks and nothing else, for users and items by number, as the open-loop harness sends them.

`-f loadtest/locustfile.py,loadtest/swarm/rank_only.py RankOnly`.
"""

from __future__ import annotations

from loadtest.openloop.generator import Names
from loadtest.swarm.arrivals import Arrival
from loadtest.swarm.users import OpenLoopUser


class RankOnly(OpenLoopUser):
    """Needs no world."""

    names = Names()

    def visit(self, arrival: Arrival, due: float) -> None:
        """One Rank."""
        items = [self.names.item.format(i) for i in arrival.items.tolist()]
        self.rank(due, self.names.user.format(arrival.user), items, self.names.context)
