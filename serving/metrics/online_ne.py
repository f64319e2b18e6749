"""Online NE and its kin on /metrics. Every replica exports the same figures of the whole fleet, read from the store.

Sums are counters per task, version, slice and maturity, from which PromQL forms NE over any window (``deploy/prometheus``
has the rules; take the maximum over replicas, not the sum). Gauges are over the window of `serving.feedback.figures`.
Slice ``*`` is all slices of a version together. Series of the served version exist at 0 before the first outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from model.artifact import ScoreReference
from model.metrics.paired_ne import Verdict
from model.metrics.score_histogram import BINS, histogram_auc, population_stability_index, rate_stability_index
from serving.feedback.figures import Figures, Maturity
from serving.feedback.ledger import ALL_SLICES
from serving.feedback.sums import COUNTS, WIDTHS, Kind, SumKey, Sums, Vector, late_positives, ne_state, paired_ne

_LABELS = ("task", "version", "slice", "maturity")
_SUMS = {
    "examples": "Impressions shown.",
    "predictions": "Sum of served predictions over impressions.",
    "negative_loss": "Sum of -ln(1-p) over impressions.",
    "positives": "Impressions that turned positive.",
    "correction_up": "Sum of max(0, ln((1-p)/p)) over positives.",
    "correction_down": "Sum of max(0, -ln((1-p)/p)) over positives.",
}
_GAUGES = {
    "ne": ("Normalized Entropy of served predictions", "normalized_entropy"),
    "calibration": ("Sum of predictions over sum of labels", "calibration"),
    "base_rate": ("Positives over impressions", "base_rate"),
}
_COUNTS = {
    "outcomes": "Outcomes read from the stream.",
    "repeated": "Outcomes that held nothing new.",
    "expired": "Outcomes after the attribution window.",
    "unreadable": "Entries of the stream that are no outcome of these tasks.",
    "lists": "Served lists of which an impression was reported.",
    "labels": "Distinct labels reported.",
    "joined_labels": "Labels whose impression was reported, too.",
}
assert tuple(_COUNTS) == COUNTS


class OnlineNECollector(Collector):
    """Collects what `figures` returns (None: nothing is known yet). `references`: by task, of the served version."""

    def __init__(
        self,
        figures: Callable[[], Figures | None],
        tasks: Sequence[str],
        version: str,
        references: Mapping[str, ScoreReference],
    ) -> None:
        self._figures, self._version, self._references = figures, version, references
        self._zeros = {SumKey(Kind.NE, task, version, ALL_SLICES): np.zeros(WIDTHS[Kind.NE]) for task in tasks}

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not scrape."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """All families, from one reading of the figures."""
        figures = self._figures()
        if figures is None:
            return
        totals = {maturity: self._zeros | sums for maturity, sums in figures.totals.items()}
        windows = {maturity: self._zeros | sums for maturity, sums in figures.windows.items()}
        yield from _counters(totals)
        yield from _gauges(windows)
        yield from _auc(windows)
        yield from _canary(figures.totals)
        yield from self._drift(figures.windows)
        counts = figures.totals[Maturity.PROVISIONAL].get(SumKey(Kind.COUNTS), np.zeros(len(COUNTS)))
        for (name, text), value in zip(_COUNTS.items(), counts.tolist(), strict=True):
            yield CounterMetricFamily(f"kunlun_feedback_{name}", text, value=value)
        text = "How long the first outcome that is not counted yet has waited."
        yield GaugeMetricFamily("kunlun_feedback_lag_seconds", text, value=figures.waiting_s)

    def _drift(self, windows: Mapping[Maturity, Sums]) -> Iterable[Metric]:
        text = "Population stability index of {} against training; below 0.1 is stable, above 0.25 has shifted."
        scores = GaugeMetricFamily("kunlun_score_psi", text.format("scores"), labels=_LABELS[:2])
        rates = GaugeMetricFamily("kunlun_label_rate_psi", text.format("matured label rates"), labels=_LABELS[:2])
        for task, reference in self._references.items():
            seen = windows[Maturity.PROVISIONAL].get(SumKey(Kind.SCORES, task, self._version), np.zeros(WIDTHS[Kind.SCORES]))
            scores.add_metric((task, self._version), population_stability_index(np.array(reference.histogram), seen[:BINS]))
            matured = windows[Maturity.MATURED].get(SumKey(Kind.NE, task, self._version, ALL_SLICES))
            state = ne_state(np.zeros(WIDTHS[Kind.NE]) if matured is None else matured)
            rates.add_metric((task, self._version), rate_stability_index(reference.base_rate, state.positives, state.examples))
        yield scores
        yield rates


def _of_kind(sums: Mapping[Maturity, Sums], kind: Kind) -> Iterable[tuple[SumKey, Maturity, Vector]]:
    for maturity, own in sums.items():
        for key, vector in own.items():
            if key.kind is kind:
                yield key, maturity, vector


def _counters(totals: Mapping[Maturity, Sums]) -> Iterable[Metric]:
    for name, text in _SUMS.items():
        family = CounterMetricFamily(f"kunlun_online_{name}", text, labels=_LABELS)
        for key, maturity, vector in _of_kind(totals, Kind.NE):
            family.add_metric((*key[1:], maturity), getattr(ne_state(vector), name))
        yield family
    text = "Positives reported more than a minute after their list was served."
    family = CounterMetricFamily("kunlun_online_late_positives", text, labels=_LABELS)
    for key, maturity, vector in _of_kind(totals, Kind.NE):
        family.add_metric((*key[1:], maturity), late_positives(vector))
    yield family


def _gauges(windows: Mapping[Maturity, Sums]) -> Iterable[Metric]:
    """NaN while undefined."""
    for name, (text, field) in _GAUGES.items():
        family = GaugeMetricFamily(f"kunlun_online_{name}", f"{text}, over the window.", labels=_LABELS)
        for key, maturity, vector in _of_kind(windows, Kind.NE):
            family.add_metric((*key[1:], maturity), getattr(ne_state(vector), field))
        yield family


def _auc(windows: Mapping[Maturity, Sums]) -> Iterable[Metric]:
    text, labels = "AUC of served predictions over the window, from a histogram.", ("task", "version", "maturity")
    family = GaugeMetricFamily("kunlun_online_auc", text, labels=labels)
    for key, maturity, vector in _of_kind(windows, Kind.SCORES):
        family.add_metric((key.task, key.version, maturity), histogram_auc(vector[:BINS], vector[BINS:]))
    yield family


def _canary(totals: Mapping[Maturity, Sums]) -> Iterable[Metric]:
    """The bounds hold at all times for matured lists; labels of provisional ones are still to come."""
    labels = ("task", "version", "canary")
    texts = {
        "ne_difference": "NE of the canary minus NE of the live version on the same matured impressions.",
        "ne_difference_low": "Lower bound of the difference, valid however often one looks.",
        "ne_difference_high": "Upper bound of the difference.",
        "verdict": "1: the canary is worse, -1: better, 0: undecided.",
        "lists": "Matured lists that both versions have scored.",
    }
    families = {name: GaugeMetricFamily(f"kunlun_canary_{name}", text, labels=labels) for name, text in texts.items()}
    for key, maturity, vector in _of_kind(totals, Kind.CANARY):
        if maturity is Maturity.MATURED:
            state = paired_ne(vector)
            found = state.ne_difference()
            verdict = {Verdict.WORSE: 1, Verdict.BETTER: -1, Verdict.UNDECIDED: 0}[found.verdict]
            values = (found.value, found.low, found.high, verdict, state.lists)
            for family, value in zip(families.values(), values, strict=True):
                family.add_metric(key[1:], float(value))
    yield from families.values()
