"""Embedding tables for training: the torch form of `model.features.gather`, with sparse gradients.

Row 0 of every table stands for unknown and missing values and is trained like any other row (id
dropout feeds it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.architectures.base import EMBEDDING_DEVIATION
from model.features import PAD_ROW, GroupLayout


@dataclass(frozen=True)
class InputDropout:
    """What training hides of embedded inputs: known ids by table (replaced by row 0), then single columns (set to 0)."""

    ids: Mapping[str, float]
    columns: float = 0.0


class EmbeddingTables(nn.Module):
    """All tables, by name. `gather` equals the host's gather over the same rows."""

    def __init__(self, rows: Mapping[str, int], widths: Mapping[str, int], deviation: float = EMBEDDING_DEVIATION) -> None:
        super().__init__()
        self.names = tuple(sorted(rows))
        # Dots are separators in module names; bucket tables are called "<group>.<feature>".
        self.weights = nn.ParameterDict(
            {_module_name(t): nn.Parameter(torch.randn(rows[t], widths[t]) * deviation) for t in self.names}
        )

    def weight(self, table: str) -> nn.Parameter:
        """The parameter [rows, width] of one table."""
        return self.weights[_module_name(table)]

    def gather(self, layout: GroupLayout, rows: Tensor, dropout: InputDropout | None = None) -> Tensor:
        """Embedded columns [..., embedded_width] of table rows int [..., index_width]; `dropout` in training only."""
        columns, index = [rows.new_zeros((*rows.shape[:-1], 0), dtype=torch.float32)], 0
        for slot in layout.slots:
            part = rows[..., index : index + slot.values].long()
            index += slot.values
            hidden = 0.0 if dropout is None else dropout.ids[slot.table]
            if hidden > 0:
                part = part.masked_fill((torch.rand(part.shape, device=part.device) < hidden) & (part > 0), 0)
            valid = (part != PAD_ROW).unsqueeze(-1)
            found = F.embedding(part.clamp(min=0), self.weight(slot.table), sparse=True)
            if not slot.is_multi:
                columns.append(found.squeeze(-2))
            else:
                columns.append((found * valid).sum(-2) / valid.sum(-2).clamp(min=1))
        embedded = torch.cat(columns, dim=-1)
        return F.dropout(embedded, dropout.columns) if dropout is not None and dropout.columns > 0 else embedded


def _module_name(table: str) -> str:
    return "table_" + table.replace(".", "__")
