"""What the machine code of a cubin consists of: kinds of tensor-core instructions, special functions, spills, global accesses.

Counts are static: instructions in the text, not executions. A Triton tile is unrolled in registers, so per pass over the
loop body they are also what a warp executes.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass

_INSTRUCTION = re.compile(r"^\s+(?:/\*[0-9a-f]+\*/\s+)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)((?:\.[A-Za-z0-9_]+)*)", re.MULTILINE)
_TENSOR = {"HMMA", "HGMMA", "UTCHMMA", "UTCQMMA", "UTCMMA", "QGMMA"}


@dataclass(frozen=True)
class MachineCode:
    """Static instruction counts of one kernel. `tensor`: kind → count; `spill_accesses`: loads and stores of the stack."""

    instructions: int
    tensor: dict[str, int]
    special: int  # tanh and base-2 exponentials: one per activation
    f32_math: int
    spill_accesses: int

    @property
    def tensor_kind(self) -> str:
        """`HMMA` (mma.sync), `HGMMA` (wgmma), `UTCHMMA` (tcgen05.mma), or `none`."""
        return max(self.tensor, key=lambda kind: self.tensor[kind]) if self.tensor else "none"


def read_machine_code(image: bytes) -> MachineCode:
    """Disassembles a cubin with the nvdisasm that Triton bundles; raises `RuntimeError` when it refuses."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(image)
        file.flush()
        command = [knobs.nvidia.nvdisasm.path, "-c", "-novliw", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"nvdisasm: {done.stderr.strip()}")
    return count(done.stdout)


def count(text: str) -> MachineCode:
    """Counts the instructions of nvdisasm's text."""
    found = [match.groups() for match in _INSTRUCTION.finditer(text)]
    kinds = Counter(name for name, _ in found)
    return MachineCode(
        instructions=sum(kinds.values()),
        tensor={kind: kinds[kind] for kind in sorted(_TENSOR) if kinds[kind]},
        special=sum(name == "MUFU" and modifiers.startswith((".TANH", ".EX2")) for name, modifiers in found),
        f32_math=sum(kinds[name] for name in ("FFMA", "FMUL", "FADD", "FFMA2", "FMUL2", "FADD2")),
        spill_accesses=kinds["LDL"] + kinds["STL"],
    )
