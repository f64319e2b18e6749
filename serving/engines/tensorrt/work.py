"""Which shapes the engine runs: work buckets, and the optimization profiles that they share. Pure.

A bucket is a size for every symbol of a graph's signature. Jagged `encode_user` has buckets of users and of rows per event
type, so a batch costs its rows and not its longest history; `score_candidates` of requests and candidates. Everything
that runs is filled up to a bucket; each has a context and a CUDA graph of its own, and buckets of similar work share the
profile that TensorRT has tuned kernels for. The plan is fixed when an engine is built and part of what it is known by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from math import prod

from model.architectures.base import ArchitectureConfig
from model.config import StrictModel
from model.schema import Schema
from model.signature import (
    ENCODE_USER,
    SCORE_CANDIDATES,
    GraphSignature,
    encode_user_signature,
    jagged_encode_signature,
    score_candidates_signature,
)
from model.tensor_spec import OFFSETS, USERS, TensorSpec

Sizes = Mapping[str, int]


class OutsideWork(ValueError):
    """A batch that fits no bucket: the engine was built for smaller ones."""


class Profile(StrictModel):
    """An optimization profile: the least, the best and the most of every size."""

    least: dict[str, int]
    best: dict[str, int]
    most: dict[str, int]

    def holds(self, sizes: Sizes) -> bool:
        """Whether a bucket lies inside."""
        return all(self.least[name] <= size <= self.most[name] for name, size in sizes.items())


class GraphWork(StrictModel):
    """Buckets of one graph, and its profiles. Every bucket lies in a profile."""

    buckets: tuple[dict[str, int], ...]
    profiles: tuple[Profile, ...]

    def fit(self, sizes: Sizes) -> dict[str, int]:
        """The bucket of least work that holds a batch; raises `OutsideWork`."""
        fitting = [b for b in self.buckets if all(sizes[name] <= size for name, size in b.items())]
        if not fitting:
            largest = max(self.buckets, key=_volume)
            raise OutsideWork(f"sizes: expected at most {largest}, found {dict(sizes)}; compile for larger batches")
        return min(fitting, key=_volume)

    def profile(self, bucket: Sizes) -> int:
        """Which profile a bucket belongs to: the narrowest that holds it."""
        holding = [i for i, profile in enumerate(self.profiles) if profile.holds(bucket)]
        if not holding:
            raise OutsideWork(f"bucket {dict(bucket)}: lies in no profile")
        return min(holding, key=lambda i: _volume(self.profiles[i].most))


class WorkPlan(StrictModel):
    """The work of both graphs. `is_jagged`: `encode_user` runs on jagged rows."""

    is_jagged: bool
    encode_user: GraphWork
    score_candidates: GraphWork

    def of(self, graph: str) -> GraphWork:
        """The work of a graph."""
        return {ENCODE_USER: self.encode_user, SCORE_CANDIDATES: self.score_candidates}[graph]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the plan."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def signatures(schema: Schema, config: ArchitectureConfig, *, jagged: bool) -> dict[str, GraphSignature]:
    """Signatures of both graphs as the engine runs them."""
    encode = jagged_encode_signature(schema, config) if jagged else encode_user_signature(schema, config)
    assert encode is not None
    return {ENCODE_USER: encode, SCORE_CANDIDATES: score_candidates_signature(schema, config)}


def shape_of(spec: TensorSpec, sizes: Sizes) -> tuple[int, ...]:
    """The shape of a tensor in a bucket."""
    return tuple(_size(size, sizes) for size in spec.shape)


def _size(size: int | str, sizes: Sizes) -> int:
    if isinstance(size, int):
        return size
    return sizes[USERS] + 1 if size == OFFSETS else sizes[size]


def _volume(sizes: Sizes) -> tuple[int, int]:
    """Order of buckets by work: rows first, which all products have, then everything."""
    rows = [size for name, size in sizes.items() if name not in ("R", USERS)]
    return sum(rows), prod(max(size, 1) for size in sizes.values())
