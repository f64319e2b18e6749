"""What learns: the model on its device with optimizers, averages and running statistics; one update, and their state.

An update is a function of its batch, of the step and of what is here: noise is seeded by the step, never by what ran before.
`Trainer` decides which batches come when, and what becomes of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.training.averaging import weight_average
from model.training.batches import Batch
from model.training.device import Compute
from model.training.forward import PositionBias, masked_bce, raw_logits
from model.training.hiding import input_dropout
from model.training.optimizers import Optimizers
from model.training.run import TrainingRun
from model.training.running_statistics import RunningStatistics

Groups = dict[str, dict[str, Tensor]]


class Learner:
    """A run's freshly initialised model, and all that an update of it needs; `planned_steps`: of the learning rate.

    `examples` [tasks]: what sums over a batch's examples are divided by (None: by their own number). Raises `ConfigError` for
    tables that are not there and for hidden dropout that has no place.
    """

    def __init__(
        self, run: TrainingRun, compute: Compute, planned_steps: int, examples: NDArray[np.float64] | None = None
    ) -> None:
        self.config, self.compute = run.config, compute
        device, tasks = compute.device, run.schema.tasks
        torch.manual_seed(self.config.seed)
        self.model = run.new_model().to(device)  # drawn on the host, so the same on every device
        self.position_bias = PositionBias(len(tasks)).to(device)
        self.task_weights = torch.tensor([t.weight for t in tasks], device=device)
        self.examples = None if examples is None else torch.tensor(examples, dtype=torch.float32, device=device)
        self.dropout = input_dropout(self.model, self.config.augment)
        self.running = RunningStatistics(self.model)
        self.optimizers = Optimizers(self.model, self.position_bias, self.config.optimizer, planned_steps)
        self.begin_average()

    def begin_average(self) -> None:
        """Begin the average of weights, if there is to be one, with those of now."""
        self.average = weight_average(self.model, self.position_bias, self.config.optimizer.average_decay)

    def update(self, batch: Batch, step: int) -> tuple[float, bool]:
        """The loss of a batch, and whether it has changed the weights: not where the loss or a gradient is not finite.

        Waits for the device once, when that is read. Gradients stay, so that what was not finite can be looked at.
        """
        torch.manual_seed((self.config.seed << 32) + step)
        self.model.train()
        self.running.remember()
        batch = batch.to(self.compute.device)
        with self.compute.autocast():
            logits = raw_logits(self.model, batch, self.dropout).float()
        if self.config.position_debias:
            logits = logits + self.position_bias(batch.positions)
        loss = masked_bce(logits, batch.labels, self.task_weights, self.examples)
        self.optimizers.zero_grad()
        loss.backward()
        norm, squares = self.optimizers.dense_norm(), self.optimizers.sparse_square()
        found, *others = torch.stack([loss.detach(), norm, squares]).tolist()
        if not all(map(math.isfinite, (found, *others))):
            self.running.restore()
            return found, False
        self.optimizers.clip(norm)
        if self.average is not None:
            self.average.before_step()
        self.optimizers.step(step)
        if self.average is not None:
            self.average.after_step()
        return found, True

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter by name, those of the position bias as ``position.…``."""
        return dict([*self.model.named_parameters(), *self.position_bias.named_parameters(prefix="position")])

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the weights are their averages, where there are any."""
        return nullcontext() if self.average is None else self.average.swapped_in()

    def weights(self) -> Groups:
        """Weights and buffers, for a checkpoint that serves."""
        return {"model": self.model.state_dict(), "position": self.position_bias.state_dict()}

    def load(self, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Put back what `weights` returned."""
        self.model.load_state_dict(groups["model"])
        self.position_bias.load_state_dict(groups["position"])

    def tensors(self) -> Groups:
        """Everything, for a checkpoint that training continues from."""
        averages = {} if self.average is None else self.average.tensors()
        return self.weights() | self.optimizers.tensors() | averages

    def restore(self, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Put back what `tensors` returned."""
        self.load(groups)
        self.optimizers.restore(groups)
        if self.average is not None:
            self.average.restore(groups)
