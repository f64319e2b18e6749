"""Logistic regression by scikit-learn on the one-hot form of what the models read: the convex yardstick.

Columns are the rows of every embedded slot of user, context and item (multi-valued ones share 1 between their values) and the
normalised numbers, history lengths among them; built from the same encoder as training batches, by request.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from model.features import PAD_ROW, GroupLayout
from model.training.batches import BatchMaker

CHUNK = 256


def one_hot(maker: BatchMaker, requests: NDArray[np.int64]) -> sp.csr_matrix:
    """Matrix [C', columns] of the shown items of `requests`, in log order."""
    layout, sizes = maker.encoder.layout, maker.encoder.table_rows()
    parts = []
    for start in range(0, len(requests), CHUNK):
        batch = maker.batch(requests[start : start + CHUNK])
        index = batch.request_index.numpy()
        groups = [
            (layout.user, batch.users.rows.numpy()[index], batch.users.dense.numpy()[index]),
            (layout.context, batch.contexts.rows.numpy()[index], batch.contexts.dense.numpy()[index]),
            (layout.item, batch.items.rows.numpy(), batch.items.dense.numpy()),
        ]
        blocks = [block for group, rows, dense in groups for block in _group(group, rows, dense, sizes)]
        parts.append(sp.hstack(blocks, format="csr"))
    return sp.vstack(parts, format="csr")


def fitted(features: sp.csr_matrix, labels: NDArray[np.float32], *, c: float = 0.3, seed: int = 0) -> LogisticRegression:
    """A logistic regression with the L2 penalty 1 / c, solved to convergence."""
    return LogisticRegression(C=c, max_iter=1_000, random_state=seed).fit(features, labels)


def _group(group: GroupLayout, rows: NDArray[np.int32], dense: NDArray[np.float32], sizes: dict[str, int]) -> list[Any]:
    blocks, column, count = [sp.csr_matrix(dense)], 0, len(rows)
    for slot in group.slots:
        part = rows[:, column : column + slot.values]
        column += slot.values
        present = part != PAD_ROW
        weights = np.broadcast_to(1.0 / np.maximum(present.sum(1, keepdims=True), 1), part.shape)[present]
        at = (np.repeat(np.arange(count), present.sum(1)), part[present])
        blocks.append(sp.csr_matrix((weights, at), shape=(count, sizes[slot.table]), dtype=np.float32))
    return blocks
