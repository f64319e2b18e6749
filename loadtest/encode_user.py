"""The whole `encode_user` graph of the CPU engine, with the PFFN block as operators and as one operation, side by side.

The preset `small` with the schema of the bench (histories of up to `CAP` clicks and half as many carts) and random weights,
exported and compiled as for the server. Both forms of every shape run in turn, round after round, in one process on one
thread; the order within a round alternates. Times are the process's CPU time; a gain is the median over rounds of
operators ÷ operation. Part of `python -m loadtest.cpu_graph`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray

from model.architectures.registry import load_preset
from model.cli.console import note, progress_bar
from model.data.synthetic import CART, CLICK, synthetic_schema
from model.export.graphs import export_graph
from model.ranker import KunlunRanker
from serving.engines.openvino_engine import cpu_settings
from serving.engines.openvino_kernels.build import Kernels, load
from serving.engines.openvino_kernels.fuse import fuse_pffn

CAP, SEED, BLOCK_S = 1024, 20_261_126, 0.05
STEPS, USERS = (64, 256, 1024), (1, 4)
"""Clicks per user (and half as many carts); users of a batch."""
WORTH_IT, LONG = 1.05, 256
"""The least gain that is worth a C++ compiler, in every shape of at least `LONG` clicks."""

Arrays = dict[str, NDArray[Any]]


@dataclass
class Pair:
    """One shape: the graph of operators and the one with fused blocks, and their rounds of CPU seconds per call."""

    plain: Callable[[], Any]
    fused: Callable[[], Any]
    calls: int = 1
    seconds: list[tuple[float, float]] = field(default_factory=list)

    def warm(self) -> None:
        """First uses, and as many calls per block as fill `BLOCK_S`."""
        self.plain()
        self.fused()
        self.calls = max(1, round(BLOCK_S / max(_cpu_seconds(self.plain, 1), 1e-6)))

    def block(self, fused_first: bool) -> None:
        """One round of both."""
        if fused_first:
            fused = _cpu_seconds(self.fused, self.calls)
            self.seconds.append((_cpu_seconds(self.plain, self.calls), fused))
        else:
            plain = _cpu_seconds(self.plain, self.calls)
            self.seconds.append((plain, _cpu_seconds(self.fused, self.calls)))

    def figures(self) -> dict[str, float]:
        """Medians in ms, the gain, and the quartiles of the gain over rounds."""
        plain, fused = np.array(self.seconds).T
        low, gain, high = np.quantile(plain / fused, (0.25, 0.5, 0.75))
        return {
            "plain_ms": round(1e3 * float(np.median(plain)), 3),
            "fused_ms": round(1e3 * float(np.median(fused)), 3),
            "gain": round(float(gain), 3),
            "gain_low": round(float(low), 3),
            "gain_high": round(float(high), 3),
        }


def _cpu_seconds(run: Callable[[], Any], calls: int) -> float:
    began = time.process_time()
    for _ in range(calls):
        run()
    return (time.process_time() - began) / calls


def graph() -> tuple[Any, Callable[[int, int], Arrays]]:
    """`encode_user` as exported, and a maker of its inputs for (users, clicks)."""
    torch.manual_seed(SEED)
    schema = synthetic_schema(CAP)
    model = KunlunRanker(schema, load_preset("small"), dict.fromkeys(schema.tables, 64)).eval()
    signature, rng = model.encode_user.signature, np.random.default_rng(SEED)

    def inputs(users: int, clicks: int) -> Arrays:
        sizes: dict[str, int] = {"U": users, f"T_{CLICK}": clicks, f"T_{CART}": clicks // 2}
        arrays: Arrays = {}
        for spec in signature.inputs:
            shape = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
            if spec.name.endswith("_length"):
                arrays[spec.name] = np.full(shape, sizes["T_" + spec.name.removesuffix("_length")], spec.dtype)
            else:
                arrays[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
            if spec.name.endswith("_age"):
                arrays[spec.name] = np.abs(arrays[spec.name]) * 1e4
        return arrays

    example = {name: torch.from_numpy(array) for name, array in inputs(3, 64).items()}
    proto = export_graph(model.encode_user, signature, example)
    return ov.Core().read_model(proto.SerializeToString()), inputs


def measure(precision: str, rounds: int, library: Path) -> dict[str, dict[str, float]]:
    """By shape (``users x clicks``): see `Pair.figures`."""
    plain, inputs = graph()
    fused = plain.clone()
    blocks = fuse_pffn(fused, library, bf16=precision == "bf16" and load(library) is Kernels.BF16)
    if not blocks:
        raise RuntimeError("expected PFFN blocks in encode_user, found none")
    pairs = {}
    for users in USERS:
        for clicks in STEPS:
            made = inputs(users, clicks)
            pairs[f"{users}x{clicks}"] = Pair(_compiled(plain, precision, made), _compiled(fused, precision, made))
    for pair in pairs.values():
        pair.warm()
    with progress_bar(False) as bar:
        task = bar.add_task(f"encode_user, {precision}", total=rounds, note="")
        for number in range(rounds):
            for pair in pairs.values():
                pair.block(fused_first=number % 2 == 1)
            bar.advance(task)
    found = {shape: pair.figures() for shape, pair in pairs.items()}
    note(f"[bold]encode_user, {precision}[/]: operators ÷ {blocks} fused blocks")
    for shape, row in found.items():
        note(f"  {shape:8s} {row['plain_ms']:7.2f} ms ÷ {row['fused_ms']:7.2f} ms = {row['gain']:.2f}")
    return found


def least_gain(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> float:
    """Of the long shapes, over all precisions."""
    return min(row["gain"] for shapes in found.values() for shape, row in shapes.items() if int(shape.split("x")[1]) >= LONG)


def _compiled(model: Any, precision: str, inputs: Mapping[str, NDArray[Any]]) -> Callable[[], Any]:
    own = model.clone()
    own.reshape({name: list(array.shape) for name, array in inputs.items()})
    request = ov.Core().compile_model(own, "CPU", cpu_settings(precision, 1)).create_infer_request()
    return lambda: request.infer(inputs, share_inputs=True, share_outputs=True)
