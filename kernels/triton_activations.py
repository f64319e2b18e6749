"""The activations of `kernels.activations` and their derivatives inside Triton kernels.

A kernel takes them as one constant, four bits per head (`activation_codes`), so that the same value
serves just-in-time and ahead-of-time compilation and heads may differ. Everything is computed in f32.
tanh is the hardware instruction for 16-bit tensors and 2σ(2x) − 1 for f32 and in the interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

from kernels.activations import NAMES

INTERPRETED = tl.constexpr(knobs.runtime.interpret)
_CODE = {name: code for code, name in enumerate(NAMES)}
RAW, RELU, LEAKY_RELU, RELU_SQUARE = (tl.constexpr(_CODE[n]) for n in ("raw", "relu", "leaky_relu", "relu_square"))
GELU, FAST_GELU, SILU, HARDSWISH = (tl.constexpr(_CODE[n]) for n in ("gelu", "fast_gelu", "silu", "hardswish"))


def activation_codes(names: tuple[str, ...], heads: int) -> tuple[int, bool]:
    """(codes, per_head): four bits per head, head 0 lowest. Names are one for all heads or one per head."""
    if len(set(names)) == 1:
        return _CODE[names[0]], False
    if len(names) != heads:
        raise ValueError(f"activation: expected 1 or {heads} names (one per head), found {len(names)}")
    return sum(_CODE[name] << (4 * head) for head, name in enumerate(names)), True


@triton.jit
def _tanh(x, HARDWARE: tl.constexpr):
    if HARDWARE:
        y = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        y = 2.0 * tl.sigmoid(2.0 * x) - 1.0
    return y


@triton.jit
def _value(x, CODE: tl.constexpr, HARDWARE: tl.constexpr):
    if CODE == RELU:
        y = tl.maximum(x, 0.0)
    elif CODE == LEAKY_RELU:
        y = tl.maximum(x, 0.01 * x)
    elif CODE == RELU_SQUARE:
        y = tl.maximum(x, 0.0) * tl.maximum(x, 0.0)
    elif CODE == GELU:
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif CODE == FAST_GELU:
        half = 0.5 * x
        y = half + half * _tanh(x * (0.7978845608028654 + 0.03567740813636141 * x * x), HARDWARE)
    elif CODE == SILU:
        half = 0.5 * x
        y = half + half * _tanh(half, HARDWARE)
    elif CODE == HARDSWISH:
        y = x * tl.minimum(tl.maximum(x + 3.0, 0.0), 6.0) * (1.0 / 6.0)
    else:
        y = x
    return y


@triton.jit
def _derivative(x, CODE: tl.constexpr, HARDWARE: tl.constexpr):
    if CODE == RELU:
        y = tl.where(x > 0, 1.0, 0.0)
    elif CODE == LEAKY_RELU:
        y = tl.where(x > 0, 1.0, 0.01)
    elif CODE == RELU_SQUARE:
        y = 2.0 * tl.maximum(x, 0.0)
    elif CODE == GELU:
        y = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + 0.3989422804014327 * x * tl.exp(-0.5 * x * x)
    elif CODE == FAST_GELU:
        t = _tanh(x * (0.7978845608028654 + 0.03567740813636141 * x * x), HARDWARE)
        y = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * (0.7978845608028654 + 0.10703222440908423 * x * x)
    elif CODE == SILU:
        s = 0.5 + 0.5 * _tanh(0.5 * x, HARDWARE)
        y = s * (1.0 + x * (1.0 - s))
    elif CODE == HARDSWISH:
        y = tl.where(x < -3.0, 0.0, tl.where(x > 3.0, 1.0, x * (1.0 / 3.0) + 0.5))
    else:
        y = tl.full(x.shape, 1.0, x.dtype)
    return y


@triton.jit
def activate(x, head, CODES: tl.constexpr, PER_HEAD: tl.constexpr, HEADS: tl.constexpr, HARDWARE: tl.constexpr):
    """Act of `head` on scores x (f32). Heads branch on a scalar, so only one activation is evaluated."""
    y = _value(x, CODES & 15, HARDWARE)
    if PER_HEAD:
        y = x
        for i in tl.static_range(HEADS):
            if head == i:
                y = _value(x, (CODES >> (4 * i)) & 15, HARDWARE)
    return y


@triton.jit
def activate_derivative(x, head, CODES: tl.constexpr, PER_HEAD: tl.constexpr, HEADS: tl.constexpr, HARDWARE: tl.constexpr):
    """Act′ of `head` on scores x (f32)."""
    y = _derivative(x, CODES & 15, HARDWARE)
    if PER_HEAD:
        y = x
        for i in tl.static_range(HEADS):
            if head == i:
                y = _derivative(x, (CODES >> (4 * i)) & 15, HARDWARE)
    return y


@triton.jit
def product(a, b, INPUT_F32: tl.constexpr):
    """a @ b with f32 accumulation. f32 operands use three TF32 products (about 1e-6); the interpreter multiplies
    16-bit operands in f32, which is what the tensor cores do (its own bf16 product is wrong)."""
    if INTERPRETED:
        y = tl.dot(a.to(tl.float32), b.to(tl.float32))
    elif INPUT_F32:
        y = tl.dot(a, b, input_precision="tf32x3")
    else:
        y = tl.dot(a, b)
    return y
