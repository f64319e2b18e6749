"""Row-wise Adagrad for embedding tables: one accumulator per row, only touched rows are read or written."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer


class RowWiseAdagrad(Optimizer):
    """w_r ← w_r − lr · g_r / (√(Σ mean(g_r²)) + eps), with optional decay of the touched rows.

    Parameters must have sparse gradients (`F.embedding(sparse=True)`).
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.04, eps: float = 1e-8, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["sum"] = torch.zeros(p.shape[0], device=p.device)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every row that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                grad = p.grad.coalesce()
                rows, values = grad.indices()[0], grad.values()
                if group["weight_decay"]:
                    values = values + group["weight_decay"] * p[rows]
                accumulated = self.state[p]["sum"]
                accumulated.index_add_(0, rows, values.square().mean(-1))
                scale = group["lr"] / (accumulated[rows].sqrt() + group["eps"])
                p.index_add_(0, rows, values * -scale.unsqueeze(-1))
