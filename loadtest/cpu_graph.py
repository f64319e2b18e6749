"""`python -m loadtest.cpu_graph`: the parts of the user stream in the CPU engine against its own matrix-product peak.

Each part is exported as the model exports it and compiled as the server compiles it, one thread, static shapes. All parts
and the peak's probe run in turn, round after round, in one process, timed by the process's CPU time (neighbours steal wall
time). FLOPs are those of real pairs and rows. The PFFN block runs twice: as operators, and as the engine's own kernel
(`serving/engines/openvino_kernels`). Then the whole `encode_user` runs both ways (`loadtest.encode_user`). The last line is one
JSON object; `ok` when the kernel reaches `TARGET` of the peak in every precision at its largest shape of a model, and gains
`WORTH_IT` end to end.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kernels.dispatch import GDPAParams
from kernels.gdpa.padded import gdpa_padded
from kernels.pffn.padded import pffn_padded
from loadtest import encode_user
from loadtest.bench import precisions
from model.architectures.kunlun.flops import gdpa, seed_pooling, self_attention
from model.architectures.kunlun.stack import StackConfig
from model.architectures.registry import load_preset
from model.cli.console import note, progress_bar
from model.layers.seed_pooling import HierarchicalSeedPooling
from model.layers.self_attention import SelfAttention
from serving.engines.openvino_engine import PROBE_ROWS, PROBE_WIDTH, cpu_settings, peak_probe
from serving.engines.openvino_kernels.build import LIBRARY, Kernels, KernelsUnavailable, build, load
from serving.engines.openvino_kernels.fuse import fuse_pffn

TARGET, SEED, BLOCK_S, CAP = 0.7, 20_261_126, 2e-3, 1024


@dataclass(frozen=True)
class Width:
    """A tower: model width, heads, rows of generated K/V, seeds, window."""

    name: str
    d: int
    heads: int
    n_kv: int
    n_seeds: int = 32
    n_tokens: int = 8
    rank: int = 4
    window: int = 50


SMALL, LARGE = Width("small", 128, 2, 64), Width("large", 384, 3, 128, n_seeds=64, n_tokens=16)
SHAPES = ((1, 50), (1, 256), (1, 1024), (2, 256), (4, 256))
"""(users, history length)."""


class GDPA(nn.Module):
    """GDPA or, with the norms and residuals, the PFFN block."""

    def __init__(self, operator: Callable[..., Tensor], width: Width) -> None:
        super().__init__()
        self.operator, self.heads = operator, width.heads

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = q.view(*q.shape[:2], self.heads, -1)
        return self.operator(rows, k, v, GDPAParams(("fast_gelu",), 1 / CAP, 1.0)).flatten(2)


@dataclass(frozen=True)
class Part:
    """One exported graph; `inputs(users, steps)` makes its inputs, `flops(users, steps)` counts real work."""

    name: str
    module: nn.Module
    inputs: Callable[[int, int], dict[str, NDArray[Any]]]
    flops: Callable[[int, int], float]
    fused: bool = False


@dataclass
class Measured:
    """One compiled shape and its rounds."""

    run: Callable[[], Any]
    flops: float
    calls: int = 1
    seconds: list[float] = field(default_factory=list)

    def block(self) -> None:
        """One round: process CPU seconds per call."""
        began = time.process_time()
        for _ in range(self.calls):
            self.run()
        self.seconds.append((time.process_time() - began) / self.calls)

    @property
    def rate(self) -> float:
        """FLOP/s of the median round."""
        return self.flops / float(np.median(self.seconds))


def parts(width: Width) -> list[Part]:
    """What the user stream runs per tower and layer."""
    rng, d, n, heads = np.random.default_rng(SEED), width.d, width.n_kv, width.heads

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape).astype(np.float32)

    def generated(users: int, steps: int) -> dict[str, NDArray[Any]]:
        k, v = 90 * normal(users, n, heads, d // heads), normal(users, n, heads, d // heads) / n**0.5
        return {"q": normal(users, steps, d), "k": k, "v": v.astype(np.float32)}

    def tokens(users: int, steps: int) -> dict[str, NDArray[Any]]:
        return {"s": normal(users, steps, d), "lengths": np.full(users, steps, np.int64)}

    def aged(users: int, steps: int) -> dict[str, NDArray[Any]]:
        return {"s": normal(users, steps, d), "age_s": np.abs(normal(users, steps)) * 1e4, "lengths": np.full(users, steps)}

    torch.manual_seed(SEED)
    pool = HierarchicalSeedPooling(d, heads, width.n_seeds, width.n_tokens, width.rank)
    config = load_preset("small")
    assert isinstance(config, StackConfig)
    sizes = {"width": d, "heads": heads, "window": width.window}
    sizes |= {"n_seeds": width.n_seeds, "n_tokens": width.n_tokens, "kronecker_rank": width.rank}
    tower = config.default_tower.model_copy(update=sizes)
    attend = SelfAttention(config, tower, CAP)
    return [
        Part("GDPA", GDPA(gdpa_padded, width), generated, lambda u, t: u * gdpa(t, n, d)),
        Part("PFFN block, operators", GDPA(pffn_padded, width), generated, lambda u, t: u * gdpa(t, n, d)),
        Part("PFFN block, kernel", GDPA(pffn_padded, width), generated, lambda u, t: u * gdpa(t, n, d), fused=True),
        Part("window attention", attend, aged, lambda u, t: u * self_attention(t, CAP, tower, executed=False)),
        Part("seed pooling", pool, tokens, lambda u, t: u * seed_pooling(t, tower)),
    ]


def compiled(part: Part, precision: str, shapes: Sequence[tuple[int, int]], library: Path | None) -> list[Measured]:
    """The part at every shape, as `OpenVinoEngine` compiles `encode_user`."""
    example = {name: torch.from_numpy(x) for name, x in part.inputs(3, 60).items()}
    dynamic = tuple(dict.fromkeys(range(2 if _has_steps(name) else 1), torch.export.Dim.DYNAMIC) for name in example)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            part.module.eval(), tuple(example.values()), dynamo=True, opset_version=20, dynamic_shapes=dynamic,
            input_names=list(example), optimize=False, verbose=False,
        )  # fmt: skip
    assert program is not None
    model = ov.Core().read_model(program.model_proto.SerializeToString())
    if part.fused:
        assert library is not None
        bf16 = precision == "bf16" and load(library) is Kernels.BF16
        assert fuse_pffn(model, library, bf16=bf16) == 1
    found = []
    for users, steps in shapes:
        inputs, own = part.inputs(users, steps), model.clone()
        own.reshape({name: list(x.shape) for name, x in inputs.items()})
        request = ov.Core().compile_model(own, "CPU", cpu_settings(precision, 1)).create_infer_request()
        run = _caller(request, inputs)
        found.append(Measured(run, part.flops(users, steps)))
    return found


def _has_steps(name: str) -> bool:
    return name in ("q", "s", "age_s")


def _caller(request: Any, inputs: dict[str, NDArray[Any]]) -> Callable[[], Any]:
    return lambda: request.infer(inputs, share_inputs=True, share_outputs=True)


def measure(width: Width, precision: str, rounds: int, library: Path | None) -> dict[str, dict[str, float]]:
    """By part and shape: share of the engine's matrix-product peak, all measured in turn."""
    probe = Measured(peak_probe(precision, 1), 2.0 * PROBE_ROWS * PROBE_WIDTH**2)
    chosen = [part for part in parts(width) if not part.fused or library is not None]
    runs = {part.name: compiled(part, precision, SHAPES, library) for part in chosen}
    everything = [probe, *(m for found in runs.values() for m in found)]
    for measured in everything:
        measured.run()
        measured.block()
        measured.calls = max(1, round(BLOCK_S / max(measured.seconds[0], 1e-6)))
        measured.seconds.clear()
    with progress_bar(False) as bar:
        task = bar.add_task(f"{width.name}, {precision}", total=rounds, note="")
        for _ in range(rounds):
            for measured in everything:
                measured.block()
            bar.advance(task)
    shape = f"d {width.d}, H {width.heads}, n_kv {width.n_kv}"
    note(f"[bold]{width.name}, {precision}[/]: {shape}; peak {probe.rate / 1e9:.0f} GFLOP/s")
    shares = {}
    for name, found in runs.items():
        shares[name] = {f"{u}x{t}": round(m.rate / probe.rate, 3) for (u, t), m in zip(SHAPES, found, strict=True)}
        note(f"  {name:24s} " + "  ".join(f"{at}: {share:.2f}" for at, share in shares[name].items()))
    return shares


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.cpu_graph", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="rounds over everything (default %(default)s)")
    parser.add_argument("--width", choices=("small", "large"), action="append", help="towers to measure (default both)")
    parser.add_argument("--only", choices=("parts", "encode_user"), help="one of the two halves")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        library: Path | None = Path(directory) / LIBRARY
        try:
            kernels = build(Path(directory))
        except KernelsUnavailable as error:
            kernels, library = f"none: {error}", None
        line: dict[str, Any] = {"ok": library is not None}
        if arguments.only != "encode_user":
            shares = {
                f"{width.name} {precision}": measure(width, precision, arguments.rounds, library)
                for width in (SMALL, LARGE)
                if width.name in (arguments.width or ("small", "large"))
                for precision in precisions()
            }
            least = min(max(found.get("PFFN block, kernel", {"none": 0.0}).values()) for found in shares.values())
            line |= {"ok": line["ok"] and least >= TARGET, "target": TARGET, "least": least, "share_of_peak": shares}
        if arguments.only != "parts" and library is not None:
            whole = {precision: encode_user.measure(precision, arguments.rounds, library) for precision in precisions()}
            gain = encode_user.least_gain(whole)
            line["ok"] = line["ok"] and gain >= encode_user.WORTH_IT
            line |= {"gain_target": encode_user.WORTH_IT, "least_gain": gain, "encode_user": whole}
    line |= {"kernels": kernels, "rounds": arguments.rounds, "threads": 1}
    sys.stdout.write(json.dumps(line) + "\n")
    return 0 if line["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
