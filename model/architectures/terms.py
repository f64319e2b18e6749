"""FLOPs of the products that every architecture is made of. One multiply-add is 2 FLOPs. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from model.features import FeatureLayout, GroupLayout
from model.schema import Schema

PRODUCT_WIDTH = 32
"""Products with one row per user or request have an inner width padded to a multiple of this (`row_invariant_linear`)."""

Terms = Iterator[tuple[str, float]]
"""FLOPs by part; a part may come several times."""


@dataclass(frozen=True)
class FeatureWidths:
    """What a schema contributes to the formulas: widths of the concatenated features, tasks, history caps."""

    user: int
    item: int
    context: int
    tasks: int
    events: Mapping[str, int]
    caps: Mapping[str, int]

    @classmethod
    def of(cls, schema: Schema) -> FeatureWidths:
        """The widths of a schema."""
        layout = FeatureLayout(schema)
        return cls(
            user=_width(layout.user),
            item=_width(layout.item),
            context=_width(layout.context),
            tasks=len(schema.tasks),
            events={e.name: _width(layout.events[e.name]) for e in schema.events},
            caps={e.name: e.cap for e in schema.events},
        )


@dataclass(frozen=True)
class ProductWidths:
    """Widths that decide whether bf16 products give a row the same bits in any number of rows (docs/design.md, Equality).

    `streams`: model widths of every stream; `inner`: inner widths of products with one row per user or request.
    """

    streams: tuple[int, ...]
    inner: tuple[int, ...]


def linear(rows: int, inputs: int, outputs: int) -> float:
    """[rows, inputs] · [inputs, outputs]."""
    return 2.0 * rows * inputs * outputs


def padded(inputs: int) -> int:
    """The inner width that the graphs run (`model.layers.tokens.row_invariant_linear`)."""
    return inputs + -inputs % PRODUCT_WIDTH


def row_linear(rows: int, inputs: int, outputs: int, executed: bool) -> float:
    """`row_invariant_linear`: as asked for, or as engines run it."""
    return linear(rows, padded(inputs) if executed else inputs, outputs)


def _width(group: GroupLayout) -> int:
    return group.embedded_width + len(group.dense)
