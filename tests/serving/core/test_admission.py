"""Admission by predicted time: what no queue could help expires, what the queue delays is told when to return."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from rank_fixtures import Recorder

from model.artifact import Artifact
from model.flops import FlopModel
from model.records import feature_dtype, missing_records
from model.signature import ENCODE_USER, SCORE_CANDIDATES
from serving.core.errors import DeadlineExpired, Overloaded
from serving.core.host_features import HostFeatures, ScoreInputs
from serving.core.options import CoreOptions
from serving.core.scheduler import Scheduler
from serving.engines.open import open_engine


@pytest.fixture
def scheduler(artifact: Artifact, engine_cache) -> Scheduler:
    flops = FlopModel.from_json(artifact.manifest.flops, artifact.config)
    engine = open_engine(artifact, cache=engine_cache, precision="f32", threads_per_slot=1, slots=1)
    made = Scheduler(engine, HostFeatures(artifact), flops, CoreOptions(), Recorder())
    work = flops.per_request + 100 * flops.per_candidate
    made.rate.best.clear()
    made.rate.observe(SCORE_CANDIDATES, work, 0.010)  # 100 candidates take 10 ms here
    return made


@pytest.fixture
def waiting(artifact: Artifact) -> ScoreInputs:
    """What a score job holds; the scheduler of these tests has no slots, so nothing runs."""
    host = HostFeatures(artifact)
    records = missing_records(feature_dtype(artifact.schema.item_features), 1)
    context = missing_records(feature_dtype(artifact.schema.context), 1)
    return host.score_inputs(np.ones(1, np.int64), records, context, 0, None)


def test_idle_server_admits_what_the_best_rate_can_make(scheduler: Scheduler) -> None:
    scheduler.admit(100, deadline=1.011, now=1.0)
    with pytest.raises(DeadlineExpired, match=r"deadline: 9\.0 ms left cannot suffice for 100 candidate"):
        scheduler.admit(100, deadline=1.009, now=1.0)


def test_waiting_work_refuses_with_the_time_until_it_has_drained(scheduler: Scheduler, waiting: ScoreInputs) -> None:
    async def main() -> None:
        jobs = [scheduler.score_job(waiting, {}, 100, deadline=1e9) for _ in range(10)]
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
        scheduler.rate.observe(ENCODE_USER, 1.0, 0.1)
        jobs = [scheduler.encode_job({}, 0, 1.0, deadline=1e9, background=True) for _ in range(8)]
        assert scheduler.drain_s() == 0.0
        scheduler.admit(100, deadline=1.05, now=1.0)
        scheduler.promote(jobs[3], deadline=1e8)
        assert scheduler.drain_s() == pytest.approx(0.1)
        with pytest.raises(Overloaded):
            scheduler.admit(100, deadline=1.05, now=1.0)

    asyncio.run(main())
