"""Window attention and seed pooling as the ahead-of-time compiler takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from kernels import variants as shipped
from kernels.aot.variant import CONSTEXPR, Variant, Work, argument_names, query_units
from kernels.seed_pooling.triton_forward import MANY
from kernels.variants import Blocks, padded_width
from kernels.window.triton_forward import NARROW

_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
TRITON = {"f32": "*fp32", "f16": "*fp16", "bf16": "*bf16"}
C_DTYPE = {"f32": "KUNLUN_F32", "f16": "KUNLUN_F16", "bf16": "KUNLUN_BF16"}
BYTES = {"f32": 4, "f16": 2, "bf16": 2}
LOG2_E = "1.4426950408889634f"
# What a roofline assumes: half a window of 100 either side, samples of 512 rows, 256 seeds.
WINDOW, ROWS, SEEDS = 100, 512, 256


@dataclass(frozen=True)
class Attention:
    """One shipped attention kernel: any window and length, or any number of seeds."""

    operator: Literal["window", "seed_pooling"]
    dtype: str
    head_width: int
    heads: int

    @property
    def name(self) -> str:
        return f"{self.operator}_{self.dtype}_h{self.heads}x{self.head_width}"


def attention() -> tuple[Attention, ...]:
    """The shipped ones: the widths and dtypes of GDPA."""
    shapes = dict.fromkeys((v.dtype, v.head_width, v.heads) for v in shipped.shipped())
    operators: tuple[Literal["window", "seed_pooling"], ...] = ("window", "seed_pooling")
    return tuple(Attention(operator, *shape) for operator in operators for shape in shapes)


def tuned(a: Attention) -> Blocks:
    """The tile sizes of a just-in-time launch."""
    t = (NARROW if a.operator == "window" else MANY).for_dtype(_DTYPES[a.dtype])
    return Blocks(t.queries, t.keys, t.warps, t.stages)


def variant(a: Attention, tile: Blocks) -> Variant:
    """Arguments are read from `kunlun_window_params` or `kunlun_seed_pooling_params`."""
    window = a.operator == "window"
    tensors = ("q", "k", "v", "out") if window else ("seeds", "k", "v", "out")
    strides = ("q_row", "q_head", "k_row", "k_head", "v_row", "v_head")[0 if window else 2 :]
    kinds: dict[str, str] = dict.fromkeys(tensors, TRITON[a.dtype]) | {"lse": "*fp32", "offsets": "*i32", "log2_scale": "fp32"}
    kinds |= dict.fromkeys(strides, "i32")
    arguments = {name: f"p->{name}" for name in kinds} | {"log2_scale": f"p->scale * {LOG2_E}"}
    if window:
        kinds |= {"tiles": "*i32", "units_per_sample": "i32", "window": "i32"}
        per_sample, units = query_units(tile.m)
        arguments |= {"tiles": "p->units", "units_per_sample": per_sample, "window": "p->window"}
        grid = (units, "p->heads", "1")
    else:
        kinds |= {"order": "*i32", "n_seeds": "i32"}
        arguments |= {"order": "p->order", "n_seeds": "p->n_seeds"}
        grid = ("p->samples", "p->heads", f"ceil_div(p->n_seeds, {tile.m})")
    constants: dict[str, Any] = {"H": a.heads, "D": a.head_width, "WIDTH": padded_width(a.head_width), "KEYS": tile.n}
    constants |= {"QUERIES" if window else "SEEDS": tile.m, "UPCAST": False}
    kernel = f"kernels.{a.operator}.triton_forward:{a.operator}_forward"
    return Variant(
        family=f"{a.operator}_forward",
        name=a.name,
        kernel=kernel,
        signature={name: kinds.get(name, CONSTEXPR) for name in argument_names(kernel)},
        constants=constants,
        arguments=arguments,
        grid=grid,
        when={"dtype": C_DTYPE[a.dtype], "heads": str(a.heads), "head_width": str(a.head_width)},
        work=_work(a, tile),
        aligned=frozenset((*tensors, *strides)),
        num_warps=tile.warps,
        num_stages=tile.stages,
        unit_rows=tile.m,
    )


def _work(a: Attention, tile: Blocks) -> Work:
    """Per query row (or seed of a sample) of one head; K and V cross device memory once per sample."""
    size, wide = BYTES[a.dtype], a.dtype == "f32"
    keys = 2 * WINDOW + 1 if a.operator == "window" else ROWS
    rows = 4.0 if a.operator == "window" else 1.0 + 2.0 * ROWS / SEEDS  # q, k, v and out; or out and the sample's K and V
    return Work(
        dtype=a.dtype,
        flops=4.0 * keys * a.head_width,
        bytes=rows * a.head_width * size,
        products=(3 if wide else 1) * padded_width(a.head_width) / a.head_width,
        scores=float(keys),
        tile_scores=tile.m * tile.n,
        special=1,
    )
