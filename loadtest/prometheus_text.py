"""Reads single values from a server's /metrics page."""

from __future__ import annotations

import urllib.request
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

REPORTED = {"slice": "*", "maturity": "provisional"}
"""Labels of online sums over everything that has been reported."""


@dataclass(frozen=True)
class Sample:
    """One series."""

    name: str
    labels: dict[str, str]
    value: float


def scrape(url: str) -> list[Sample]:
    """All samples of the page at `url`."""
    with urllib.request.urlopen(url, timeout=10) as reply:
        text = reply.read().decode()
    return [
        Sample(s.name, dict(s.labels), float(s.value))
        for family in text_string_to_metric_families(text)
        for s in family.samples
    ]


def total(samples: list[Sample], name: str, **labels: str) -> float:
    """Sum of the series called `name` that carry `labels`."""
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())
