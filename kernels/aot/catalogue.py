"""The shipped variants of every kernel as the ahead-of-time compiler takes them: one list per compute capability."""

from __future__ import annotations

from kernels import variants as shipped
from kernels.aot import tiles
from kernels.aot.attention import BYTES, C_DTYPE, TRITON, Attention, attention
from kernels.aot.attention import variant as attention_variant
from kernels.aot.tiles import Shipped
from kernels.aot.variant import CONSTEXPR, Variant, Work, argument_names, query_units
from kernels.triton_activations import activation_codes
from kernels.variants import Blocks

INDEX = "*i32"
SERVING_UNIT_TILES = 4  # Q tiles per work unit: batches of a server are too small for the units of a training batch
ROWS_PER_SAMPLE, LONG_KEYS = 512, 1024  # what a roofline assumes of a batch


def variants(sm: int) -> list[Variant]:
    """Everything that is shipped for one compute capability."""
    return [variant(v, tiles.blocks(v, sm)) for v in everything()]


def everything() -> tuple[Shipped, ...]:
    """All that is shipped, without tile sizes."""
    return (*shipped.shipped(), *attention())


def variant(v: Shipped, tile: Blocks) -> Variant:
    """A shipped kernel with these tile sizes."""
    return attention_variant(v, tile) if isinstance(v, Attention) else gdpa(v, tile)


def gdpa(v: shipped.Variant, tile: Blocks) -> Variant:
    """GDPA or the PFFN block: arguments are read from `kunlun_gdpa_params`; NULL pointers are NULL in the kernel, too."""
    resident = 0 < v.n_kv <= tile.n
    unit_tiles = min(tile.unit_tiles, SERVING_UNIT_TILES) if resident and v.operator == "gdpa" else 1
    unit = tile.m * unit_tiles
    codes, per_head = activation_codes((shipped.ACTIVATION,), v.heads)
    constants: dict[str, object] = {
        "HEADS": v.heads, "HEAD_WIDTH": v.head_width, "N_KV": v.n_kv, "CODES": codes, "PER_HEAD": per_head,
        "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_D": shipped.padded_width(v.head_width),
    }  # fmt: skip
    tensors = {name: f"p->{name}" for name in ("q", "k", "v", "out")}
    indices = {
        "tiles": "p->units", "q_offsets": "p->q_offsets", "q_lengths": "p->q_lengths", "k_offsets": "p->k_offsets",
        "kv_index": "p->kv_index",
    }  # fmt: skip
    scalars = {"scale_in": "p->scale_in", "scale_out": "p->scale_out"}
    per_sample, units = query_units(unit)
    counts = {"units_per_sample": per_sample}
    if v.operator == "gdpa":
        kernel, grid = "kernels.gdpa.triton_forward:gdpa_forward", (units, "p->heads", "1")
        constants |= {"SHARED_Q": False, "WINDOWED": False, "UNIT_TILES": unit_tiles}
        counts["window"] = "-1"
        none: tuple[str, ...] = ()
    else:
        kernel, grid = "kernels.pffn.triton_forward:pffn_forward", (units, "1", "1")
        scalars["eps"] = "p->eps"
        none = ("mean", "rstd", "rrms")
    if v.n_kv:
        none += ("k_offsets",)
        del indices["k_offsets"]
    arguments = tensors | indices | scalars | counts
    kinds = dict.fromkeys(tensors, TRITON[v.dtype]) | dict.fromkeys(indices, INDEX)
    kinds |= dict.fromkeys(scalars, "fp32") | dict.fromkeys(counts, "i32")
    order = argument_names(kernel)
    constants |= dict.fromkeys(none)
    return Variant(
        family="gdpa_forward",
        name=v.name,
        kernel=kernel,
        signature={name: kinds.get(name, CONSTEXPR) for name in order},
        constants={name: constants[name] for name in order if name not in kinds},
        arguments=arguments,
        grid=grid,
        when={
            "dtype": C_DTYPE[v.dtype],
            "activation": f"KUNLUN_{shipped.ACTIVATION.upper()}",
            "block": str(int(v.operator == "pffn")),
            "heads": str(v.heads),
            "head_width": str(v.head_width),
            "n_kv": str(v.n_kv),
        },
        work=gdpa_work(v, tile),
        aligned=frozenset(tensors),
        num_warps=tile.warps,
        num_stages=tile.stages,
        unit_rows=unit,
    )


def gdpa_work(v: shipped.Variant, tile: Blocks) -> Work:
    """4 · n_kv · d_h FLOPs; q is read and out written once, K and V once per sample of `ROWS_PER_SAMPLE` rows.

    A variant of any length counts as `LONG_KEYS` keys. fast_gelu is one tanh for 16-bit types and an exponential and a
    reciprocal for f32 (`kernels.triton_activations`).
    """
    n_kv, size = v.n_kv or LONG_KEYS, BYTES[v.dtype]
    wide = v.dtype == "f32"
    return Work(
        dtype=v.dtype,
        flops=4.0 * n_kv * v.head_width,
        bytes=2.0 * v.head_width * size * (1 + n_kv / ROWS_PER_SAMPLE),
        products=(3 if wide else 1) * shipped.padded_width(v.head_width) / v.head_width,
        scores=float(n_kv),
        tile_scores=tile.m * tile.n,
        special=2 if wide else 1,
    )
