"""What /metrics says: windows, stages and online NE, read back through the exposition format."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest
from protocol_server import shop_schema

from serving.core.errors import ReceiptRejected, StoreUnavailable
from serving.core.types import RankResult, Rung, StageTimes
from serving.metrics.engine_window import WINDOW_S, EngineWindow
from serving.metrics.serving_metrics import STAGE_BUCKETS, UNHEALTHY_S, ServingMetrics
from serving.metrics.store_stats import StoreStatsCollector
from serving.store.redis_store import RedisStore


class Clock:
    """Time that moves when told."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_mfu_is_useful_work_over_what_the_device_could_do() -> None:
    clock = Clock()
    window = EngineWindow(clock)
    window.peak_flops, window.slots = 100.0, 2
    assert (window.mfu_busy(), window.mfu_wall(), window.padding_waste()) == (0, 0, 0)
    for _ in range(10):
        clock.now_s += 1
        window.add(useful_flops=30, executed_flops=40, busy_s=0.5)
    assert window.mfu_busy() == pytest.approx(300 / (5 * 100))
    assert window.mfu_wall() == pytest.approx(300 / (10 * 2 * 100))
    assert window.padding_waste() == pytest.approx(0.25)
    clock.now_s += WINDOW_S
    assert (window.mfu_busy(), window.mfu_wall(), window.padding_waste()) == (0, 0, 0), "old work is forgotten"


def test_buckets_are_log_spaced_around_the_slo() -> None:
    assert STAGE_BUCKETS[0] == 0.0005
    assert STAGE_BUCKETS[-1] == pytest.approx(4.096)
    np.testing.assert_allclose(np.diff(np.log(STAGE_BUCKETS)), math.log(2) / 2)


def test_a_rank_is_counted_by_stage_and_rung() -> None:
    metrics = ServingMetrics()
    result = RankResult(
        *("shop", "7", np.arange(3), np.ones((3, 1), np.float32), np.ones(3), Rung.SHORT_HISTORY, "store away", -1, 0, False),
        *(2, True, StageTimes(0.1, 0.2, 0.3, 0.4)),
    )
    metrics.ranked(result, 1.5)
    value = metrics.registry.get_sample_value
    sums = {s: value("kunlun_rank_stage_seconds_sum", {"stage": s}) for s in ("total", "store", "queue", "encode", "score")}
    assert sums == {"total": 1.5, "store": 0.1, "queue": 0.2, "encode": 0.3, "score": 0.4}
    assert value("kunlun_rank_rungs_total", {"rung": "short_history"}) == 1
    assert value("kunlun_rank_rungs_total", {"rung": "full"}) == 0
    assert value("kunlun_rank_unknown_items_total") == 2
    assert value("kunlun_rank_unknown_users_total") == 1


def test_insane_scores_make_the_version_unhealthy_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("serving.metrics.serving_metrics.time.monotonic", clock)
    metrics = ServingMetrics()
    value = metrics.registry.get_sample_value
    assert value("kunlun_model_healthy") == 1
    metrics.insane_scores()
    clock.now_s += UNHEALTHY_S - 1
    assert value("kunlun_model_healthy") == 0
    clock.now_s += 1
    assert value("kunlun_model_healthy") == 1
    assert value("kunlun_rank_insane_scores_total") == 1


def test_the_stores_own_counters_are_read_at_every_scrape() -> None:
    metrics, store = ServingMetrics(), RedisStore("redis://127.0.0.1:1", shop_schema())
    metrics.add_collector(StoreStatsCollector(store.stats))
    names = ("kunlun_store_corrupt_values_total", "kunlun_store_failures_total")
    assert [metrics.registry.get_sample_value(name) for name in names] == [0, 0]
    with pytest.raises(StoreUnavailable):
        asyncio.run(store.read_rank_inputs("ann", np.empty(0, np.int64), 1.0))
    store.stats.corrupt_values += 3
    assert [metrics.registry.get_sample_value(name) for name in names] == [3, 1]


def test_rejected_receipts_are_counted_by_reason() -> None:
    metrics = ServingMetrics()
    metrics.rejected(ReceiptRejected("receipt", "an unchanged receipt", "another", "forged"))
    assert metrics.registry.get_sample_value("kunlun_receipts_rejected_total", {"reason": "forged"}) == 1
    assert metrics.registry.get_sample_value("kunlun_receipts_rejected_total", {"reason": "expired"}) == 0
