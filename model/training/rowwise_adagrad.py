"""Row-wise Adagrad for embedding tables: one accumulator per row, only touched rows are read or written.

Decay is decoupled from the gradient (Loshchilov & Hutter 2019), which over a whole table would multiply every row by
1 − lr_t · decay at every step t. Two forms of it touch only rows that have a gradient:

* `PER_STEP`: for all g steps since the row's last update at once, exp(−lr · decay · g), with the learning rate of the step of
  the update. Under a constant rate that is what decaying the whole table comes to. Under a schedule it is not: the
  g − 1 steps before had rates of their own, so a row that comes back late, when the cosine is low, decays less than the
  whole table would, and one whose gap lies in the warm-up more; and the steps after a row's last update never decay it.
  Seen per update it is a decay by 1 / frequency, as in DIN's mini-batch aware regularisation (Zhou et al. 2018,
  section 5.2): rare ids, which are memorised first, are held hardest per update.
* `PER_TOUCH`: exp(−lr · decay) at each update of a row, so frequent ids are decayed more in all than rare ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from model.training.config import EmbeddingDecay


class RowWiseAdagrad(Optimizer):
    """w_r ← w_r · decay_r − lr · g_r / (√(Σ mean(g_r²)) + eps).

    Parameters must have sparse gradients (`F.embedding(sparse=True)`). Groups of them may have their own `lr`, `weight_decay`
    and `decay`. State per parameter, float32 [rows]: `sum`, and with `PER_STEP` `touched`, the step of the last update
    (exact for 16 million steps).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.04,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decay: EmbeddingDecay = EmbeddingDecay.PER_STEP,
    ) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay, "decay": decay})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["sum"] = torch.zeros(p.shape[0], device=p.device)
                if group["weight_decay"] and group["decay"] is EmbeddingDecay.PER_STEP:
                    self.state[p] |= {"step": torch.zeros(()), "touched": torch.zeros(p.shape[0], device=p.device)}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every row that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if "step" in state:
                    state["step"] += 1
                if p.grad is None:
                    continue
                grad = p.grad.coalesce()
                rows, values = grad.indices()[0], grad.values()
                if group["weight_decay"]:
                    shrink = torch.full_like(state["sum"][rows], -group["lr"] * group["weight_decay"])
                    if "touched" in state:
                        shrink *= float(state["step"]) - state["touched"][rows]
                        state["touched"][rows] = float(state["step"])
                    p.index_copy_(0, rows, p[rows] * shrink.exp().unsqueeze(-1))
                accumulated = state["sum"]
                accumulated.index_add_(0, rows, values.square().mean(-1))
                scale = group["lr"] / (accumulated[rows].sqrt() + group["eps"])
                p.index_add_(0, rows, values * -scale.unsqueeze(-1))
