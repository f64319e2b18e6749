"""Choices inside Kunlun where the sources are silent or where an ablation asks (docs/model.md has the register). Torch-free."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from model.config import StrictModel

Positive = Annotated[int, Field(ge=1)]


class Activation(StrEnum):
    """GDPA activations; all map 0 to 0. `fast_gelu` is the tanh form."""

    RAW = "raw"
    RELU = "relu"
    LEAKY_RELU = "leaky_relu"
    RELU_SQUARE = "relu_square"
    GELU = "gelu"
    FAST_GELU = "fast_gelu"
    SILU = "silu"
    HARDSWISH = "hardswish"


class ScalePreset(StrEnum):
    """Where GDPA scales its scores (three readings of the sources; see `kernels/gdpa/reference.py`)."""

    PAPER = "paper"
    KERNEL = "kernel"
    PAPER_GAIN = "paper+gain"


class Pffn(StrEnum):
    """What updates the sequence tokens in a global layer.

    `gdpa`: Kunlun's block with generated K and V. `ffn`: the same block with learned K and V, the same for every sample.
    `generated_linear`: InterFormer's S · W with a generated W = KᵀV, no activation and no residual.
    """

    GDPA = "gdpa"
    FFN = "ffn"
    GENERATED_LINEAR = "generated_linear"


class Pooling(StrEnum):
    """Sequence → summary tokens. `hsp`: more seeds than tokens, then SumKron. `gdpa`: the same with the activation in place of
    the softmax. `pma`: as many seeds as tokens, no compression (`n_seeds` and `kronecker_rank` then mean nothing)."""

    HSP = "hsp"
    GDPA = "gdpa"
    PMA = "pma"


class Attention(StrEnum):
    """Who sees whom in self-attention. `window`: |i − j| ≤ window. `dense`: all (`window` then means nothing).
    `block`: those of the same block of `window` tokens."""

    WINDOW = "window"
    DENSE = "dense"
    BLOCK = "block"


class NormPlacement(StrEnum):
    """Self-attention as S + MHA(LN(S)) or as LN(S + MHA(S))."""

    PRE = "pre"
    POST = "post"


class TimeEncoding(StrEnum):
    """What turns queries and keys. `age` and `adjacent`: half of the pairs by position, half by log1p of the time to the newest
    event, or to the event before. `sum`: every pair by both, position and age."""

    NONE = "none"
    POSITION = "position"
    AGE = "age"
    ADJACENT = "adjacent"
    SUM = "sum"


class EventTokens(StrEnum):
    """Attributes of an event → its token. `mlp`: two layers over all of them. `masknet`: each is first scaled by a mask made
    from all of them."""

    MLP = "mlp"
    MASKNET = "masknet"


class ExpertInput(StrEnum):
    """Which tokens a Wukong expert sees beside the summaries: its share, or all."""

    PARTITION = "partition"
    FULL = "full"


class TargetWeights(StrEnum):
    """How target pooling turns scores into weights: `sigmoid` keeps how much was found, `softmax` only what."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


class TowerConfig(StrictModel):
    """One event type's tower (event-level personalization). `n_recent`: the newest tokens that join the summary as they are."""

    width: Positive
    heads: Positive
    n_seeds: Positive
    n_tokens: Positive
    kronecker_rank: Positive
    window: Positive
    layers: Positive
    pooling: Pooling = Pooling.HSP
    attention: Attention = Attention.WINDOW
    n_recent: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _shapes_fit(self) -> TowerConfig:
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ValueError(
                f"width {self.width} must be heads ({self.heads}) times a multiple of 4: rotary pairs for position and time"
            )
        if self.n_seeds <= self.n_tokens:
            raise ValueError(f"n_seeds {self.n_seeds} must exceed n_tokens {self.n_tokens} (HSP starts overcomplete)")
        return self

    @property
    def summary_tokens(self) -> int:
        """Tokens that the tower adds to Global Interaction."""
        return self.n_tokens + self.n_recent


class WukongConfig(StrictModel):
    """Global Interaction by Wukong experts; `hidden` is the width of the FM's network.

    `attentive`: the FM's projection Y depends on the sample, made by a network of the same width from compressed tokens.
    """

    experts: Positive
    fm_rank: Positive
    hidden: Positive
    expert_input: ExpertInput = ExpertInput.PARTITION
    attentive: bool = False

    def inputs(self, tokens: int, summary_tokens: int) -> int:
        """Tokens that one expert sees."""
        return (tokens if self.expert_input is ExpertInput.FULL else tokens // self.experts) + summary_tokens


class CandidateStreamConfig(StrictModel):
    """The per-candidate stream; one of two interactions.

    `hidden`: gated (second-order) units of that width over the flattened tokens, large products that engines run
    near their peak. `wukong`: the paper's experts over tokens, small batched products; what it costs and gives
    beside the other is in docs/benchmarking.md.
    """

    tokens: Positive
    width: Positive
    hidden: Positive | None = None
    wukong: WukongConfig | None = None
    head_hidden: Positive

    @model_validator(mode="after")
    def _one_interaction(self) -> CandidateStreamConfig:
        if (self.hidden is None) == (self.wukong is None):
            found = "neither" if self.hidden is None else "both"
            raise ValueError(f"expected hidden (gated units) or wukong (experts), found {found}")
        if self.wukong is not None and self.tokens % self.wukong.experts:
            raise ValueError(f"tokens {self.tokens} must be a multiple of wukong.experts {self.wukong.experts}")
        return self


class TargetPoolingConfig(StrictModel):
    """Candidates attend to the last S of every tower (`model.layers.target_pooling`): `seeds` queries of `width` each.

    Adds cap · (2 · width + 1) floats per event type to the user state.
    """

    seeds: Positive = 2
    width: Positive = 64
    weights: TargetWeights = TargetWeights.SOFTMAX


class TokenHeadConfig(StrictModel):
    """Head of the `exact` wiring: tokens are compressed to `tokens`, flattened, and go through one layer of `hidden`."""

    tokens: Positive
    hidden: Positive
