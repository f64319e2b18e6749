"""Finds the PFFN block in a graph and puts the fused operation in its place.

The block is what `kernels.pffn.padded` exports: LayerNorm, two products per head around an activation, the inner
residual, RMSNorm, the outer residual. It is recognised from the activation outwards; what differs in any operator or
constant is left alone, so a graph never changes its meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from openvino.utils.node_factory import NodeFactory

from serving.engines.openvino_kernels.build import load

Node = Any
"""A node of OpenVINO's Python API, which has no types."""

RELU, GELU_TANH, SILU = 1, 2, 3
"""Codes of activations in `pffn_kernel.hpp`."""


@dataclass(frozen=True)
class Block:
    """Where a block begins and ends: q [B, T, d], k and v [B, n_kv, H, d_h], and the node whose output it is."""

    q: Any
    k: Any
    v: Any
    end: Node
    attributes: dict[str, Any]


def fuse_pffn(model: Any, library: Path, *, bf16: bool) -> int:
    """Fuse every block of `model` in place; returns how many. `bf16`: products in bf16, on a CPU with AMX."""
    load(library)  # the factory unloads it when it goes, and the model's operations live in it
    factory = NodeFactory()
    factory.add_extension(str(library))
    unit, fused = 32 if bf16 else 16, 0
    for block in [block for block in _blocks(model) if _fits(block, unit)]:
        node = factory.create("PFFN", [block.q, block.k, block.v], block.attributes | {"bf16": bf16})
        node.set_friendly_name(block.end.get_friendly_name())
        for consumer in list(block.end.output(0).get_target_inputs()):
            consumer.replace_source_output(node.output(0))
        fused += 1
    model.validate_nodes_and_infer_types()
    return fused


def _fits(block: Block, unit: int) -> bool:
    """Whether the kernel has tiles for these sizes: q [B, T, H · d_h], k and v alike, n_kv and d_h multiples of `unit`."""
    (_, *of_k), (_, *of_v), width = block.k.get_partial_shape(), block.v.get_partial_shape(), block.q.get_partial_shape()[-1]
    if any(size.is_dynamic for size in (*of_k, *of_v, width)):
        return False
    keys, heads, head_width = (size.get_length() for size in of_k)
    fits = [size.get_length() for size in of_v] == [keys, heads, head_width] and width.get_length() == heads * head_width
    return fits and keys % unit == 0 and head_width % unit == 0


def _blocks(model: Any) -> Iterator[Block]:
    for node in model.get_ordered_ops():
        found = _activation(node)
        if found is not None and (block := _block(node, *found)) is not None:
            yield block


def _activation(node: Node) -> tuple[int, Node] | None:
    """The code of an activation that the kernel has, and what it is applied to."""
    kind = node.get_type_name()
    if kind == "Relu" or (kind == "Gelu" and node.get_attributes()["approximation_mode"] == "TANH"):
        return (RELU if kind == "Relu" else GELU_TANH), _source(node)
    if kind == "Multiply":  # x · sigmoid(x)
        for x, gate in (_sources(node), _sources(node)[::-1]):
            if _is(gate, "Sigmoid") and _source(gate).get_name() == x.get_name():
                return SILU, x
    return None


def _block(activation: Node, code: int, scores: Node) -> Block | None:
    """The block around `activation` of `scores`, or None where any step differs."""
    mixed = _only_consumer(activation)
    if not _multiplies(scores) or not _multiplies(mixed) or _source(mixed).get_name() != activation.get_name():
        return None
    queries, keys, values = _source(scores), _source(scores, 1), _source(mixed, 1)
    if not (_transposes(queries, HEADS_FIRST) and _transposes(keys, [0, 1, 3, 2])):
        return None
    k, scale_in = _scaled(_source(keys))
    v, scale_out = _scaled(values)
    heads_out = _only_consumer(mixed)
    if k is None or v is None or not _transposes(heads_out, HEADS_FIRST):
        return None
    normed = _flat(_source(queries))
    norm = _source(normed) if _is(normed, "Multiply") and _is_one(_source(normed, 1)) else normed
    inner = _consumer_through(heads_out, ("Identity", "Reshape"))
    if not _normalises(norm) or not _is(inner, "Add") or normed.get_name() not in _source_names(inner):
        return None
    eps, q = norm.get_attributes()["eps"], norm.input(0).get_source_output()
    scaled = next((n for n in _consumers(inner) if _is(n, "Multiply") and _is_rms(inner, n, eps)), None)
    end = _only_consumer(scaled) if scaled is not None else None
    if end is None or not _is(end, "Add") or q.get_node().get_name() not in _source_names(end):
        return None
    return Block(q, k, v, end, {"activation": code, "scale_in": scale_in, "scale_out": scale_out, "eps": float(eps)})


