"""Which compiled kernel a node runs, and whether it is shipped: known from the graph, without a GPU to ask. No torch here."""

from __future__ import annotations

from kernels.tensorrt.nodes import GDPA, PFFN, Node, WindowAttention
from kernels.variants import ACTIVATION, shipped


def kernel_of(node: Node, dtype: str, heads: int, head_width: int) -> str:
    """Name of the kernel variant, as `kernels.aot.catalogue` names it; dtype f32, f16 or bf16."""
    shape = f"{dtype}_h{heads}x{head_width}"
    if isinstance(node, GDPA):
        return f"{'pffn' if isinstance(node, PFFN) else 'gdpa'}_{shape}_kv{node.n_kv or 'long'}"
    return f"{'window' if isinstance(node, WindowAttention) else 'seed_pooling'}_{shape}"


def problem(node: Node, dtype: str, heads: int, head_width: int) -> str | None:
    """Why no kernel is shipped for a node, in words; None: one is."""
    if isinstance(node, GDPA) and node.activation != ACTIVATION:
        return (
            f"{node.op_type}: expected the activation {ACTIVATION}, found {node.activation}; kernels are shipped for that alone"
        )
    name = kernel_of(node, dtype, heads, head_width)
    held = shipped_kernels()
    if name in held:
        return None
    kind = name.partition("_")[0]
    known = ", ".join(sorted(other for other in held if other.startswith(kind)))
    return f"{node.op_type}: no kernel {name} is shipped; there are {known} (kernels/variants.py)"


def shipped_kernels() -> frozenset[str]:
    """Names of all variants that are compiled ahead of time."""
    variants = shipped()
    shapes = {f"{v.dtype}_h{v.heads}x{v.head_width}" for v in variants}
    return frozenset(
        {v.name for v in variants} | {f"{kind}_{shape}" for kind in ("window", "seed_pooling") for shape in shapes}
    )
