"""Admission by predicted time: what no queue could help expires, what the queue delays is told when to return."""

from __future__ import annotations

import pytest
from rank_fixtures import Recorder

from model.artifact import Artifact
from model.flops import FlopModel
from model.signature import SCORE_CANDIDATES
from serving.core.errors import DeadlineExpired, Overloaded
from serving.core.host_features import HostFeatures
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


def test_idle_server_admits_what_the_best_rate_can_make(scheduler: Scheduler) -> None:
    scheduler.admit(100, deadline=1.011, now=1.0)
    with pytest.raises(DeadlineExpired, match=r"deadline: 9\.0 ms left cannot suffice for 100 candidate"):
        scheduler.admit(100, deadline=1.009, now=1.0)


def test_waiting_work_refuses_with_the_time_until_it_has_drained(scheduler: Scheduler, artifact: Artifact) -> None:
    flops = FlopModel.from_json(artifact.manifest.flops, artifact.config)
    scheduler._outstanding[SCORE_CANDIDATES] = 10 * (flops.per_request + 100 * flops.per_candidate)
    assert scheduler.drain_s() == pytest.approx(0.1)
    scheduler.admit(100, deadline=1.12, now=1.0)
    with pytest.raises(Overloaded, match="the queue needs about 100 ms, more than the deadline leaves") as refused:
        scheduler.admit(100, deadline=1.05, now=1.0)
    assert refused.value.retry_after_s == pytest.approx(0.1)
