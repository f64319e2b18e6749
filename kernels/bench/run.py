"""Measures the cases of all benchmarks while the time budget lasts: most telling shapes first."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kernels.bench.benchmark import Batch, Benchmark, Case, Prepared, Variant
from kernels.bench.device import Machine
from kernels.bench.gdpa import GDPABenchmark
from kernels.bench.pffn import PFFNBenchmark
from kernels.bench.seed_pooling import SeedPoolingBenchmark
from kernels.bench.timing import Timing, measure
from kernels.bench.window import WindowBenchmark

BENCHMARKS: tuple[type[Benchmark], ...] = (PFFNBenchmark, GDPABenchmark, WindowBenchmark, SeedPoolingBenchmark)
EXACT_SAMPLES = 12
SETS_BYTES_PER_L2 = 3
ERROR_BOUND = 1.5e-2
"""Relative L2 error of bf16 results against float64 that a variant may have at benchmark shapes."""

Direction = Literal["forward", "backward"]


@dataclass(frozen=True)
class Result:
    """One variant on one case in one direction. `failure` instead of figures: why there are none."""

    benchmark: str
    case: str
    variant: str
    direction: Direction
    baseline: bool = False
    comparable: bool = False
    timing: Timing | None = None
    flops: float = 0.0
    moved: float = 0.0
    error: float | None = None
    failure: str = ""

    @property
    def ok(self) -> bool:
        """Whether the kernel's figures stand: the baselines are yardsticks, not products."""
        if self.variant != "triton":
            return True
        return not self.failure and self.error is not None and self.error <= ERROR_BOUND


def plan(machine: Machine, tiny: bool) -> list[tuple[Benchmark, Case, bool]]:
    """(benchmark, case, whether its compiled variants are measured or all others): by priority, benchmarks in turn."""
    benchmarks = [cls(machine.device, tiny) for cls in BENCHMARKS]
    steps = [(float(case.priority), place, (b, case, False)) for b in benchmarks for place, case in enumerate(b.cases())]
    if not tiny:  # a compiler needs minutes on a CPU, and many seconds a case on a GPU: after the second priority
        steps += [(1.5, place, (b, case, True)) for _, place, (b, case, _) in steps if case.compiled]
    return [step for _, _, step in sorted(steps, key=lambda s: s[:2])]


def measure_case(machine: Machine, benchmark: Benchmark, case: Case, compiled: bool) -> Iterator[Result]:
    """The case's `compiled` variants, or all others, the kernels first; forward, then backward."""
    sample = benchmark.batch(case, seed=1)
    bytes_per_set = benchmark.moved_bytes(sample)[0]
    sets = 1 if benchmark.tiny else 1 + min(3, int(SETS_BYTES_PER_L2 * machine.l2_bytes // bytes_per_set))
    batches = [sample, *(benchmark.batch(case, seed) for seed in range(2, 1 + sets))]
    exact = benchmark.exact(sample, EXACT_SAMPLES if not benchmark.tiny else case.sizes["B"])
    for variant in sorted(benchmark.variants(), key=lambda v: v.name != "triton"):
        if variant.compiled is compiled:
            yield from _measure_variant(machine, benchmark, batches, variant, exact)
            gc.collect()
            if machine.device == "cuda":
                torch.cuda.empty_cache()


def _measure_variant(
    machine: Machine,
    benchmark: Benchmark,
    batches: Sequence[Batch],
    variant: Variant,
    exact: Sequence[tuple[Tensor, slice] | None],
) -> Iterator[Result]:
    case, flops, moved = batches[0].case, benchmark.flops(batches[0]), benchmark.moved_bytes(batches[0])
    prepared: list[Prepared] = []
    directions: tuple[Direction, Direction] = ("forward", "backward")
    for place, direction in enumerate(directions):
        facts = {"baseline": variant.baseline, "comparable": variant.comparable, "flops": flops[place], "moved": moved[place]}
        named = (benchmark.name, case.name, variant.name, direction)
        try:
            prepared = prepared or [variant.make(benchmark, batch) for batch in batches]
            error = None if variant.comparable else _error(prepared[0], direction, exact)
            timing = measure([getattr(p, direction) for p in prepared], machine.device)
        except torch.OutOfMemoryError:
            yield Result(*named, **facts, failure="out of memory")  # type: ignore[arg-type]
            return
        except Exception as failure:  # a yardstick that does not run here is reported, and the next one measured
            yield Result(*named, **facts, failure=f"{type(failure).__name__}: {str(failure).splitlines()[0][:200]}")  # type: ignore[arg-type]
            return
        yield Result(*named, **facts, timing=timing, error=error)  # type: ignore[arg-type]


def _error(prepared: Prepared, direction: Direction, exact: Sequence[tuple[Tensor, slice] | None]) -> float:
    """The worst relative L2 error over the output, or over the gradients."""
    if direction == "forward":
        found, wanted, rows = [prepared.forward()], exact[:1], prepared.rows[:1]
    else:
        found, wanted, rows = list(prepared.backward()), exact[1:], prepared.rows[1:]
    worst = 0.0
    for got, want, own in zip(found, wanted, rows, strict=True):
        if want is None:
            continue
        values, where = want
        ours = own(got)[where].double()
        if not torch.isfinite(ours).all():
            return float("inf")
        worst = max(worst, float((ours - values).norm() / values.norm()))
    return worst
