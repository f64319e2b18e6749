"""One forward of the twin: embeddings gathered, both graphs run; position bias is added in training only."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.layers.embedding import InputDropout
from model.ranker import KunlunRanker
from model.signature import REQUEST_INDEX
from model.training.batches import MAX_POSITION, Batch


class PositionBias(nn.Module):
    """Logit offset per shown position and task; unknown positions (0) add nothing. Absent from what is served."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(MAX_POSITION + 1, tasks))

    def forward(self, positions: Tensor) -> Tensor:
        return F.embedding(positions, self.table) * (positions > 0).unsqueeze(-1)


def encode_inputs(model: KunlunRanker, batch: Batch, dropout: InputDropout | None = None) -> dict[str, Tensor]:
    """Input tensors of `encode_user` for a batch, one user row per request."""
    tables, layout = model.tables, model.layout
    tensors = {
        "user_rows": tables.gather(layout.user, batch.users.rows, dropout),
        "user_dense": batch.users.dense,
    }
    for event, history in batch.histories.items():
        tensors[f"{event}_rows"] = tables.gather(layout.events[event], history.events.rows, dropout)
        tensors[f"{event}_dense"] = history.events.dense
        tensors[f"{event}_age"] = history.age_s
        tensors[f"{event}_length"] = history.lengths
    return {spec.name: tensors[spec.name] for spec in model.encode_user.signature.inputs}


def score_inputs(
    model: KunlunRanker, batch: Batch, states: tuple[Tensor, ...], dropout: InputDropout | None = None
) -> dict[str, Tensor]:
    """Input tensors of `score_candidates` for a batch."""
    tables, layout = model.tables, model.layout
    tensors = dict(zip((spec.name for spec in model.encode_user.signature.outputs), states, strict=True)) | {
        "context_rows": tables.gather(layout.context, batch.contexts.rows, dropout),
        "context_dense": batch.contexts.dense,
        "item_rows": tables.gather(layout.item, batch.items.rows, dropout),
        "item_dense": batch.items.dense,
        REQUEST_INDEX: batch.request_index,
    }
    return {spec.name: tensors[spec.name] for spec in model.score_candidates.signature.inputs}


def raw_logits(model: KunlunRanker, batch: Batch, dropout: InputDropout | None = None) -> Tensor:
    """Uncalibrated, position-free logits [C, tasks]."""
    states = model.encode_user(*encode_inputs(model, batch, dropout).values())
    return model.score_candidates.raw_logits(*score_inputs(model, batch, states, dropout).values())


def masked_bce(logits: Tensor, labels: Tensor, weights: Tensor, examples: Tensor | None = None) -> Tensor:
    """Weighted sum over tasks of the mean binary cross-entropy; NaN labels are left out.

    Logits and labels [C, tasks], weights [tasks]. `examples` [tasks]: what sums are divided by in place of the batch's own
    number of known labels, so that an example weighs the same in whatever batch it is.
    """
    known = ~labels.isnan()
    loss = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none") * known
    return (loss.sum(0) / (known.sum(0).clamp(min=1) if examples is None else examples) * weights).sum()
