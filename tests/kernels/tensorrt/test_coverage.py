"""What a graph needs of the kernels is known by name before there is a GPU."""

from __future__ import annotations

from kernels.aot.catalogue import everything
from kernels.tensorrt.coverage import kernel_of, problem, shipped_kernels
from kernels.tensorrt.nodes import GDPA, PFFN, SeedPooling, WindowAttention


def test_names_are_those_of_the_catalogue() -> None:
    assert shipped_kernels() == {variant.name for variant in everything()}


def test_a_node_names_its_kernel() -> None:
    assert kernel_of(PFFN(n_kv=64), "bf16", 2, 64) == "pffn_bf16_h2x64_kv64"
    assert kernel_of(GDPA(), "bf16", 2, 64) == "gdpa_bf16_h2x64_kvlong"
    assert kernel_of(WindowAttention(4, 0.25), "f32", 2, 16) == "window_f32_h2x16"
    assert kernel_of(SeedPooling(0.25), "f16", 3, 128) == "seed_pooling_f16_h3x128"


def test_what_is_not_shipped_is_explained() -> None:
    assert problem(PFFN(n_kv=64), "bf16", 2, 64) is None
    assert problem(PFFN(n_kv=65), "bf16", 2, 64) == (
        "PFFN: no kernel pffn_bf16_h2x64_kv65 is shipped; there are pffn_bf16_h2x64_kv64, pffn_bf16_h3x128_kv128, "
        "pffn_bf16_h3x128_kv256, pffn_bf16_h4x128_kv128, pffn_f16_h2x64_kv64, pffn_f16_h3x128_kv128, pffn_f16_h3x128_kv256, "
        "pffn_f32_h2x16_kv8, pffn_f32_h2x64_kv64 (kernels/variants.py)"
    )
    assert "expected the activation fast_gelu, found silu" in str(problem(GDPA(activation="silu"), "bf16", 2, 64))
