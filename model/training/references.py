"""What a run leaves behind for serving besides weights: the popularity prior, the reference of scores, golden inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.artifact import ScoreReference
from model.data.request_log import RequestLog
from model.layers.served_form import served_form
from model.metrics.score_histogram import score_histogram
from model.ranker import KunlunRanker
from model.schema import Schema
from model.training.batches import BatchMaker
from model.training.forward import encode_inputs, score_inputs
from model.training.label_counts import label_counts

PRIOR_STRENGTH = 20.0
GOLDEN_REQUESTS = 6


def popularity_prior(log: RequestLog, train: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Smoothed label rate per item and task: (positives + 20 · base rate) / (shown + 20), by `label_counts`.

    `keys` int64 [N] sorted, `rates` float32 [N, tasks], `default` float32 [tasks] for other items.
    """
    count, positive = label_counts(log, train)
    base = positive.sum(axis=0) / np.maximum(count.sum(axis=0), 1)
    seen = count.max(axis=1) > 0
    rates = (positive + PRIOR_STRENGTH * base) / (count + PRIOR_STRENGTH)
    order = np.argsort(log.item_keys[seen])
    return {
        "keys": log.item_keys[seen][order],
        "rates": rates[seen][order].astype(np.float32),
        "default": base.astype(np.float32),
    }


def score_references(
    schema: Schema, probabilities: NDArray[np.float32], labels: NDArray[np.float32], weights: NDArray[np.float64]
) -> dict[str, ScoreReference]:
    """Per task from served probabilities and labels [C, tasks] and weights [C]; tasks without a known label are left out."""
    references = {}
    for number, task in enumerate(schema.tasks):
        known = ~np.isnan(labels[:, number])
        if known.any():
            p, y, w = probabilities[known, number], labels[known, number], weights[known]
            references[task.name] = ScoreReference(
                histogram=tuple(score_histogram(p, w).tolist()), base_rate=float(np.average(y, weights=w))
            )
    return references


@torch.no_grad()
def golden_batch(model: KunlunRanker, maker: BatchMaker, requests: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Inputs and the twin's outputs of both graphs on a few requests, keyed ``<graph>/<tensor>``."""
    model.eval()
    batch = maker.batch(requests[:GOLDEN_REQUESTS])
    encode, score = model.encode_user, model.score_candidates
    first = encode_inputs(model, batch)
    with served_form():
        states = encode(*first.values())
        second = score_inputs(model, batch, states)
        outputs = score(*second.values())
    tensors = {f"encode_user/{k}": v for k, v in first.items()}
    tensors |= {f"score_candidates/{k}": v for k, v in second.items()}
    tensors |= {f"encode_user/{s.name}": t for s, t in zip(encode.signature.outputs, states, strict=True)}
    tensors |= {f"score_candidates/{s.name}": t for s, t in zip(score.signature.outputs, outputs, strict=True)}
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in tensors.items()}
