"""What the store counts about itself, on /metrics: read at scrape time, nothing on the hot path.

Both counters exist at 0 from the start. A failure is an operation of any kind that the store did not
answer (`kunlun_store_reads_total` has the reads of Ranks only); a corrupt value counted as missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector


class Counts(Protocol):
    """What is read of the store's own counters (`serving.store.redis_store.StoreStats`)."""

    @property
    def corrupt_values(self) -> int: ...

    @property
    def failures(self) -> int: ...


class StoreStatsCollector(Collector):
    """Collects from the counters of one store."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not scrape."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Two counters."""
        text = "Values of the wrong type or width, taken as missing."
        yield CounterMetricFamily("kunlun_store_corrupt_values", text, value=self._counts.corrupt_values)
        text = "Store operations without an answer, of any kind."
        yield CounterMetricFamily("kunlun_store_failures", text, value=self._counts.failures)
