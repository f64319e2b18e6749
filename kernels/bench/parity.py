"""Every operator against its plain form in float64: forward and gradients, dtypes, ragged shapes, each use of GDPA.

An error is relative in the L2 norm. It may be twice what the plain form itself loses in that dtype on this device, plus a
floor for rounding; NaN never passes. `python -m kernels.bench.parity --small --bf16` is what the sanitizer runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.activations import NAMES
from kernels.bench.benchmark import offsets_of
from kernels.dispatch import GDPAParams, Jagged, gdpa, pffn, seed_pooling, window_attention
from kernels.gdpa.reference import gdpa_jagged
from kernels.pffn.reference import pffn_jagged
from kernels.seed_pooling.reference import seed_pooling_jagged
from kernels.window.reference import window_attention_jagged

RAGGED = [130, 0, 1, 64, 257, 37]
DTYPES = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}
"""Dtype → floor of the bound: what rounding the output alone costs, twice."""


@dataclass(frozen=True)
class Operation:
    """An operator, its plain form, and the shapes of what gets gradients."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    operator: Callable[..., Tensor]
    plain: Callable[..., Tensor]


@dataclass(frozen=True)
class Parity:
    """One comparison."""

    operation: str
    dtype: str
    errors: dict[str, float]
    bounds: dict[str, float]

    @property
    def ok(self) -> bool:
        """Whether every error is within its bound."""
        return all(self.errors[what] <= self.bounds[what] for what in self.errors)

    @property
    def share(self) -> float:
        """The worst error as a share of its bound."""
        return max(self.errors[what] / self.bounds[what] for what in self.errors)


def operations(device: str, small: bool) -> Iterator[Operation]:
    """`small`: one of each kind on few rows."""
    lengths = [17, 0, 1, 40] if small else RAGGED
    heads, samples, total = 2, len(lengths), sum(lengths)
    offsets = offsets_of(lengths, device)
    for width in (32,) if small else (128, 64, 96):
        rows = (total, heads, width)
        for n_kv in (16,) if small else (128, 256, 40):
            params = GDPAParams(("fast_gelu",), width**-0.5, 0.7)
            shapes = (rows, (samples * n_kv, heads, width), (samples * n_kv, heads, width))
            yield _gdpa(f"gdpa d_h {width}, KV {n_kv}", shapes, params, Jagged(offsets, n_kv))
            yield _pffn(f"pffn d_h {width}, KV {n_kv}", shapes, params, Jagged(offsets, n_kv))
        yield _gdpa(f"gdpa d_h {width}, jagged KV", (rows,) * 3, params, Jagged(offsets, k_offsets=offsets))
        for window in (5,) if small else (5, 100, 1000):
            yield Operation(
                f"window_attention d_h {width}, w {window}",
                (rows,) * 3,
                lambda q, k, v, w=window: window_attention(q, k, v, offsets, w, backend="triton"),
                lambda q, k, v, w=window: window_attention_jagged(q, k, v, offsets, w)[0],
            )
        for seeds in (19,) if small else (19, 256):
            yield Operation(
                f"seed_pooling d_h {width}, {seeds} seeds",
                ((seeds, heads, width), rows, rows),
                lambda e, k, v: seed_pooling(e, k, v, offsets, backend="triton"),
                lambda e, k, v: seed_pooling_jagged(e, k, v, offsets)[0],
            )
    width, n_kv = (32, 16) if small else (128, 128)
    rows, kv, params = (total, heads, width), (samples * n_kv, heads, width), GDPAParams(("fast_gelu",), width**-0.5, 0.7)
    yield _gdpa("gdpa banded", (rows,) * 3, params, Jagged(offsets, k_offsets=offsets, window=7))
    shared = Jagged(offsets_of([24], device), k_offsets=offsets, shared_q=True)
    yield _gdpa("gdpa shared queries", ((24, heads, width), rows, rows), params, shared)
    readers = torch.tensor([1, 0, 1, 0, 0, 1][:samples], dtype=torch.int32, device=device)
    several = ((2 * n_kv, heads, width),) * 2
    yield _gdpa("gdpa candidates of two users", (rows, *several), params, Jagged(offsets, n_kv, readers))
    yield _pffn("pffn candidates of two users", (rows, *several), params, Jagged(offsets, n_kv, readers))
    for names in [("silu", "relu")] if small else [*((name,) for name in NAMES), ("silu", "relu")]:
        yield _gdpa(f"gdpa {'+'.join(names)}", (rows, kv, kv), replace(params, activation=names), Jagged(offsets, n_kv))


