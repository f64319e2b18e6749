"""Rows an adapter did not take, counted by reason, with the first few places of each kept for the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

EXAMPLES = 3


@dataclass
class Tally:
    """Counts by reason; `where` is a line number or an id that helps to find the row."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        """One more row for `reason`."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        kept = self.examples.setdefault(reason, [])
        if len(kept) < EXAMPLES:
            kept.append(where)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def to_json(self) -> dict[str, Any]:
        """``{reason: {"rows": n, "first": [...]}}``, most frequent first."""
        ordered = sorted(self.counts, key=lambda r: (-self.counts[r], r))
        return {reason: {"rows": self.counts[reason], "first": self.examples[reason]} for reason in ordered}

    def lines(self) -> list[str]:
        """One line per reason for people."""
        return [f"{v['rows']:,} × {reason} (first: {', '.join(v['first'])})" for reason, v in self.to_json().items()]
