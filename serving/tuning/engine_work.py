"""Shape buckets of the scheduler → the work that an engine with fixed shapes is built for (`serving.engines.tensorrt`)."""

from __future__ import annotations

from itertools import groupby

from kernels.tensorrt.coverage import problem
from model.artifact import Artifact
from model.tensor_spec import CANDIDATES, REQUESTS, USERS, history_size, row_count
from serving.core.options import CoreOptions
from serving.core.shapes import ShapeBuckets
from serving.engines.tensorrt.work import GraphWork, Profile, WorkPlan

USUAL_REQUESTS = 4
"""Requests of a batch that score profiles are tuned for."""


def engine_work(artifact: Artifact, options: CoreOptions, precision: str) -> WorkPlan:
    """Everything a server with these options may ask of an engine in this precision, f32, f16 or bf16.

    `encode_user` is built for jagged rows where the artifact has that form and there is a kernel for each of its operators.
    """
    shapes = ShapeBuckets(artifact.schema, options)
    jagged = padded_because(artifact, precision) is None
    return WorkPlan(is_jagged=jagged, encode_user=encode_work(shapes, jagged=jagged), score_candidates=score_work(shapes))


def padded_because(artifact: Artifact, precision: str) -> str | None:
    """Why `encode_user` runs on padded rows, in words; None: it runs on jagged ones."""
    if not artifact.has_jagged_graph:
        return "the artifact has no jagged graph: its architecture has none, or an older release exported it"
    calls = artifact.config.ragged_calls(artifact.schema)
    problems = [problem(call.node, precision, call.heads, call.head_width) for call in calls]
    return next((text for text in problems if text is not None), None)


def encode_work(shapes: ShapeBuckets, *, jagged: bool) -> GraphWork:
    """A bucket for every number of users and history level, which is a number of rows where they are jagged.

    One profile per number of users, tuned for the middle level.
    """

    def bucket(level: int, users: int) -> dict[str, int]:
        steps = shapes.levels[level].items()
        rows = {row_count(e): users * n for e, n in steps} if jagged else {history_size(e): n for e, n in steps}
        return {USERS: users, **rows}

    last = len(shapes.levels) - 1
    profiles = [Profile(least=bucket(0, u), best=bucket(last // 2, u), most=bucket(last, u)) for u in shapes.users]
    return GraphWork(buckets=tuple(bucket(s.level, s.users) for s in shapes.encode_shapes), profiles=tuple(profiles))


def score_work(shapes: ShapeBuckets) -> GraphWork:
    """A bucket for every number of requests and candidates; one profile per octave of candidates, tuned for its largest."""
    most_requests = shapes.requests[-1]
    profiles = []
    for _, octave in groupby(shapes.candidates, key=int.bit_length):
        sizes = list(octave)
        usual = {REQUESTS: min(USUAL_REQUESTS, most_requests), CANDIDATES: sizes[-1]}
        profiles.append(
            Profile(
                least={REQUESTS: 1, CANDIDATES: sizes[0]},
                best=usual,
                most={REQUESTS: most_requests, CANDIDATES: sizes[-1]},
            )
        )
    buckets = tuple({REQUESTS: s.requests, CANDIDATES: s.candidates} for s in shapes.score_shapes)
    return GraphWork(buckets=buckets, profiles=tuple(profiles))
