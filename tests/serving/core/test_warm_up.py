"""Warm-up: whatever is warm so far, a batch gets a warm shape that holds it, and in the end its own."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.artifact import Artifact
from model.flops import FlopModel
from model.signature import SCORE_CANDIDATES
from serving.core import warm_up as warm_up_module
from serving.core.host_features import HostFeatures
from serving.core.options import CoreOptions
from serving.core.shapes import EncodeShape, ScoreShape, ShapeBuckets
from serving.core.warm_up import WarmUp
from serving.engines.base import DeviceError, Tensors

OPTIONS = CoreOptions(max_batch_candidates=200, max_batch_requests=8, max_batch_users=4)


class Shapes:
    """A session that notes the shapes it is given."""

    fault = ""

    def __init__(self) -> None:
        self.seen: list[tuple[str, tuple[tuple[int, ...], ...]]] = []
        self.prepared: list[tuple[str, tuple[tuple[int, ...], ...]]] = []

    def prepare(self, graph: str, inputs: Tensors) -> None:
        self.prepared.append((graph, tuple(np.shape(value) for value in inputs.values())))

    def run(self, graph: str, inputs: Tensors) -> dict[str, NDArray[Any]]:
        self.seen.append((graph, tuple(np.shape(value) for value in inputs.values())))
        return {}


@pytest.fixture(scope="module")
def parts(artifact: Artifact) -> tuple[ShapeBuckets, HostFeatures, FlopModel]:
    flops = FlopModel.from_json(artifact.manifest.flops, artifact.config)
    return ShapeBuckets(artifact.schema, OPTIONS), HostFeatures(artifact), flops


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_batch_gets_a_warm_shape_that_holds_it(
    parts: tuple[ShapeBuckets, HostFeatures, FlopModel], data: st.DataObject
) -> None:
    shapes, host, flops = parts
    warm_up, session = WarmUp(shapes, host, flops), Shapes()
    warm_up.run_essential(session, lambda graph, work, seconds: None)
    warm_up.prepare_rest(session)
    for _ in range(data.draw(st.integers(0, 20))):
        warm_up.run_next(session)
    warm = set(session.seen)
    users, level = data.draw(st.integers(1, 4)), data.draw(st.integers(0, len(shapes.levels) - 1))
    encode = warm_up.encode_shape(level, users)
    assert encode.level == level
    assert encode.users >= users
    assert _seen(warm_up, encode) in warm
    requests = data.draw(st.integers(1, 8))
    candidates = data.draw(st.integers(requests, 200))
    score = warm_up.score_shape(requests, candidates)
    assert score.requests >= requests
    assert score.candidates >= candidates
    assert _seen(warm_up, score) in warm


def test_every_shape_is_run_once_more_and_then_none(parts: tuple[ShapeBuckets, HostFeatures, FlopModel]) -> None:
    shapes, host, flops = parts
    warm_up, session = WarmUp(shapes, host, flops), Shapes()
    heard: list[tuple[str, float]] = []
    warm_up.run_essential(session, lambda graph, work, seconds: heard.append((graph, work)))
    assert len(heard) == len(shapes.essential), "the second use of each essential shape tells the time of work"
    essential = len(session.seen)
    assert essential == 2 * len(shapes.essential)
    cold = warm_up.cold
    assert cold == len(shapes.encode_shapes) + len(shapes.score_shapes) - len(shapes.essential)
    assert warm_up.run_next(session), "nothing is prepared yet, but some shapes are cold"
    assert len(session.seen) == essential
    warm_up.prepare_rest(session)
    while warm_up.run_next(session):
        pass
    assert warm_up.cold == 0
    assert session.prepared[: len(shapes.essential)] == session.seen[:essential:2], "for what may stand behind the engine"
    assert session.prepared[len(shapes.essential) :] == session.seen[essential:], "each was prepared, and then run in order"
    assert len(session.seen) - essential == cold
    assert not warm_up.run_next(session)
    assert len(session.seen) - essential == cold
    assert len(set(session.seen)) == essential // 2 + cold, "every one of them is a shape of its own"
    assert warm_up.encode_shape(0, 2) == EncodeShape(0, 2)
    assert warm_up.score_shape(3, 70) == ScoreShape(4, 72)


def test_before_anything_is_warm_the_exact_bucket_is_used(parts: tuple[ShapeBuckets, HostFeatures, FlopModel]) -> None:
    assert WarmUp(*parts).score_shape(1, 10) == ScoreShape(1, 24)


def test_a_server_that_stops_while_it_starts_runs_no_more_shapes(
    parts: tuple[ShapeBuckets, HostFeatures, FlopModel],
) -> None:
    warm_up, session = WarmUp(*parts), Shapes()
    assert len(parts[0].essential) > 1
    warm_up.run_essential(session, lambda graph, work, seconds: warm_up.close())
    assert len(session.seen) == 2, "the shape that was begun, twice"


def test_once_closed_no_more_shapes_are_prepared(parts: tuple[ShapeBuckets, HostFeatures, FlopModel]) -> None:
    warm_up, session = WarmUp(*parts), Shapes()
    warm_up.close()
    warm_up.prepare_rest(session)
    assert not session.prepared


class Failing(Shapes):
    """A session whose device fails to prepare a graph as often as it is told."""

    def __init__(self, graph: str, times: int) -> None:
        super().__init__()
        self.graph, self.times, self.tries = graph, times, 0

    def prepare(self, graph: str, inputs: Tensors) -> None:
        self.tries += graph == self.graph
        if graph == self.graph and self.times:
            self.times -= 1
            raise DeviceError("out of memory")
        super().prepare(graph, inputs)


def test_what_cannot_be_prepared_stays_cold_and_is_tried_again(
    parts: tuple[ShapeBuckets, HostFeatures, FlopModel], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(warm_up_module, "RETRY_AFTER_S", 0.001)
    shapes = parts[0]
    warm_up, session = WarmUp(*parts), Failing(SCORE_CANDIDATES, times=len(shapes.score_shapes) + 2)
    warm_up.run_essential(session, ignored)
    warm_up.prepare_rest(session)
    assert session.tries == 2 * len(shapes.score_shapes) + 2, "all, all again, and two of those once more"
    assert len(session.prepared) == len(shapes.encode_shapes) + len(shapes.score_shapes)
    count = f"{len(shapes.score_shapes)} of {len(session.prepared)}"
    assert [record.getMessage() for record in caplog.records] == [
        f"{count} shapes could not be prepared and stay cold: out of memory",
        f"2 of {len(shapes.score_shapes)} shapes could not be prepared and stay cold: out of memory",
    ]
    while warm_up.run_next(session):
        pass
    assert warm_up.cold == 0


def test_shapes_that_are_never_prepared_are_never_taken_for_warm(
    parts: tuple[ShapeBuckets, HostFeatures, FlopModel], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(warm_up_module, "RETRY_AFTER_S", 0.001)
    warm_up, session = WarmUp(*parts), Failing(SCORE_CANDIDATES, times=10**9)
    warm_up.run_essential(session, ignored)
    warm_up.prepare_rest(session)
    while warm_up.run_next(session):
        pass
    cold = set(parts[0].score_shapes) - set(parts[0].essential)
    assert warm_up.cold == len(cold)
    assert warm_up.score_shape(3, 70) == ScoreShape(8, 128), "essential, and the nearest"
    assert caplog.records[-1].getMessage().startswith(f"{len(parts[0].score_shapes)} shapes stay cold")
    before = len(session.seen)
    assert not warm_up.run_next(session), "nothing is left that an idle slot could do"
    assert len(session.seen) == before


def test_closing_ends_the_wait_for_another_try(
    parts: tuple[ShapeBuckets, HostFeatures, FlopModel], caplog: pytest.LogCaptureFixture
) -> None:
    warm_up, session = WarmUp(*parts), Failing(SCORE_CANDIDATES, times=10**9)
    with ThreadPoolExecutor(1) as helper:
        preparing = helper.submit(warm_up.prepare_rest, session)
        while not caplog.records:  # which says that all have been tried, and is followed by the wait
            assert not preparing.done()
            time.sleep(0.001)
        warm_up.close()
        preparing.result(timeout=60)
    assert session.tries == len(parts[0].score_shapes)


def test_what_a_backup_ran_is_neither_warm_nor_timed(parts: tuple[ShapeBuckets, HostFeatures, FlopModel]) -> None:
    warm_up, session = WarmUp(*parts), Shapes()
    heard: list[str] = []
    session.fault = "the GPU failed (out of memory); scored on the CPU"
    warm_up.run_essential(session, lambda graph, work, seconds: heard.append(graph))
    every = len(parts[0].encode_shapes) + len(parts[0].score_shapes)
    assert (warm_up.cold, heard) == (every, [])
    session.fault = ""
    warm_up.prepare_rest(session)
    assert len(session.prepared) == every
    while warm_up.run_next(session):
        pass
    assert warm_up.cold == 0


def ignored(graph: str, flops: float, seconds: float) -> None:
    """Of whoever asks for no times."""


def _seen(warm_up: WarmUp, shape: EncodeShape | ScoreShape) -> tuple[str, tuple[tuple[int, ...], ...]]:
    graph, inputs = warm_up.inputs(shape)
    return graph, tuple(np.shape(value) for value in inputs.values())
