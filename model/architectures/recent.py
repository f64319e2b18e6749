"""What architectures share whose user state keeps histories themselves: how many of the newest events. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from model.config import StrictModel


class RecentEvents(StrictModel):
    """`recent_events`: newest events kept of each type; all up to the schema's cap unless given."""

    recent_events: Annotated[int, Field(ge=1)] | None = None

    def counts(self, caps: Mapping[str, int]) -> dict[str, int]:
        """Rows that the state keeps, by event type."""
        return {event: cap if self.recent_events is None else min(cap, self.recent_events) for event, cap in caps.items()}

    def steps(self, caps: Mapping[str, int], lengths: Mapping[str, int], executed: bool) -> dict[str, int]:
        """Events that are read by type: of histories of `lengths`, or padded as engines run them."""
        counts = self.counts(caps)
        return counts if executed else {event: min(count, lengths[event]) for event, count in counts.items()}
