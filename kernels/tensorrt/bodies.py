"""Function bodies of the nodes: what they compute in plain ONNX operators (opset 20), so that a graph runs on any engine.

Jagged rows become padded ones by a gather, are worked on densely in f32, and are gathered back. That costs
B · (longest sample) rows: right for checks and for engines without the plugin, not what a GPU runs. Numbers reach a body as
references to the node's attributes; activation and optional inputs change its operators, so nodes that differ in them get
functions of their own, told apart by their `overload`.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto

from kernels.tensorrt.nodes import DOMAIN, GDPA, PFFN, VERSION, Node, WindowAttention, parse

OPSET = 20
IR_VERSION = 10  # the first with overloads of functions
TYPES = {"f32": onnx.TensorProto.FLOAT, "f16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
"""Element types by precision."""

# `hidden` of `scores`; every activation maps 0 to 0, so padding stays zero.
_ACTIVATIONS = {
    "raw": ("hidden = Identity (scores)",),
    "relu": ("hidden = Relu (scores)",),
    "leaky_relu": ("hidden = LeakyRelu <alpha = 0.01> (scores)",),
    "relu_square": ("positive = Relu (scores)", "hidden = Mul (positive, positive)"),
    "gelu": ("hidden = Gelu (scores)",),
    "fast_gelu": ('hidden = Gelu <approximate = "tanh"> (scores)',),
    "silu": ("gate = Sigmoid (scores)", "hidden = Mul (scores, gate)"),
    "hardswish": ("hidden = HardSwish (scores)",),
}


def function(node: Node) -> FunctionProto:
    """The body of `node`, without an overload name."""
    if isinstance(node, GDPA):
        lines, like = _pffn(node) if isinstance(node, PFFN) else _gdpa_alone(node), "q"
    elif isinstance(node, WindowAttention):
        lines, like = _window(), "q"
    else:
        lines, like = _seed_pooling(), "seeds"
    numbers = [name for name, value in node.attributes.items() if not isinstance(value, str)]
    names = ", ".join(node.attributes)
    text = "\n".join(
        [
            f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}]>',
            f"{node.op_type} <{names}> ({', '.join(node.inputs)}) => (out)",
            "{",
            *(f"a_{name} = Constant <value_{_kind(node, name)} = @{name}> ()" for name in numbers),
            *_CONSTANTS,
            *lines,
            f"out = CastLike (result, {like})",
            "}",
        ]
    )
    return onnx.parser.parse_function(text)


def structure(node: Node) -> str:
    """What distinguishes the function of a node from others of its operator, as an identifier."""
    if not isinstance(node, GDPA):
        return node.op_type
    return f"{node.activation}{'' if node.n_kv else '_jagged'}{'_indexed' if node.indexed else ''}"


def with_functions(model: ModelProto) -> ModelProto:
    """A copy of `model` in which every node of the domain has a body.

    Where nodes of one operator need different bodies, all but the first kind found name an overload. Raises `ValueError`
    on nodes that are none of the contract.
    """
    made = ModelProto()
    made.CopyFrom(model)
    made.ir_version = max(made.ir_version, IR_VERSION)
    if all(entry.domain != DOMAIN for entry in made.opset_import):
        made.opset_import.add(domain=DOMAIN, version=VERSION)
    kept = [f for f in made.functions if f.domain != DOMAIN]
    del made.functions[:]
    made.functions.extend(kept)
    first: dict[str, str] = {}
    done: set[tuple[str, str]] = set()
    for proto in nodes_of(made.graph):
        node = parse(proto.op_type, attributes_of(proto))
        if len(proto.input) != len(node.inputs) or not all(proto.input):
            raise ValueError(
                f"{proto.op_type} {proto.name!r}: expected inputs {', '.join(node.inputs)}, found {', '.join(proto.input)}"
            )
        kind = structure(node)
        proto.overload = "" if first.setdefault(proto.op_type, kind) == kind else kind
        if (proto.op_type, kind) not in done:
            done.add((proto.op_type, kind))
            body = function(node)
            body.overload = proto.overload
            made.functions.append(body)
    return made


def nodes_of(graph: GraphProto) -> Iterator[NodeProto]:
    """Nodes of the domain in a graph and its subgraphs."""
    for node in graph.node:
        if node.domain == DOMAIN:
            yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from nodes_of(attribute.g)


def attributes_of(node: NodeProto) -> dict[str, int | float | str]:
    """Attributes as numbers and strings."""
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def _kind(node: Node, name: str) -> str:
    return "int: int" if isinstance(node.attributes[name], int) else "float: float"


_CONSTANTS = (
    "zero = Constant <value = int32 {0}> ()",
    "one = Constant <value = int32 {1}> ()",
    "ones = Constant <value = int32[1] {1}> ()",
    "axis_0 = Constant <value_ints = [0]> ()",
    "axis_1 = Constant <value_ints = [1]> ()",
    "axis_2 = Constant <value_ints = [2]> ()",
    "last = Constant <value_ints = [-1]> ()",
    "masked = Constant <value_float = -30000.0> ()",
)


def _float(*names: str) -> list[str]:
    return [f"{name}_f = Cast <to = 1> ({name})" for name in names]


def _layout(offsets: str, name: str) -> list[str]:
    """Of samples: `{name}_steps` [T], `{name}_length` [B, 1], `{name}_present` [B, T], `{name}_position` [B, T] of row numbers.

    T is the longest sample's length, at least 1.
    """
    return [
        f"{name}_starts = Slice ({offsets}, axis_0, last, axis_0)",
        f"{name}_end = Shape ({offsets})",
        f"{name}_ends = Slice ({offsets}, axis_1, {name}_end, axis_0)",
        f"{name}_lengths = Sub ({name}_ends, {name}_starts)",
        f"{name}_with_1 = Concat <axis = 0> ({name}_lengths, ones)",
        f"{name}_longest = ReduceMax <keepdims = 0> ({name}_with_1)",
        f"{name}_steps = Range (zero, {name}_longest, one)",
        f"{name}_length = Unsqueeze ({name}_lengths, axis_1)",
        f"{name}_present = Less ({name}_steps, {name}_length)",
        f"{name}_start = Unsqueeze ({name}_starts, axis_1)",
        f"{name}_position = Add ({name}_start, {name}_steps)",
    ]


def _with_zero_row(x: str) -> list[str]:
    """`{x}_rows` int32, the number of rows, and `{x}_more`: the rows and one of zeros, for an index that finds nothing."""
    return [
        f"{x}_own_shape = Shape ({x})",
        f"{x}_row_shape = Shape <start = 1> ({x})",
        f"{x}_zero_shape = Concat <axis = 0> (axis_1, {x}_row_shape)",
        f"{x}_zero = ConstantOfShape ({x}_zero_shape)",
        f"{x}_more = Concat <axis = 0> ({x}, {x}_zero)",
        f"{x}_rows64 = Gather <axis = 0> ({x}_own_shape, zero)",
        f"{x}_rows = Cast <to = 6> ({x}_rows64)",
    ]


def _padded(x: str, layout: str, transposed: str) -> list[str]:
    """`{x}_padded`: rows as [B, T, H, d_h] in the given order of axes, zeros beyond a sample's length."""
    return [
        *_with_zero_row(x),
        f"{x}_index = Where ({layout}_present, {layout}_position, {x}_rows)",
        f"{x}_gathered = Gather <axis = 0> ({x}_more, {x}_index)",
        f"{x}_padded = Transpose <perm = [{transposed}]> ({x}_gathered)",
    ]


