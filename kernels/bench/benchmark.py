"""What a benchmark is: a class with cases, inputs, a float64 reference, and variants, one of them the baseline.

Every variant turns one input set into zero-argument callables, forward and backward; accuracy and speed come from the
same inputs. FLOPs and bytes are those of the operator (rows that are padding count for nothing; every input is read
once and every output written once), so all variants are held against the same roofline.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

Rows = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """One shape: `sizes` are the benchmark's own. Cases of lower `priority` are measured first, while time lasts."""

    name: str
    sizes: dict[str, Any]
    priority: int = 1
    compiled: bool = True
    """Whether `torch.compile` variants are worth their compilation here."""


@dataclass(frozen=True)
class Batch:
    """One input set: `leaves` get gradients, `d_out` is the output's; `layout` is what else the operator takes."""

    case: Case
    leaves: tuple[Tensor, ...]
    d_out: Tensor
    layout: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """A variant over one batch. `rows`: the variant's layout of (output, *gradients) → the benchmark's own."""

    forward: Callable[[], Tensor]
    backward: Callable[[], Sequence[Tensor]]
    rows: tuple[Rows, ...] = ()


@dataclass(frozen=True)
class Variant:
    """`make(benchmark, batch)` prepares it. `comparable`: computes another function (softmax) of the same shapes."""

    name: str
    make: Callable[[Any, Batch], Prepared]
    baseline: bool = False
    compiled: bool = False
    comparable: bool = False


def variant(
    name: str, *, baseline: bool = False, compiled: bool = False, comparable: bool = False
) -> Callable[[Callable[[Any, Batch], Prepared]], Callable[[Any, Batch], Prepared]]:
    """Register a method of a `Benchmark` as a variant."""

    def mark(make: Callable[[Any, Batch], Prepared]) -> Callable[[Any, Batch], Prepared]:
        make.variant = Variant(name, make, baseline, compiled, comparable)  # type: ignore[attr-defined]
        return make

    return mark


class Benchmark(ABC):
    """One operator."""

    name: ClassVar[str]
    what: ClassVar[str]

    def __init__(self, device: str, tiny: bool) -> None:
        self.device, self.tiny = device, tiny

    @abstractmethod
    def cases(self) -> list[Case]:
        """Shapes, from the published grid; tiny ones for a dry run."""

    @abstractmethod
    def batch(self, case: Case, seed: int) -> Batch:
        """Fresh random inputs."""

    @abstractmethod
    def flops(self, batch: Batch) -> tuple[float, float]:
        """Forward and backward."""

    @abstractmethod
    def moved_bytes(self, batch: Batch) -> tuple[float, float]:
        """Forward and backward."""

    @abstractmethod
    def exact(self, batch: Batch, samples: int) -> list[tuple[Tensor, slice] | None]:
        """(output, *gradients) of the first `samples` samples in float64, each with its rows in the whole.

        None: not compared.
        """

    def variants(self) -> list[Variant]:
        """Registered ones, the baseline first."""
        members = (getattr(type(self), name, None) for name in dir(type(self)))
        found = [member.variant for member in members if isinstance(getattr(member, "variant", None), Variant)]  # type: ignore[union-attr]
        return sorted(found, key=lambda v: (not v.baseline, v.compiled, v.name))


def of_autograd(forward: Callable[[], Tensor], leaves: Sequence[Tensor], d_out: Tensor, rows: tuple[Rows, ...]) -> Prepared:
    """A variant whose backward is autograd's: its graph is built once, at the first backward."""
    graph: list[Tensor] = []

    def without_graph() -> Tensor:
        with torch.no_grad():
            return forward()

    def backward() -> Sequence[Tensor]:
        if not graph:
            graph.append(forward())
        return torch.autograd.grad(graph[0], leaves, d_out, retain_graph=True)

    return Prepared(without_graph, backward, rows)


def same(rows: Tensor) -> Tensor:
    """The benchmark's own layout."""
    return rows


def uniform_lengths(count: int, longest: int, sparsity: float, seed: int) -> list[int]:
    """Meta's generator: all `longest` at sparsity 1; at s ≥ 0.5 uniform on [(2s − 1) · longest, longest)."""
    if sparsity == 1.0:
        return [longest] * count
    low = round((2 * sparsity - 1) * longest)
    return torch.randint(low, longest, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def offsets_of(lengths: Sequence[int], device: str) -> Tensor:
    """int32 [B+1]."""
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device=device)


class Padding:
    """Between jagged rows [sum_T, …] and padded rows [B, longest, …]."""

    def __init__(self, lengths: Sequence[int], longest: int, device: str) -> None:
        self.shape = (len(lengths), longest)
        real = torch.arange(longest, device=device) < torch.tensor(lengths, device=device)[:, None]
        self.index = real.flatten().nonzero().squeeze(1)

    def pad(self, rows: Tensor) -> Tensor:
        flat = rows.new_zeros((self.shape[0] * self.shape[1], *rows.shape[1:]))
        return flat.index_copy(0, self.index, rows).unflatten(0, self.shape)

    def unpad(self, padded: Tensor) -> Tensor:
        return padded.flatten(0, 1)[self.index]
