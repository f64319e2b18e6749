"""What a kernel must say about itself to be compiled ahead of time and launched from C.

A variant is one specialisation of one Triton kernel for one SM. Its `arguments` and `grid` are C++ expressions over `p`,
a pointer to the family's parameter struct of `kunlun_kernels.h`; the code generator pastes them into a launch function, so
the C++ compiler checks that every name and type exists.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CONSTEXPR = "constexpr"
# Triton type → the C++ type whose address is passed to the driver. Pointers are device addresses.
C_TYPES = {"i32": "int32_t", "i64": "int64_t", "u32": "uint32_t", "u64": "uint64_t", "fp32": "float", "fp64": "double"}


@dataclass(frozen=True)
class Work:
    """Costs per query row of one head, for the roofline. Bytes are what must cross device memory once.

    `dtype`: of the matrix operands; `products`: tensor-core products issued per product counted in `flops` (three for f32 in
    three TF32 products, more where a head is padded to a tile's width); `scores`: activations evaluated; `tile_scores`: those
    of one pass of a block over a tile, which the kernel's unrolled code covers once; `special`: special-function results per
    activation.
    """

    dtype: str
    flops: float
    bytes: float
    products: float
    scores: float
    tile_scores: int
    special: int


@dataclass(frozen=True)
class Variant:
    """One kernel specialisation.

    family: the C entry, for example `gdpa_forward`, whose struct is `kunlun_gdpa_params`;
    name: unique among the variants of an SM, a C identifier, the same on every SM;
    kernel: `module:function` of the `triton.jit` function;
    signature: argument → Triton type (`*bf16`, `i32`, `fp32`, …) or `constexpr`, in the kernel's order;
    constants: values of the constexpr arguments;
    arguments: argument → C++ expression, one for each that is no constexpr;
    grid: C++ expressions of the launch grid; a factor of 0 means that there is nothing to do;
    when: struct field → C++ constant it must equal for this variant to apply;
    aligned: pointer arguments known to be multiples of 16 bytes, and integers known to be multiples of 16.
    """

    family: str
    name: str
    kernel: str
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    arguments: Mapping[str, str]
    grid: tuple[str, str, str]
    when: Mapping[str, str]
    work: Work
    aligned: frozenset[str] = frozenset()
    num_warps: int = 4
    num_stages: int = 2
    unit_rows: int = 1  # query rows of one grid unit

    def __post_init__(self) -> None:
        passed = {name for name, kind in self.signature.items() if kind != CONSTEXPR}
        for what, expected, found in (
            ("arguments", passed, set(self.arguments)),
            ("constants", set(self.signature) - passed, set(self.constants)),
        ):
            if expected != found:
                raise ValueError(
                    f"variant {self.name}: {what} must name exactly {sorted(expected)}; "
                    f"missing {sorted(expected - found)}, unexpected {sorted(found - expected)}"
                )

    def c_types(self) -> dict[str, str]:
        """Argument → C++ type, in the order of the kernel's parameters (constexpr arguments are not passed)."""
        passed = {name: kind for name, kind in self.signature.items() if kind != CONSTEXPR}
        return {name: "const void*" if kind.startswith("*") else C_TYPES[kind] for name, kind in passed.items()}

    def function(self) -> Any:
        """The `triton.jit` function; raises `RuntimeError` in interpret mode, where nothing can be compiled."""
        if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
            raise RuntimeError("TRITON_INTERPRET is set: kernels are compiled in a process without it")
        return _function(self.kernel)


def query_units(rows: int) -> tuple[str, str]:
    """C++ of (units per sample, units in all), `rows` query rows each: by work list, or counted where there is none."""
    per_sample = f"static_cast<int32_t>(ceil_div(p->max_length > 0 ? p->max_length : 1, {rows}))"
    return per_sample, f"p->units ? p->unit_count : ceil_div(p->max_length, {rows}) * static_cast<uint64_t>(p->samples)"


def argument_names(kernel: str) -> list[str]:
    """The arguments of `module:function` in order, also in interpret mode."""
    found: list[str] = _function(kernel).arg_names
    return found


def _function(kernel: str) -> Any:
    module, name = kernel.split(":")
    return getattr(importlib.import_module(module), name)
