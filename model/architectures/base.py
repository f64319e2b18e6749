"""What an architecture declares: hyper-parameters, the layout of its user state, its FLOPs, and its two graphs.

A model is two graphs, ``encode_user(user, histories) → state`` and ``score_candidates(state, context, item, request_index) →
logits``. Training, export, serving, the scheduler and the metrics know nothing else of it. Torch-free: `graphs` imports the
torch side when it is called, which only training and export do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kernels.tensorrt.nodes import Node
from model.architectures.terms import FeatureWidths, ProductWidths, Terms
from model.config import StrictModel
from model.schema import Schema
from model.tensor_spec import TensorSpec

if TYPE_CHECKING:
    from model.architectures.graphs import EncodeGraph, ScoreGraph


EMBEDDING_DEVIATION = 0.25
"""Standard deviation of fresh embedding rows; 0.05 delayed learning from histories by an epoch on the synthetic log."""


@dataclass(frozen=True)
class RaggedCall:
    """A ragged operator as a model calls it: the node, heads, and their width."""

    node: Node
    heads: int
    head_width: int


class ArchitectureConfig(StrictModel, ABC):
    """Hyper-parameters of one architecture, as they stand in a training configuration and in the manifest.

    A subclass narrows `architecture` to ``Literal["<its name>"]`` with that name as the default.
    """

    architecture: str

    @property
    def embedding_deviation(self) -> float:
        """Standard deviation of this architecture's fresh embedding rows."""
        return EMBEDDING_DEVIATION

    @classmethod
    def variant_of(cls, data: Mapping[str, Any]) -> type[ArchitectureConfig]:
        """The class that `data` is to be parsed with; an architecture of several classes overrides this."""
        return cls

    def check_schema(self, schema: Schema) -> None:
        """Raise `ConfigError` when the configuration names what `schema` does not have."""

    @abstractmethod
    def state_specs(self, schema: Schema, rows: str) -> tuple[TensorSpec, ...]:
        """The user state: tensors whose first size is `rows` and whose other sizes are numbers, dtype float32 or int64."""

    @abstractmethod
    def encode_terms(self, widths: FeatureWidths, lengths: Mapping[str, int], executed: bool) -> Terms:
        """FLOPs of encoding one user with history `lengths` per event type; `executed`: as engines run it."""

    @abstractmethod
    def score_terms(
        self, widths: FeatureWidths, requests: int, candidates: int, executed: bool, lengths: Mapping[str, int]
    ) -> Terms:
        """FLOPs of scoring `candidates` in all over `requests` user states, made from histories of `lengths`.

        Useful FLOPs are linear in `requests` and in `candidates`; executed ones are those of the padded state.
        """

    def constant_terms(self, widths: FeatureWidths, graph: str) -> Terms:
        """Products of weights alone in `graph`: once per call, folded by engines, and part of no other figure."""
        return iter(())

    def product_widths(self, widths: FeatureWidths) -> ProductWidths | None:
        """Widths that bit-equality in bf16 rests on; None: not known to hold, so it is served in f32 unless asked for."""
        return None

    @property
    def has_jagged_form(self) -> bool:
        """Whether `encode_user` runs on jagged rows, too: what engines with ragged operators take."""
        return False

    def ragged_calls(self, schema: Schema) -> tuple[RaggedCall, ...]:
        """The ragged operators of the jagged form, each kind once: what an engine must have kernels of."""
        return ()

    @abstractmethod
    def graphs(self, schema: Schema) -> tuple[EncodeGraph, ScoreGraph]:
        """Freshly initialised torch modules of both graphs."""
