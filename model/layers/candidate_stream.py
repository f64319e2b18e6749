"""The candidate stream: item and context features + gathered user state → one logit per task.

Per layer a gated (second-order) unit over the flattened tokens, so that the work is large matrix
products over all candidates of a batch:

    [a ‖ g] = W_x · LN(x) + (W_r · R_l + b)[request of the candidate]
    x       ← x + W_o · (a ⊙ SiLU(g))

The user part is multiplied once per request and gathered, never once per candidate. The other form,
`WukongUnit`, is the paper's own interaction: experts over [X ‖ R_l], small products for each candidate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.architectures.kunlun.config import KunlunConfig
from model.architectures.kunlun.options import CandidateStreamConfig, TargetWeights
from model.layers.dropout import HiddenDropout
from model.layers.target_pooling import TargetMemory, TargetPooling
from model.layers.tokens import row_invariant_linear
from model.layers.wukong import WukongMixture


class GatedUnit(nn.Module):
    """x [C, n] and per-request rows r [R, m] → [C, n]; residual."""

    def __init__(self, width: int, request_width: int, hidden: int) -> None:
        super().__init__()
        self.from_candidate = nn.Linear(width, 2 * hidden, bias=False)
        self.from_request = nn.Linear(request_width, 2 * hidden)
        self.out = nn.Linear(hidden, width, bias=False)
        self.dropout = HiddenDropout()
        with torch.no_grad():
            self.out.weight.mul_(0.5)

    def forward(self, x: Tensor, r: Tensor, request_index: Tensor) -> Tensor:
        shared = self.from_request(r).index_select(0, request_index)  # [C, 2h]: the candidate→user gather
        a, g = (self.from_candidate(F.layer_norm(x, x.shape[-1:])) + shared).chunk(2, dim=-1)
        return x + self.out(self.dropout(a * F.silu(g)))


class WukongUnit(nn.Module):
    """x [C, n_c · d_c] and per-request rows r [R, n_r · d_c] → [C, n_c · d_c]: Global Interaction of every candidate."""

    def __init__(self, stream: CandidateStreamConfig, state_tokens: int) -> None:
        super().__init__()
        mix = stream.wukong
        assert mix is not None
        self.tokens, self.state_tokens = stream.tokens, state_tokens
        self.interact = WukongMixture(stream.tokens, state_tokens, stream.width, mix)

    def forward(self, x: Tensor, r: Tensor, request_index: Tensor) -> Tensor:
        state = r.unflatten(1, (self.state_tokens, -1)).index_select(0, request_index)  # [C, n_r, d_c]
        return self.interact(x.unflatten(1, (self.tokens, -1)), state).flatten(1)


class CandidateStream(nn.Module):
    """Scores candidates against user states. Returns logits [C, tasks]."""

    def __init__(self, config: KunlunConfig, item_inputs: int, context_inputs: int, tasks: int, caps: list[int]) -> None:
        super().__init__()
        stream = config.candidate
        flat, state = stream.tokens * stream.width, config.state_tokens * stream.width
        self.from_item = nn.Linear(item_inputs, flat)
        self.from_context = nn.Linear(context_inputs, flat, bias=False) if context_inputs else None
        self.layers = nn.ModuleList(
            GatedUnit(flat, state, stream.hidden) if stream.hidden else WukongUnit(stream, config.state_tokens)
            for _ in range(config.layers)
        )
        self.head = nn.Linear(flat, stream.head_hidden, bias=False)
        self.head_request = nn.Linear(state, stream.head_hidden)
        self.logits = nn.Linear(stream.head_hidden, tasks)
        self.dropout = HiddenDropout()
        target = config.target_pooling
        self.target_pooling = (
            None
            if target is None
            else TargetPooling(flat, target.width, target.seeds, caps, normalized=target.weights == TargetWeights.SOFTMAX)
        )

    def forward(
        self,
        item: Tensor,
        context: Tensor | None,
        states: list[Tensor],
        request_index: Tensor,
        memories: list[TargetMemory],
    ) -> Tensor:
        """item [C, ·], context [R, ·], states L × [R, n_r, d_c], request_index int64 [C]; memories with target pooling only."""
        rows = [state.flatten(1) for state in states]
        x = self.from_item(item)
        if self.from_context is not None and context is not None:
            x = x + row_invariant_linear(self.from_context, context).index_select(0, request_index)
        if self.target_pooling is not None:
            x = self.target_pooling(x, memories, request_index)
        for layer, r in zip(self.layers, rows, strict=True):
            x = layer(x, r, request_index)
        shared = self.head_request(rows[-1]).index_select(0, request_index)
        return self.logits(self.dropout(F.silu(self.head(F.layer_norm(x, x.shape[-1:])) + shared)))
