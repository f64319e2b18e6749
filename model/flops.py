"""Exact matrix-product FLOPs of the two graphs of any architecture: the one source of MFU, batching and reports.

One multiply-add is 2 FLOPs; biases, norms, activations and gathers are not counted. The scheduler
prices work with it, serving and training derive MFU from it, and the manifest stores its widths
(`FlopModel.to_json`). Lengths given as *real* lengths yield useful work; `executed=True` with padded
lengths yields what an engine runs. Torch-free; exactness is tested against torch's own counter.

Cost: a few microseconds per call (no arrays, no caching).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from model.architectures.base import ArchitectureConfig
from model.architectures.terms import FeatureWidths
from model.schema import Schema

FORMULA_VERSION = 1


@dataclass(frozen=True)
class FlopBreakdown:
    """FLOPs by part; parts are named after the modules that do the work."""

    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @classmethod
    def of(cls, terms: Iterator[tuple[str, float]]) -> FlopBreakdown:
        parts: dict[str, float] = {}
        for name, flops in terms:
            parts[name] = parts.get(name, 0.0) + flops
        return cls(parts)


@dataclass(frozen=True)
class FlopModel:
    """The formulas' inputs: the model configuration and the feature widths that the schema implies."""

    config: ArchitectureConfig
    widths: FeatureWidths

    def encode(self, lengths: Mapping[str, int], *, executed: bool = False) -> FlopBreakdown:
        """One user with the given history length per event type."""
        return FlopBreakdown.of(self.config.encode_terms(self.widths, lengths, executed))

    def score(
        self, requests: int, candidates: int, *, executed: bool = False, lengths: Mapping[str, int] | None = None
    ) -> FlopBreakdown:
        """`candidates` in all, over `requests` user states; `executed`: as engines run it.

        `lengths`: of the histories behind the states, all of the same length; None: the caps. It matters to
        architectures whose candidates meet the history itself.
        """
        known = self.widths.caps if lengths is None else lengths
        return FlopBreakdown.of(self.config.score_terms(self.widths, requests, candidates, executed, known))

    @cached_property
    def per_candidate(self) -> float:
        """FLOPs that one more candidate adds."""
        return self.score(0, 1).total

    @cached_property
    def per_request(self) -> float:
        """FLOPs of a request before its first candidate."""
        return self.score(1, 0).total

    def constant(self, graph: str) -> float:
        """Products of weights alone in `graph`: once per call, folded away by engines, part of no other figure."""
        return FlopBreakdown.of(self.config.constant_terms(self.widths, graph)).total

    def to_json(self) -> dict[str, Any]:
        """The manifest's form: the widths; the configuration is beside it."""
        return {
            "formula_version": FORMULA_VERSION,
            "user_inputs": self.widths.user,
            "item_inputs": self.widths.item,
            "context_inputs": self.widths.context,
            "tasks": self.widths.tasks,
            "event_inputs": dict(self.widths.events),
            "caps": dict(self.widths.caps),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], config: ArchitectureConfig) -> FlopModel:
        """Inverse of `to_json`; raises `ValueError` for formulas of another version."""
        if data.get("formula_version") != FORMULA_VERSION:
            raise ValueError(f"flops.formula_version: expected {FORMULA_VERSION}, found {data.get('formula_version')!r}")
        widths = FeatureWidths(
            user=int(data["user_inputs"]),
            item=int(data["item_inputs"]),
            context=int(data["context_inputs"]),
            tasks=int(data["tasks"]),
            events=dict(data["event_inputs"]),
            caps=dict(data["caps"]),
        )
        return cls(config, widths)


def flop_model(schema: Schema, config: ArchitectureConfig) -> FlopModel:
    """The formulas of a model on a schema."""
    return FlopModel(config, FeatureWidths.of(schema))
