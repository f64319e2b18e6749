"""Online NE and its kin on /metrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
from feedback_fixtures import offline_sums
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sklearn.metrics import roc_auc_score

from model.artifact import ScoreReference
from model.metrics.paired_ne import PairedNE
from model.metrics.score_histogram import score_histogram
from serving.feedback.figures import Figures, Maturity, with_all_slices
from serving.feedback.receipt import ServedList
from serving.feedback.sums import Kind, SumKey, Sums, ne_state, of_paired_ne
from serving.metrics.online_ne import OnlineNECollector

TASKS = ("click", "like")


def samples_of(figures: Figures, references: dict[str, ScoreReference] | None = None) -> dict[tuple[str, ...], float]:
    registry = CollectorRegistry()
    registry.register(OnlineNECollector(lambda: figures, TASKS, "7", references or {}))
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}


def name(metric: str, *labels: str) -> tuple[str, ...]:
    return (metric, *sorted(labels))


def test_sums_and_gauges_are_those_of_the_figures(rng: np.random.Generator) -> None:
    lists = []
    for n in range(30):
        p = rng.uniform(0.02, 0.9, (6, 2)).astype(np.float32)
        served = ServedList(f"r{n}", 1000, "7", "home" if n % 3 else "cart", 1, np.arange(6), p, TASKS)
        shown = sorted(rng.choice(6, 4, replace=False).tolist())
        lists.append((served, shown, [(at, task) for at in shown for task in (0, 1) if rng.random() < p[at, task]]))
    sums = with_all_slices(offline_sums(lists))
    figures = Figures({Maturity.PROVISIONAL: sums, Maturity.MATURED: {}}, {Maturity.PROVISIONAL: sums, Maturity.MATURED: {}})
    samples = samples_of(figures)
    assert {key.detail for key in sums} == {"home", "cart", "*"}
    for key, vector in sums.items():
        state, labels = ne_state(vector), (*key[1:], "provisional")
        for field, value in vars(state).items():
            assert samples[name(f"kunlun_online_{field}_total", *labels)] == pytest.approx(value, abs=1e-9)
        assert samples[name("kunlun_online_ne", *labels)] == pytest.approx(state.normalized_entropy)
        assert samples[name("kunlun_online_calibration", *labels)] == pytest.approx(state.calibration)
    assert samples[name("kunlun_online_examples_total", "click", "7", "*", "matured")] == 0, "exists before traffic"
    assert math.isnan(samples[name("kunlun_online_ne", "click", "7", "*", "matured")])


def test_nothing_is_exported_before_anything_is_known() -> None:
    registry = CollectorRegistry()
    registry.register(OnlineNECollector(lambda: None, TASKS, "7", {}))
    assert generate_latest(registry) == b""


def test_auc_and_drift_against_training(rng: np.random.Generator) -> None:
    p = 1 / (1 + np.exp(-rng.normal(-3, 1, 20_000)))
    y = rng.random(len(p)) < p
    scores = np.concatenate([score_histogram(p), score_histogram(p[y])]).astype(np.float64)
    state = np.array([len(p), p.sum(), 0, y.sum(), 0, 0, 0], np.float64)
    window: Sums = {SumKey(Kind.SCORES, "click", "7"): scores, SumKey(Kind.NE, "click", "7", "*"): state}
    figures = Figures(windows={Maturity.PROVISIONAL: window, Maturity.MATURED: window})
    shifted = score_histogram(1 / (1 + np.exp(-rng.normal(-4, 1, 20_000))))
    same = ScoreReference(histogram=tuple(score_histogram(p).tolist()), base_rate=y.mean())
    other = ScoreReference(histogram=tuple(shifted.tolist()), base_rate=2 * y.mean())
    samples = samples_of(figures, {"click": same, "like": same})
    assert samples[name("kunlun_online_auc", "click", "7", "provisional")] == pytest.approx(roc_auc_score(y, p), abs=1e-3)
    assert samples[name("kunlun_score_psi", "click", "7")] == pytest.approx(0, abs=1e-9)
    assert samples[name("kunlun_label_rate_psi", "click", "7")] == pytest.approx(0, abs=1e-9)
    assert math.isnan(samples[name("kunlun_score_psi", "like", "7")]), "nothing was served yet"
    drifted = samples_of(figures, {"click": other})
    assert drifted[name("kunlun_score_psi", "click", "7")] > 0.25
    assert drifted[name("kunlun_label_rate_psi", "click", "7")] > 0.01


def test_a_canary_that_is_worse_is_called_so(rng: np.random.Generator) -> None:
    lists = np.repeat(np.arange(2000), 10)
    p = rng.beta(1, 9, len(lists))
    y = rng.random(len(lists)) < p
    worse = np.clip(p * np.exp(rng.normal(0, 0.5, len(p))), 1e-4, 0.99)

    def verdict(canary: np.ndarray, count: int) -> dict[tuple[str, ...], float]:
        kept = lists < count
        paired = PairedNE.of(p[kept], canary[kept], y[kept], lists[kept])
        sums: Sums = {SumKey(Kind.CANARY, "click", "7", "8"): of_paired_ne(paired)}
        return samples_of(Figures({Maturity.PROVISIONAL: {}, Maturity.MATURED: sums}))

    found = verdict(worse, 2000)
    assert found[name("kunlun_canary_verdict", "click", "7", "8")] == 1
    assert found[name("kunlun_canary_ne_difference_low", "click", "7", "8")] > 0
    assert found[name("kunlun_canary_lists", "click", "7", "8")] == 2000
    assert verdict(worse, 50)[name("kunlun_canary_verdict", "click", "7", "8")] == 0, "too few to say"
    assert verdict(p, 2000)[name("kunlun_canary_verdict", "click", "7", "8")] == 0
