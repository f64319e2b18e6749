"""Batch plans: every request once, seeded, in windows; by work with little padding; made ahead in order."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.data.request_log import RequestLog
from model.data.split import split_requests
from model.features import FeatureEncoder
from model.flops import flop_model
from model.training import plan as plan_module
from model.training.batches import BatchMaker
from model.training.config import AugmentConfig, OptimizerConfig, TrainConfig
from model.training.fit_features import fit_features
from model.training.plan import BatchPlan, evaluations
from model.training.prefetch import prefetched
from model.training.throughput import BatchFlops, Work
from tests.model.training.conftest import Losses

BALANCED = TrainConfig(
    model="tiny", epochs=2, batch_work=1500, sort_batches=4, threads=1, optimizer=OptimizerConfig(dense_lr=3e-3, warmup_steps=2)
)


def test_a_log_within_one_window_is_shuffled_as_a_whole() -> None:
    requests = np.arange(100, 150)
    plan = BatchPlan(requests, TrainConfig(batch_requests=20, seed=3))
    batches = list(plan.epoch(2))
    assert [len(b) for b in batches] == [20, 20, 10]
    assert len(batches) == plan.batches
    assert np.concatenate(batches).tolist() == np.random.default_rng([3, 2]).permutation(requests).tolist()
    assert [b.tolist() for b in plan.epoch(2)] == [b.tolist() for b in batches]
    assert [b.tolist() for b in plan.epoch(1)] != [b.tolist() for b in batches]


def test_a_larger_log_is_read_window_by_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "BLOCK_REQUESTS", 8)
    plan = BatchPlan(np.arange(200), TrainConfig(batch_requests=4, shuffle_requests=32))
    order = np.concatenate(list(plan.epoch(0)))
    assert sorted(order.tolist()) == list(range(200))
    for start in range(0, 200, 32):
        assert len(set((order[start : start + 32] // 8).tolist())) <= 5  # whole blocks, four of them and the short last one
    assert len(set((order[:32] // 8).tolist())) == 4
    assert order[:32].tolist() != sorted(order[:32].tolist())


@given(
    events=st.lists(st.integers(0, 60), min_size=1, max_size=80),
    work=st.integers(1, 400),
    sort_batches=st.integers(1, 5),
    window=st.integers(1, 100),
)
def test_batches_by_work_hold_every_request_once_and_none_is_empty(
    events: list[int], work: int, sort_batches: int, window: int
) -> None:
    lengths, shown = np.array(events), np.full(len(events), 3)
    config = TrainConfig(batch_work=work, sort_batches=sort_batches, shuffle_requests=window)
    plan = BatchPlan(np.arange(len(events)), config, lengths, shown)
    for epoch in range(2):
        batches = list(plan.epoch(epoch))
        assert len(batches) == plan.batches
        assert all(map(len, batches))
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(events)))
        if work >= 63:
            assert max((lengths[b] + 3).sum() for b in batches) <= work + 63 + len(events)


@given(batches=st.integers(1, 400), wanted=st.integers(1, 60), epoch=st.integers(0, 5))
def test_an_epoch_has_as_many_evaluations_as_asked_for(batches: int, wanted: int, epoch: int) -> None:
    found = sorted(evaluations(batches, wanted, epoch))
    assert len(found) == min(wanted, batches)
    assert found[0] >= 1
    assert found[-1] == batches
    assert max(np.diff([0, *found]), default=0) <= 3 * max(1, batches // wanted)


def test_examples_of_batches_by_work_weigh_the_same(losses: Losses, log: RequestLog, tmp_path: Path) -> None:
    still = {
        "optimizer": OptimizerConfig(dense_lr=1e-12, sparse_lr=1e-12),
        "augment": AugmentConfig(empty_history=0, truncated_history=0, id_dropout=0, unknown_position=0),
        "epochs": 1,
    }
    (whole,) = losses(tmp_path / "whole", BALANCED.model_copy(update=still | {"batch_work": 10**9}))
    parts = losses(tmp_path / "parts", BALANCED.model_copy(update=still))
    assert len(parts) > 5
    assert np.mean(parts) == pytest.approx(whole, rel=1e-5)


def test_sorting_by_length_takes_the_padding_away() -> None:
    lengths = np.random.default_rng(0).integers(0, 200, 4_000)
    shown = np.full(4_000, 10)

    def padding(config: TrainConfig) -> float:
        batches = list(BatchPlan(np.arange(4_000), config, lengths, shown).epoch(0))
        return float(1 - lengths.sum() / sum(len(b) * lengths[b].max() for b in batches))

    assert padding(TrainConfig(batch_requests=40)) > 0.4
    assert padding(TrainConfig(batch_work=40 * 110)) < 0.1


def test_history_lengths_are_those_of_the_histories(log: RequestLog) -> None:
    requests = np.arange(0, len(log), 7)
    found = log.history_lengths(requests)
    assert found.tolist() == [[len(h) for h in log.histories(int(r)).values()] for r in requests]
    assert found.max() > 0


def test_a_balanced_run_resumes_exactly_whatever_is_prefetched(losses: Losses, tmp_path: Path) -> None:
    whole = losses(tmp_path / "whole", BALANCED)
    assert losses(tmp_path / "cut", BALANCED, stop_after=7) + losses(tmp_path / "cut", BALANCED) == whole
    assert losses(tmp_path / "none", BALANCED.model_copy(update={"prefetch": 0})) == whole
    assert losses(tmp_path / "five", BALANCED.model_copy(update={"prefetch": 5})) == whole


def test_work_of_a_batch_follows_the_formulas(log: RequestLog) -> None:
    split = split_requests(log, "time")
    maker = BatchMaker(log, FeatureEncoder(log.schema, fit_features(log, split.train)))
    config = TrainConfig(model="tiny")
    flops = flop_model(log.schema, config.model)
    requests = split.test[:5]
    work = BatchFlops(flops).work(maker.batch(requests))
    lengths = [{e.name: len(log.histories(int(r))[e.name]) for e in log.schema.events} for r in requests]
    shown = int(np.diff(log.offsets)[requests].sum())
    assert work.useful_flops == pytest.approx(3 * (sum(flops.encode(n).total for n in lengths) + flops.score(5, shown).total))
    longest = {e.name: max(1, *(n[e.name] for n in lengths)) for e in log.schema.events}
    padded = 5 * flops.encode(longest, executed=True).total + flops.score(5, shown, executed=True).total
    assert work.padded_flops == pytest.approx(3 * padded)
    assert work.padding == pytest.approx(1 - sum(map(sum, map(dict.values, lengths))) / (5 * sum(longest.values())))


def test_remembered_terms_do_not_grow_with_the_log(log: RequestLog, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = BatchMaker(log, FeatureEncoder(log.schema, fit_features(log, np.arange(100))))
    bounded, fresh = (BatchFlops(flop_model(log.schema, TrainConfig(model="tiny").model)) for _ in range(2))
    for start in range(0, 100, 20):
        batch = maker.batch(np.arange(start, start + 20))
        monkeypatch.setattr("model.training.throughput.KEPT_TERMS", 3)
        found = bounded.work(batch)
        monkeypatch.setattr("model.training.throughput.KEPT_TERMS", 1 << 16)
        assert found == fresh.work(batch)
    assert len(bounded._encode) <= 3 < len(fresh._encode)
    assert len(bounded._score) <= 3


def test_mfu_is_work_by_time_and_peak() -> None:
    two = Work(2, 10, 3e9, 4e9, 5, 10, 0.5) + Work(2, 10, 3e9, 4e9, 5, 10, 0.5)
    assert two.figures(100e9) == {
        "examples_per_s": 20.0, "requests_per_s": 4.0, "mfu": 0.06, "mfu_padded": 0.08, "padding": 0.5,
    }  # fmt: skip
    assert two.figures(None)["mfu"] is None


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_prefetching_keeps_the_order_and_the_place_of_an_error(depth: int) -> None:
    def make(job: int) -> int:
        if job == 4:
            raise ValueError("the fifth")
        return job * 10

    made = prefetched(range(9), make, depth)
    assert [next(made) for _ in range(4)] == [0, 10, 20, 30]
    with pytest.raises(ValueError, match="the fifth"):
        next(made)


def test_prefetching_stays_within_its_depth_and_ends_with_its_reader() -> None:
    made, threads = [], threading.active_count()
    ahead = prefetched(range(100), made.append, 2)
    next(ahead)
    ahead.close()
    assert len(made) <= 4
    assert threading.active_count() == threads
