"""Position-free predictions of a whole request log, in log order."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from model.ranker import KunlunRanker
from model.training.batches import BatchMaker
from model.training.device import device_of
from model.training.forward import raw_logits


@torch.no_grad()
def predict_logits(
    model: KunlunRanker, maker: BatchMaker, requests: NDArray[np.int64], *, calibrated: bool, batch_requests: int = 128
) -> NDArray[np.float32]:
    """Logits [C', tasks] of the shown items of `requests`, in that order; calibrated or raw. In float32, where the model is."""
    training, device = model.training, device_of(model)
    model.eval()
    parts = []
    for start in range(0, len(requests), batch_requests):
        logits = raw_logits(model, maker.batch(requests[start : start + batch_requests]).to(device))
        parts.append((model.score_candidates.calibrated(logits) if calibrated else logits).cpu().numpy())
    model.train(training)
    return np.concatenate(parts) if parts else np.zeros((0, len(model.schema.tasks)), np.float32)


def with_position(
    logits: NDArray[np.float32], bias: NDArray[np.float32], maker: BatchMaker, requests: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Raw logits plus the learned bias [positions, tasks] of where each item was shown (0: unknown)."""
    log = maker.log
    positions = np.clip(log.positions[log.rows_of(requests)].astype(np.int64) + 1, 0, len(bias) - 1)
    return logits + bias[positions] * (positions > 0)[:, None]


def labels_and_weights(maker: BatchMaker, requests: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Labels [C', tasks] in the order of `predict_logits`, and how many of the full distribution each row stands for [C']."""
    rows = maker.log.rows_of(requests)
    return maker.log.labels[rows], maker.log.weights(rows)