def compare(operation: Operation, dtype: torch.dtype, device: str, seed: int = 0) -> Parity:
    """Output and gradients in `dtype` against the plain form in float64, and the plain form in `dtype` for the bound."""
    generator = torch.Generator(device).manual_seed(seed)
    leaves = [torch.randn(s, generator=generator, device=device).to(dtype) for s in operation.shapes]
    exact = _results(operation.plain, [x.double() for x in leaves], seed)
    plain, found = (_results(f, leaves, seed) for f in (operation.plain, operation.operator))
    names = ("out", *(f"d{n}" for n in range(len(leaves))))
    errors = {name: _error(x, y) for name, x, y in zip(names, found, exact, strict=True)}
    bounds = {name: 2 * _error(x, y) + DTYPES[dtype] for name, x, y in zip(names, plain, exact, strict=True)}
    return Parity(operation.name, str(dtype).removeprefix("torch."), errors, bounds)


@dataclass(frozen=True)
class Task:
    """One comparison to make, by the place of its operation in `operations(device, small)`."""

    device: str
    small: bool
    place: int
    dtype: torch.dtype

    def run(self) -> Parity:
        """Make it; any process can."""
        return compare(list(operations(self.device, self.small))[self.place], self.dtype, self.device)

    @property
    def name(self) -> str:
        """For people."""
        operation = list(operations(self.device, self.small))[self.place]
        return f"{operation.name}, {str(self.dtype).removeprefix('torch.')}"


def tasks(device: str, small: bool) -> list[Task]:
    """Every operation in every dtype, bfloat16 first; tensors are made when a task runs."""
    count = len(list(operations(device, small)))
    return [Task(device, small, place, dtype) for dtype in reversed(DTYPES) for place in range(count)]


def _results(f: Callable[..., Tensor], leaves: Sequence[Tensor], seed: int) -> list[Tensor]:
    given = [x.clone().requires_grad_() for x in leaves]
    out = f(*given)
    generator = torch.Generator(out.device).manual_seed(seed + 1)
    d_out = torch.randn(out.shape, generator=generator, device=out.device).to(leaves[0].dtype).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, given, d_out)]


def _error(got: Tensor, want: Tensor) -> float:
    if not torch.isfinite(got).all():
        return float("inf")
    norm = float(want.double().norm())
    return float((got.double() - want.double()).norm()) / (norm or 1.0)


def _gdpa(name: str, shapes: tuple[tuple[int, ...], ...], params: GDPAParams, jagged: Jagged) -> Operation:
    return Operation(
        name,
        shapes,
        lambda q, k, v: gdpa(q, k, v, params, jagged, backend="triton"),
        lambda q, k, v: gdpa_jagged(q, k, v, params, jagged),
    )


def _pffn(name: str, shapes: tuple[tuple[int, ...], ...], params: GDPAParams, jagged: Jagged) -> Operation:
    return Operation(
        name,
        shapes,
        lambda q, k, v: pffn(q, k, v, params, jagged, backend="triton"),
        lambda q, k, v: pffn_jagged(q, k, v, params, jagged),
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.bench.parity", description=__doc__)
    parser.add_argument("--small", action="store_true", help="one of each kind on few rows")
    parser.add_argument("--bf16", action="store_true", help="in bfloat16 alone")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    failed = 0
    chosen = [task for task in tasks(device, arguments.small) if not arguments.bf16 or task.dtype == torch.bfloat16]
    for parity in map(Task.run, chosen):
        failed += not parity.ok
        sys.stdout.write(f"{'ok ' if parity.ok else 'BAD'} {parity.operation}, {parity.dtype}: {parity.errors}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
