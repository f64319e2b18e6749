"""Jagged operators as nodes of the graph that `torch.onnx.export` is tracing: what `kernels.tensorrt.nodes` describes.

Called by `kernels.dispatch` under the backend `onnx`. Nothing is computed here; whoever reads the graph has a plugin for the
nodes or runs their function bodies.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kernels.gdpa.params import GDPAParams, Jagged
from kernels.tensorrt import nodes


def gdpa(q: Tensor, k: Tensor, v: Tensor, params: GDPAParams, jagged: Jagged) -> Tensor:
    """GDPA on jagged rows; raises `ValueError` for what the node cannot say (windows, shared queries, padding, mixed heads)."""
    return _node(_described(nodes.GDPA(), params, jagged), _inputs(q, k, v, jagged), q.shape)


def pffn(q: Tensor, k: Tensor, v: Tensor, params: GDPAParams, jagged: Jagged, eps: float) -> Tensor:
    """The PFFN block on jagged rows; raises as `gdpa`."""
    return _node(_described(nodes.PFFN(eps=eps), params, jagged), _inputs(q, k, v, jagged), q.shape)


def window_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, window: int, max_length: int) -> Tensor:
    """Sliding-window attention on jagged rows."""
    node = nodes.WindowAttention(window=window, scale=q.shape[-1] ** -0.5, max_length=max_length)
    return _node(node, (q, k, v, offsets), q.shape)


def seed_pooling(seeds: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    """Pooling of every sample's rows by the same seeds."""
    node = nodes.SeedPooling(scale=seeds.shape[-1] ** -0.5)
    return _node(node, (seeds, k, v, offsets), (offsets.shape[0] - 1, *seeds.shape))


def _described(node: nodes.GDPA, params: GDPAParams, jagged: Jagged) -> nodes.GDPA:
    """`node` with the parameters and the layout of a call."""
    what = node.op_type
    if len(set(params.activation)) != 1:
        raise ValueError(f"{what}: activation: expected one for all heads in an exported node, found {params.activation}")
    for name in ("window", "q_lengths"):
        if getattr(jagged, name) is not None:
            raise ValueError(f"{what}: {name}: expected none in an exported node, found one")
    if jagged.shared_q:
        raise ValueError(f"{what}: shared_q: expected queries of every sample in an exported node, found shared ones")
    return replace(
        node,
        activation=params.activation[0],
        n_kv=jagged.n_kv or 0,
        scale_in=params.scale_in,
        scale_out=params.scale_out,
        indexed=int(jagged.kv_index is not None),
        max_length=jagged.max_length,
    )


def _inputs(q: Tensor, k: Tensor, v: Tensor, jagged: Jagged) -> tuple[Tensor, ...]:
    return (q, k, v, *(t for t in (jagged.q_offsets, jagged.k_offsets, jagged.kv_index) if t is not None))


def _node(node: nodes.Node, inputs: tuple[Tensor, ...], shape: tuple[int | torch.SymInt, ...] | torch.Size) -> Tensor:
    return torch.onnx.ops.symbolic(
        f"{nodes.DOMAIN}::{node.op_type}",
        inputs,
        attrs={**node.attributes},
        dtype=inputs[0].dtype,
        shape=tuple(shape),
        version=nodes.VERSION,
    )
