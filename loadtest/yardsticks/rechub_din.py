"""DIN of torch-rechub on our batches: the training step of a public library, for speed comparisons.

The library takes one row per example, so everything of the user is repeated for each shown item. Its `CTRTrainer` keeps
forward, loss, backward and Adam in one method that also walks a DataLoader; `step` does the same to a batch that is
ready, which leaves the library's data loading out of what is measured. Needs the extra `compare` (never part of the product).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model.features import PAD_ROW, FeatureLayout
from model.schema import Schema
from model.training.batches import Batch


class RechubDIN:
    """DIN of a schema whose tables all have one width and whose item features are ids; `step` trains on one batch."""

    def __init__(self, schema: Schema, table_rows: dict[str, int], attention_hidden: int, hidden: tuple[int, ...]) -> None:
        from torch_rechub.basic.features import SequenceFeature, SparseFeature
        from torch_rechub.models.ranking import DIN

        self.layout, self.events = FeatureLayout(schema), [e.name for e in schema.events]
        widths = self.layout.table_widths()

        def sparse(name: str, table: str, shared: str | None = None) -> Any:
            return SparseFeature(name, table_rows[table] + 1, widths[table], shared_with=shared)  # row 0 is the padding

        def sequence(name: str, table: str, shared: str | None, pooling: str) -> Any:
            return SequenceFeature(name, table_rows[table] + 1, widths[table], pooling, shared_with=shared, padding_idx=0)

        item_table = schema.item.table
        rest = self.layout.item.slots[1:]
        features = [sequence(s.feature, s.table, None, "mean") if s.is_multi else sparse(s.feature, s.table) for s in rest]
        targets = [sparse("item", item_table), *(sparse(f"item_{e}", item_table, "item") for e in self.events[1:])]
        histories = [sequence(f"hist_{e}", item_table, "item", "concat") for e in self.events]
        self.model: nn.Module = DIN(
            features=features,
            history_features=histories,
            target_features=targets,
            mlp_params={"dims": list(hidden)},
            attention_mlp_params={"dims": [attention_hidden], "activation": "prelu"},
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, weight_decay=1e-5)
        self.loss = nn.BCELoss()

    def inputs(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """A batch as the library takes it: ids [C] or [C, values] by feature, and labels [C]."""
        x: dict[str, Tensor] = {"item": batch.items.rows[:, 0].long() + 1}
        x |= {f"item_{event}": x["item"] for event in self.events[1:]}
        for event in self.events:
            history = batch.histories[event]
            real = torch.arange(history.age_s.shape[1])[None, :] < history.lengths[:, None]
            ids = torch.where(real, history.events.rows[..., 0].long() + 1, 0)
            x[f"hist_{event}"] = ids.index_select(0, batch.request_index)
        column = 1
        for slot in self.layout.item.slots[1:]:
            ids = batch.items.rows[:, column : column + slot.values].long()
            ids = torch.where(ids == PAD_ROW, 0, ids + 1)
            x[slot.feature] = ids if slot.is_multi else ids[:, 0]
            column += slot.values
        return x, batch.labels[:, 0]

    def step(self, x: dict[str, Tensor], labels: Tensor) -> float:
        """One step of `CTRTrainer.train_one_epoch`; the loss."""
        loss = self.loss(self.model(x), labels)
        self.model.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.item())
