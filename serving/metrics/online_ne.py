"""Online NE on /metrics: reads the aggregated sums at scrape time, so a scrape is always exact.

The sums are counters per task, version and slice, from which PromQL can form NE over any window and
any union of slices. The gauges are over everything the stream holds; slice ``*`` is all slices of a
version together. Series of the served version exist at 0 before the first outcome.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from model.metrics.normalized_entropy import NEState
from serving.feedback.consumer import OutcomeConsumer
from serving.feedback.online_ne import ALL_SLICES, NEKey, OnlineNE

_LABELS = ("task", "version", "slice")
_SUMS = {
    "examples": "Impressions shown.",
    "predictions": "Sum of served predictions over impressions.",
    "negative_loss": "Sum of -ln(1-p) over impressions.",
    "positives": "Impressions that turned positive.",
    "correction_up": "Sum of max(0, ln((1-p)/p)) over positives.",
    "correction_down": "Sum of max(0, -ln((1-p)/p)) over positives.",
}


class OnlineNECollector(Collector):
    """Collects from one aggregator and its consumer."""

    def __init__(self, online_ne: OnlineNE, consumer: OutcomeConsumer, tasks: Sequence[str], version: str) -> None:
        self._online_ne, self._consumer = online_ne, consumer
        self._zeros = {NEKey(task, version, ""): NEState() for task in tasks}

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not scrape."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """All families, from one copy of the sums."""
        states = self._zeros | self._online_ne.states()
        for name, help_text in _SUMS.items():
            family = CounterMetricFamily(f"kunlun_online_{name}", help_text, labels=_LABELS)
            for key, state in states.items():
                family.add_metric(key, getattr(state, name))
            yield family
        yield from _gauges(states)
        yield from self._stream()

    def _stream(self) -> Iterable[Metric]:
        aggregator, consumer = self._online_ne, self._consumer
        for name, help_text, value in (
            ("applied", "Outcomes read from the stream.", consumer.applied),
            ("unreadable", "Stream entries that are no outcome.", consumer.unreadable),
            ("repeated", "Outcomes that held nothing new.", aggregator.repeated),
            ("expired", "Outcomes reported after the attribution window.", aggregator.expired),
        ):
            yield CounterMetricFamily(f"kunlun_online_outcomes_{name}", help_text, value=value)
        yield GaugeMetricFamily(
            "kunlun_online_receipts", "Receipts whose outcomes are remembered.", value=aggregator.receipts_tracked
        )


def _gauges(states: dict[NEKey, NEState]) -> Iterable[Metric]:
    """NE, calibration and base rate per slice and over all slices; NaN while undefined."""
    merged: dict[NEKey, NEState] = {}
    for key, state in states.items():
        total = key._replace(slice_value=ALL_SLICES)
        merged[total] = merged.get(total, NEState()) + state
        if key.slice_value:
            merged[key] = state
    for name, help_text, field in (
        (
            "kunlun_online_ne",
            "Normalized Entropy of served predictions.",
            "normalized_entropy",
        ),
        ("kunlun_online_calibration", "Sum of predictions over sum of labels.", "calibration"),
        ("kunlun_online_base_rate", "Positives over impressions.", "base_rate"),
    ):
        family = GaugeMetricFamily(name, f"{help_text} Provisional; slice '*' is all slices.", labels=_LABELS)
        for key, state in merged.items():
            family.add_metric(key, getattr(state, field))
        yield family
