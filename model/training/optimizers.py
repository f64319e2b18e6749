"""The optimizers of a run: AdamW for dense weights, row-wise Adagrad for embedding tables, and their common schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model.config import ConfigError
from model.layers.embedding import EmbeddingTables
from model.ranker import KunlunRanker
from model.training.config import OptimizerConfig
from model.training.rowwise_adagrad import RowWiseAdagrad


class Optimizers:
    """Both optimizers of a model; the learning rate is a function of the step alone."""

    def __init__(self, model: KunlunRanker, position_bias: nn.Module, config: OptimizerConfig, total_steps: int) -> None:
        self.config, self.total_steps = config, total_steps
        graphs = [*model.encode_user.named_parameters(), *model.score_candidates.named_parameters()]
        self.dense_parameters = [*(p for _, p in graphs), *position_bias.parameters()]
        self.table_parameters = [model.tables.weight(name) for name in model.tables.names]
        self.dense = _adamw(self.dense_parameters, list(position_bias.parameters()), config)
        self.sparse = RowWiseAdagrad(_table_groups(model.tables, config), lr=config.sparse_lr)
        for optimizer in (self.dense, self.sparse):
            for group in optimizer.param_groups:
                group["full_lr"] = group["lr"]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self.dense.zero_grad(set_to_none=True)
        self.sparse.zero_grad(set_to_none=True)

    def dense_norm(self) -> Tensor:
        """Norm of the gradients of dense weights, a scalar tensor; not finite when one of them is not."""
        return nn.utils.get_total_norm([p.grad for p in self.dense_parameters if p.grad is not None])

    def sparse_square(self) -> Tensor:
        """Sum of squares of the gradients of embedding rows, a scalar tensor; not finite when one of them is not."""
        squares = [p.grad._values().square().sum() for p in self.table_parameters if p.grad is not None]
        return torch.stack(squares).sum()

    def clip(self, norm: Tensor) -> None:
        """Bring the gradients of dense weights, of norm `norm`, to `clip_norm` at most."""
        nn.utils.clip_grads_with_norm_(self.dense_parameters, self.config.clip_norm, norm)

    def step(self, step: int) -> None:
        """One update with the learning rates of step `step`, from 0."""
        share = learning_rate_share(step, self.total_steps, self.config)
        for optimizer in (self.dense, self.sparse):
            for group in optimizer.param_groups:
                group["lr"] = group["full_lr"] * share
            optimizer.step()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Their state, for a checkpoint."""
        return {"dense_optimizer": _tensors(self.dense), "sparse_optimizer": _tensors(self.sparse)}

    def restore(self, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Put back what `tensors` returned."""
        _restore(self.dense, groups["dense_optimizer"])
        _restore(self.sparse, groups["sparse_optimizer"])


def learning_rate_share(step: int, total: int, config: OptimizerConfig) -> float:
    """Linear warm-up, then a cosine down to `final_lr_share`."""
    warmup = min(config.warmup_steps, total // 4)
    if step < warmup:
        return (step + 1) / warmup
    position = (step - warmup) / max(1, total - warmup)
    final = config.final_lr_share
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, position)))


def _adamw(parameters: Sequence[Tensor], position: Sequence[Tensor], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW; parameters of at most one dimension (biases, most gains) and the position table are not decayed."""
    free = {id(p) for p in position} | {id(p) for p in parameters if p.dim() <= 1}
    groups = [
        {"params": [p for p in parameters if id(p) not in free], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if id(p) in free], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.dense_lr)


def _table_groups(tables: EmbeddingTables, config: OptimizerConfig) -> list[dict[str, Any]]:
    """One group per embedding table, with its own learning rate and decay where the configuration has one."""
    for field in ("table_lr", "table_decay"):
        for name in getattr(config, field):
            if name not in tables.names:
                raise ConfigError(
                    f"optimizer.{field}: expected names of embedding tables ({', '.join(tables.names)}), found {name!r}"
                )
    return [
        {
            "params": [tables.weight(name)],
            "lr": config.table_lr.get(name, config.sparse_lr),
            "weight_decay": config.table_decay.get(name, config.embedding_decay),
            "decay": config.embedding_decay_kind,
        }
        for name in tables.names
    ]


def _tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State tensors of an optimizer, keyed ``<parameter number>.<name>``."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": torch.as_tensor(value) for number, entry in state.items() for name, value in entry.items()}


def _restore(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        entries.setdefault(int(number), {})[name] = value
    state = optimizer.state_dict()
    optimizer.load_state_dict({"state": entries, "param_groups": state["param_groups"]})