HEADS_FIRST = [0, 2, 1, 3]


def _scaled(node: Node) -> tuple[Any, float]:
    """(x [B, n_kv, H, d_h], c) of ``c · Transpose(x)``; (None, 0) where it is something else."""
    factor = _scalar(_source(node, 1)) if _is(node, "Multiply") else None
    if factor is None or not _transposes(_source(node), HEADS_FIRST):
        return None, 0.0
    return _source(node).input(0).get_source_output(), factor


def _is_rms(x: Node, product: Node, eps: float) -> bool:
    """Whether `product` is ``x · 1 / √(mean(x²) + eps)`` over the last dimension."""
    inverse = next((s for s in _sources(product) if s.get_name() != x.get_name()), None)
    if not _is(inverse, "Divide") or _scalar(_source(inverse)) != 1.0:
        return False
    root = _source(inverse, 1)
    shifted = _source(root) if _is(root, "Sqrt") else None
    mean = _source(shifted) if _is(shifted, "Add") else None
    if not _is(mean, "ReduceMean") or not _over_the_last_axis(mean):
        return False
    if not np.isclose(_scalar(_source(shifted, 1)) or 0.0, eps, rtol=1e-6):
        return False
    square = _source(mean)
    return _is(square, "Power") and _source(square).get_name() == x.get_name() and _scalar(_source(square, 1)) == 2.0


def _multiplies(node: Node | None) -> bool:
    """Whether it is a matrix product of its inputs as they are."""
    if node is None or not _is(node, "MatMul"):
        return False
    return not any(node.get_attributes()[flag] for flag in ("transpose_a", "transpose_b"))


def _normalises(node: Node) -> bool:
    """Whether it is a LayerNorm over the last axis, eps under the root."""
    if not _is(node, "MVN") or not _over_the_last_axis(node):
        return False
    attributes = node.get_attributes()
    return bool(attributes["normalize_variance"]) and str(attributes["eps_mode"]).upper() == "INSIDE_SQRT"


def _over_the_last_axis(node: Node) -> bool:
    """Whether it goes over the last axis alone of [B, T, d]: the axes of MVN are written as a range, of means as a constant."""
    axes = _flat(_source(node, 1))
    values = [_scalar(x) for x in _sources(axes)] if _is(axes, "Range") else [_scalar(axes)]
    return values in ([-1], [2], [-1, 0, 1], [2, 3, 1])


def _is(node: Node | None, kind: str) -> bool:
    return node is not None and node.get_type_name() == kind


def _source(node: Node, place: int = 0) -> Node:
    return node.input(place).get_source_output().get_node()


def _sources(node: Node) -> list[Node]:
    return [i.get_source_output().get_node() for i in node.inputs()]


def _source_names(node: Node) -> list[str]:
    return [source.get_name() for source in _sources(node)]


def _consumers(node: Node) -> list[Node]:
    return [i.get_node() for i in node.output(0).get_target_inputs()]


def _only_consumer(node: Node) -> Node | None:
    found = _consumers(node)
    return found[0] if len(found) == 1 else None


def _consumer_through(node: Node, kinds: tuple[str, ...]) -> Node | None:
    """The only consumer behind any number of `kinds`."""
    following = _only_consumer(node)
    while following is not None and following.get_type_name() in kinds:
        following = _only_consumer(following)
    return following


def _flat(node: Node) -> Node:
    """What was reshaped."""
    return _source(node) if _is(node, "Reshape") else node


def _transposes(node: Node | None, order: list[int]) -> bool:
    return _is(node, "Transpose") and _is(_source(node, 1), "Constant") and _source(node, 1).data.tolist() == order


def _scalar(node: Node) -> float | None:
    """The value of a constant of one element."""
    return float(node.data.ravel()[0]) if _is(node, "Constant") and node.data.size == 1 else None


def _is_one(node: Node) -> bool:
    """Ones, as the weights of a LayerNorm without weights are written."""
    if _is(node, "Broadcast"):
        node = _source(node)
    return _is(node, "Constant") and bool((node.data == 1.0).all())
