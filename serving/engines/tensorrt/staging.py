"""One bucket's tensors side by side in one block of memory, and the batch that is laid into it.

Inputs of a bucket are uploaded by one copy and outputs come back by another, however many tensors there are. Laying a batch
in fills it up to its bucket: rows beyond are zero, users beyond have no history, candidates beyond are of request 0. Padded
histories that the scheduler stacks become jagged rows here, so padding is never uploaded. Cost: one pass over the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.signature import GraphSignature
from model.tensor_spec import USERS, TensorSpec, row_count
from serving.engines.base import Tensors
from serving.engines.tensorrt.device import ALIGNMENT, HostBlock
from serving.engines.tensorrt.work import Sizes, shape_of


@dataclass(frozen=True)
class Place:
    """Where one tensor lies in a block."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Layout:
    """Places of some tensors; `size`: bytes of the block that they need."""

    places: Mapping[str, Place]
    size: int

    @classmethod
    def of(cls, specs: Sequence[TensorSpec], sizes: Sizes) -> Layout:
        """Tensors in order, each aligned as TensorRT asks; an empty tensor still has an address of its own."""
        places, offset = {}, 0
        for spec in specs:
            shape, dtype = shape_of(spec, sizes), np.dtype(spec.dtype)
            places[spec.name] = Place(offset, shape, dtype)
            size = max(1, prod(shape) * dtype.itemsize)
            offset += -(-size // ALIGNMENT) * ALIGNMENT
        return cls(places, offset)

    def views(self, block: HostBlock) -> dict[str, NDArray[Any]]:
        """The tensors in a host block."""
        return {
            name: block.array[p.offset : p.offset + prod(p.shape) * p.dtype.itemsize].view(p.dtype).reshape(p.shape)
            for name, p in self.places.items()
        }

    def addresses(self, base: int) -> dict[str, int]:
        """The tensors in device memory at `base`."""
        return {name: base + place.offset for name, place in self.places.items()}


def batch_sizes(signature: GraphSignature, inputs: Tensors) -> dict[str, int]:
    """Sizes of a batch that has the inputs of `signature`. Raises `ValueError` naming a tensor that is absent."""
    sizes: dict[str, int] = {}
    for spec in signature.inputs:
        if spec.name not in inputs:
            raise ValueError(f"{signature.name}: expected the input {spec.name}, found {', '.join(sorted(inputs))}")
        sizes |= {size: n for size, n in zip(spec.shape, inputs[spec.name].shape, strict=True) if isinstance(size, str)}
    return sizes


def jagged_sizes(padded: GraphSignature, inputs: Tensors, events: Sequence[str]) -> dict[str, int]:
    """Sizes of the jagged form of a padded batch."""
    users = batch_sizes(padded, inputs)[USERS]
    return {USERS: users, **{row_count(event): int(inputs[f"{event}_length"].sum()) for event in events}}


def lay(inputs: Tensors, views: Mapping[str, NDArray[Any]]) -> None:
    """Lay a batch into the views of its bucket."""
    for name, view in views.items():
        _fill(view, inputs[name])


def lay_jagged(inputs: Tensors, views: Mapping[str, NDArray[Any]], events: Sequence[str]) -> None:
    """The same with padded histories, whose bucket has jagged rows."""
    for name in ("user_rows", "user_dense"):
        if name in views:
            _fill(views[name], inputs[name])
    for event in events:
        lengths, steps = inputs[f"{event}_length"], inputs[f"{event}_age"].shape[1]
        real = np.arange(steps)[None, :] < lengths[:, None]
        for name in (f"{event}_rows", f"{event}_dense", f"{event}_age"):
            if name in views:
                _fill(views[name], inputs[name][real])
        offsets = views[f"{event}_offsets"]
        offsets[0] = 0
        np.cumsum(lengths, out=offsets[1 : len(lengths) + 1])
        offsets[len(lengths) + 1 :] = offsets[len(lengths)]


def _fill(view: NDArray[Any], array: NDArray[Any]) -> None:
    if view.shape == array.shape:
        view[...] = array
        return
    if view.shape[1:] == array.shape[1:]:
        view[len(array) :] = 0
    else:
        view[...] = 0
    view[tuple(slice(size) for size in array.shape)] = array