_BY_HEAD, _BY_HEAD_TRANSPOSED = "0, 2, 1, 3", "0, 2, 3, 1"  # [B, H, T, d_h] and [B, H, d_h, T]


def _back_to_rows(x: str, layout: str, offsets: str, like: str) -> list[str]:
    """`mixed`: [B, H, T, d_h] as rows of `like`; rows of no sample are 0."""
    return [
        f"{x}_by_step = Transpose <perm = [{_BY_HEAD}]> ({x})",
        f"{x}_outer = Shape <end = 2> ({x}_by_step)",
        f"{x}_inner = Shape <start = 2> ({x}_by_step)",
        f"{x}_count = ReduceProd <keepdims = 1> ({x}_outer)",
        f"{x}_flat_shape = Concat <axis = 0> ({x}_count, {x}_inner)",
        f"{x}_flat = Reshape <allowzero = 1> ({x}_by_step, {x}_flat_shape)",
        *_with_zero_row(f"{x}_flat"),
        f"row = Range (zero, {like}_rows, one)",
        "row_column = Unsqueeze (row, axis_1)",
        f"past_or_not = LessOrEqual ({layout}_ends, row_column)",
        "past = Cast <to = 6> (past_or_not)",
        "sample = ReduceSum <keepdims = 0> (past, axis_1)",
        f"first_row = Gather <axis = 0> ({offsets}, sample)",
        "step = Sub (row, first_row)",
        f"padded_start = Mul (sample, {layout}_longest)",
        "padded_row = Add (padded_start, step)",
        f"bounded_row = Min (padded_row, {x}_flat_rows)",
        f"mixed = Gather <axis = 0> ({x}_flat_more, bounded_row)",
    ]


