"""The ONNX nodes of the operators: what an exporter writes, every engine reads, and the TensorRT plugin implements.

Domain `kunlun`, version 1. Tensors are the jagged ones of `kernels.gdpa.reference`: rows of all samples one after the other,
int32 offsets [B + 1]. Rows beyond the last offset belong to no sample; what an output holds there is unspecified. Inputs are
given in this order, optional ones only where an attribute says so (TensorRT's parser takes no gaps):

    GDPA, PFFN       q [rows, H, d_h], k, v [blocks · n_kv, H, d_h], q_offsets
                     + k_offsets [blocks + 1] where n_kv is 0 (jagged blocks) + kv_index [B] where indexed is 1
                     → out like q
    WindowAttention  q, k, v [rows, H, d_h], offsets                            → out like q
    SeedPooling      seeds [n_seeds, H, d_h], k, v [rows, H, d_h], offsets      → out [B, n_seeds, H, d_h]

All floating tensors of a node have one type, f32, f16 or bf16. Attributes are the fields below; strings `plugin_namespace`
and `plugin_version` tell TensorRT's parser which plugin to take. No torch and no onnx here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from kernels.aot.library import ACTIVATIONS

DOMAIN = "kunlun"
VERSION = 1
PLUGIN = {"plugin_namespace": "kunlun", "plugin_version": "1"}


@dataclass(frozen=True)
class GDPA:
    """scale_out · Act(scale_in · Q Kᵀ) V on jagged queries.

    `n_kv`: rows of a dense K/V block, 0: jagged blocks. `indexed`: 1 where sample i reads block kv_index[i], 0: block i.
    `max_length`: no sample has more rows, 0: unknown; it sizes the grid of the kernel. Raises `ValueError`.
    """

    op_type: ClassVar[str] = "GDPA"
    activation: str = "fast_gelu"
    n_kv: int = 0
    scale_in: float = 1.0
    scale_out: float = 1.0
    indexed: int = 0
    max_length: int = 0

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"{self.op_type}: activation: expected one of {', '.join(ACTIVATIONS)}, found {self.activation!r}")
        _at_least_0(self, "n_kv", "max_length")
        if self.indexed not in (0, 1):
            raise ValueError(f"{self.op_type}: indexed: expected 0 or 1, found {self.indexed}")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        optional = (("k_offsets", self.n_kv == 0), ("kv_index", self.indexed == 1))
        return ("q", "k", "v", "q_offsets", *(name for name, given in optional if given))

    @property
    def attributes(self) -> dict[str, int | float | str]:
        """What the ONNX node carries."""
        return asdict(self) | PLUGIN


@dataclass(frozen=True)
class PFFN(GDPA):
    """The PFFN block: LayerNorm → GDPA → + q̂ → RMSNorm → + q. `eps`: of both norms, which span all heads of a row."""

    op_type: ClassVar[str] = "PFFN"
    eps: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "eps")


@dataclass(frozen=True)
class WindowAttention:
    """softmax(scale · Q Kᵀ) V over the keys of the same sample with abs(i − j) ≤ window. Raises `ValueError`."""

    op_type: ClassVar[str] = "WindowAttention"
    inputs: ClassVar[tuple[str, ...]] = ("q", "k", "v", "offsets")
    window: int
    scale: float
    max_length: int = 0

    def __post_init__(self) -> None:
        _at_least_0(self, "window", "max_length")
        _positive(self, "scale")

    @property
    def attributes(self) -> dict[str, int | float | str]:
        """What the ONNX node carries."""
        return asdict(self) | PLUGIN


@dataclass(frozen=True)
class SeedPooling:
    """softmax(scale · S Kᵀ) V of shared seeds over each sample's rows; a sample without rows gives 0. Raises `ValueError`."""

    op_type: ClassVar[str] = "SeedPooling"
    inputs: ClassVar[tuple[str, ...]] = ("seeds", "k", "v", "offsets")
    scale: float

    def __post_init__(self) -> None:
        _positive(self, "scale")

    @property
    def attributes(self) -> dict[str, int | float | str]:
        """What the ONNX node carries."""
        return asdict(self) | PLUGIN


Node = GDPA | WindowAttention | SeedPooling
NODES: dict[str, type[Node]] = {node.op_type: node for node in (GDPA, PFFN, WindowAttention, SeedPooling)}


def parse(op_type: str, attributes: dict[str, Any]) -> Node:
    """The node that attributes of an ONNX node describe. Raises `ValueError` naming what is unknown, absent or out of range."""
    if op_type not in NODES:
        raise ValueError(f"{DOMAIN}: expected an operator among {', '.join(NODES)}, found {op_type!r}")
    fields = {name: value for name, value in attributes.items() if name not in PLUGIN}
    for name, expected in PLUGIN.items():
        if (found := attributes.get(name)) != expected:
            raise ValueError(f"{op_type}: {name}: expected {expected!r}, found {found!r}")
    try:
        return NODES[op_type](**fields)
    except TypeError as error:
        raise ValueError(f"{op_type}: attributes {sorted(fields)} do not fit: {error}") from error


def _at_least_0(node: Node, *names: str) -> None:
    for name in names:
        if (value := getattr(node, name)) < 0:
            raise ValueError(f"{node.op_type}: {name}: expected at least 0, found {value}")


def _positive(node: Node, name: str) -> None:
    value = getattr(node, name)
    if not 0 < value < float("inf"):
        raise ValueError(f"{node.op_type}: {name}: expected a positive number, found {value}")
