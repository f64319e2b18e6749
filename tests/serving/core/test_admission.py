"""Admission by predicted time: what no queue could help expires, what the queue delays is told when to return."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from rank_fixtures import Recorder

from model.artifact import Artifact
from model.flops import FlopModel
from model.records import event_dtype, feature_dtype, missing_records
from model.signature import ENCODE_USER, SCORE_CANDIDATES
from serving.core.errors import DeadlineExpired, Overloaded
from serving.core.host_features import HostFeatures, ScoreInputs
from serving.core.options import CoreOptions
from serving.core.scheduler import Scheduler, Urgency
from serving.core.types import Priority
from serving.core.work_time import WorkTime
from serving.engines.open import open_engine

NEVER = Urgency(deadline=1e9, due=1e9)


@pytest.fixture
def scheduler(artifact: Artifact, engine_cache) -> Scheduler:
    flops = FlopModel.from_json(artifact.manifest.flops, artifact.config)
    engine = open_engine(artifact, cache=engine_cache, precision="f32", threads_per_slot=1, slots=1)
    made = Scheduler(engine, HostFeatures(artifact), flops, CoreOptions(), Recorder())
    hundred = flops.per_request + 100 * flops.per_candidate
    made.times = WorkTime((ENCODE_USER, SCORE_CANDIDATES), peak_flops=hundred / 0.005)
    made.times.observe(SCORE_CANDIDATES, hundred, 0.010)  # 100 candidates take 10 ms here, 5 ms at the device's peak
    made._dispatcher = made._new_dispatcher(0)
    return made


@pytest.fixture
def waiting(artifact: Artifact) -> ScoreInputs:
    """What a score job holds; the scheduler of these tests has no slots, so nothing runs."""
    host = HostFeatures(artifact)
    records = missing_records(feature_dtype(artifact.schema.item_features), 1)
    context = missing_records(feature_dtype(artifact.schema.context), 1)
    items = host.encode_items(np.ones(1, np.int64), records)
    nothing = {e.name: missing_records(event_dtype(e), 0) for e in artifact.schema.events}
    return host.score_inputs(items, context, 0, None, host.affinity_record(nothing))


def test_idle_server_admits_what_the_device_could_make(scheduler: Scheduler) -> None:
    scheduler.admit(100, deadline=1.0051, now=1.0)
    with pytest.raises(DeadlineExpired, match=r"deadline: 4\.0 ms left cannot suffice for 100 candidate"):
        scheduler.admit(100, deadline=1.004, now=1.0)


def test_small_requests_are_due_before_large_ones_and_nobody_starves(scheduler: Scheduler) -> None:
    small, large = scheduler.urgency(1.0, 2.0, 0.001), scheduler.urgency(1.0, 2.0, 0.010)
    assert (small.due, large.due) == (pytest.approx(1.02), pytest.approx(1.2))
    assert scheduler.urgency(1.0, 1.1, 0.010).due == pytest.approx(1.05), "half of the time budget at the latest"
    assert scheduler.urgency(1.15, 1.25, 0.010).due == large.due, "what is more hurried passes what has waited as long"


def test_high_priority_is_due_at_once_and_low_when_half_of_its_time_is_gone(scheduler: Scheduler) -> None:
    due = {priority: scheduler.urgency(1.0, 2.0, 0.001, priority).due for priority in Priority}
    assert due == {
        Priority.HIGH: pytest.approx(1.0),
        Priority.NORMAL: pytest.approx(1.02),
        Priority.LOW: pytest.approx(1.5),
    }


def test_what_one_share_of_the_time_refuses_a_larger_one_admits(scheduler: Scheduler, waiting: ScoreInputs) -> None:
    async def main() -> None:
        for _ in range(6):
            scheduler.score_job(waiting, {}, 100, NEVER)  # 60 ms, and 10 ms of its own
        scheduler.admit(100, deadline=1.1, now=1.0, share=0.8)
        with pytest.raises(Overloaded):
            scheduler.admit(100, deadline=1.1, now=1.0, share=0.5)

    asyncio.run(main())


def test_waiting_work_refuses_with_the_time_until_it_has_drained(scheduler: Scheduler, waiting: ScoreInputs) -> None:
    async def main() -> None:
        jobs = [scheduler.score_job(waiting, {}, 100, NEVER) for _ in range(10)]
        assert scheduler.drain_s() == pytest.approx(0.1)
        scheduler.admit(100, deadline=1.12, now=1.0)
        with pytest.raises(Overloaded, match="the queue needs about 100 ms, more than the deadline leaves") as refused:
            scheduler.admit(100, deadline=1.05, now=1.0)
        assert refused.value.retry_after_s == pytest.approx(0.1)
        for job in jobs[:9]:
            scheduler.cancel(job)
        assert scheduler.drain_s() == pytest.approx(0.01), "cancelled work delays nobody"
        scheduler.admit(100, deadline=1.05, now=1.0)

    asyncio.run(main())


def test_background_encodes_refuse_nobody_until_somebody_waits_for_them(scheduler: Scheduler) -> None:
    async def main() -> None:
        scheduler.times.observe(ENCODE_USER, scheduler._level_flops[0], 0.1)
        jobs = [scheduler.encode_job({}, 0, 1.0, NEVER, background=True) for _ in range(8)]
        assert scheduler.drain_s() == 0.0
        scheduler.admit(100, deadline=1.05, now=1.0)
        scheduler.promote(jobs[3], NEVER)
        assert scheduler.drain_s() == pytest.approx(0.1)
        with pytest.raises(Overloaded):
            scheduler.admit(100, deadline=1.05, now=1.0)

    asyncio.run(main())