def _gdpa(node: GDPA, queries: str) -> list[str]:
    """`mixed`: GDPA of f32 rows `queries`."""
    lines = [*_layout("q_offsets", "q_layout"), *_padded(queries, "q_layout", _BY_HEAD)]
    for name, order in (("k", _BY_HEAD_TRANSPOSED), ("v", _BY_HEAD)):
        if node.n_kv:
            lines += [
                f"{name}_count = Shape <end = 1> ({name})",
                f"{name}_row_shape = Shape <start = 1> ({name})",
                f"{name}_n = Reshape (a_n_kv, axis_1)",
                f"{name}_blocks_count = Div ({name}_count, {name}_n)",
                f"{name}_block_shape = Concat <axis = 0> ({name}_blocks_count, {name}_n, {name}_row_shape)",
                f"{name}_gathered = Reshape <allowzero = 1> ({name}_f, {name}_block_shape)",
                f"{name}_blocks = Transpose <perm = [{order}]> ({name}_gathered)",
            ]
        else:
            lines += [*(_layout("k_offsets", "k_layout") if name == "k" else []), *_padded(f"{name}_f", "k_layout", order)]
            lines.append(f"{name}_blocks = Identity ({name}_f_padded)")
        read = f"Gather <axis = 0> ({name}_blocks, kv_index)" if node.indexed else f"Identity ({name}_blocks)"
        lines.append(f"{name}_read = {read}")
    return [
        *lines,
        f"products = MatMul ({queries}_padded, k_read)",
        "scores = Mul (products, a_scale_in)",
        *_ACTIVATIONS[node.activation],
        "weighted = MatMul (hidden, v_read)",
        "scaled = Mul (weighted, a_scale_out)",
        *_back_to_rows("scaled", "q_layout", "q_offsets", queries),
    ]


def _gdpa_alone(node: GDPA) -> list[str]:
    """`result`: `kernels.gdpa.reference`."""
    return [*_float("q", "k", "v"), *_gdpa(node, "q_f"), "result = Identity (mixed)"]


def _pffn(node: PFFN) -> list[str]:
    """`result`: the block of `kernels.pffn.reference`."""
    return [
        *_float("q", "k", "v"),
        "row_major = Flatten <axis = 1> (q_f)",
        "mean = ReduceMean <keepdims = 1> (row_major, last)",
        "centred = Sub (row_major, mean)",
        "squares = Mul (centred, centred)",
        "variance = ReduceMean <keepdims = 1> (squares, last)",
        "variance_eps = Add (variance, a_eps)",
        "deviation = Sqrt (variance_eps)",
        "normed_flat = Div (centred, deviation)",
        "q_f_whole = Shape (q_f)",
        "normed = Reshape <allowzero = 1> (normed_flat, q_f_whole)",
        *_gdpa(node, "normed"),
        "inner = Add (mixed, normed)",
        "inner_flat = Flatten <axis = 1> (inner)",
        "inner_squares = Mul (inner_flat, inner_flat)",
        "power = ReduceMean <keepdims = 1> (inner_squares, last)",
        "power_eps = Add (power, a_eps)",
        "root = Sqrt (power_eps)",
        "unit_flat = Div (inner_flat, root)",
        "unit = Reshape <allowzero = 1> (unit_flat, q_f_whole)",
        "result = Add (unit, q_f)",
    ]


def _window() -> list[str]:
    """`result`: the attention of `kernels.window.reference`."""
    return [
        *_float("q", "k", "v"),
        *_layout("offsets", "layout"),
        *_padded("q_f", "layout", _BY_HEAD),
        *_padded("k_f", "layout", _BY_HEAD_TRANSPOSED),
        *_padded("v_f", "layout", _BY_HEAD),
        "products = MatMul (q_f_padded, k_f_padded)",
        "scores = Mul (products, a_scale)",
        "step_column = Unsqueeze (layout_steps, axis_1)",
        "apart = Sub (step_column, layout_steps)",
        "distance = Abs (apart)",
        "band = Cast <to = 6> (a_window)",
        "near = LessOrEqual (distance, band)",
        "keys = Unsqueeze (layout_present, axis_1)",
        "seen = And (near, keys)",
        "seen_by_heads = Unsqueeze (seen, axis_1)",
        "kept = Where (seen_by_heads, scores, masked)",
        "weights = Softmax <axis = -1> (kept)",
        "attended = MatMul (weights, v_f_padded)",
        *_back_to_rows("attended", "layout", "offsets", "q_f"),
        "result = Identity (mixed)",
    ]


def _seed_pooling() -> list[str]:
    """`result`: the pooling of `kernels.seed_pooling.reference`; where nothing is present, all of v is zero."""
    return [
        *_float("seeds", "k", "v"),
        *_layout("offsets", "layout"),
        *_padded("k_f", "layout", _BY_HEAD_TRANSPOSED),
        *_padded("v_f", "layout", _BY_HEAD),
        "queries = Transpose <perm = [1, 0, 2]> (seeds_f)",
        "products = MatMul (queries, k_f_padded)",
        "scores = Mul (products, a_scale)",
        "keys = Unsqueeze (layout_present, axis_1)",
        "keys_by_heads = Unsqueeze (keys, axis_1)",
        "kept = Where (keys_by_heads, scores, masked)",
        "weights = Softmax <axis = -1> (kept)",
        "pooled = MatMul (weights, v_f_padded)",
        f"result = Transpose <perm = [{_BY_HEAD}]> (pooled)",
    ]
