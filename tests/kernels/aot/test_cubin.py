"""What is read from cubins, against the tools that made them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import triton

from kernels.aot.compiler import Compiled
from kernels.aot.cubin import read_cubin
from kernels.aot.sass import count
from kernels.aot.targets import BY_SM


def test_registers_stack_and_parameters_are_those_that_cuobjdump_prints(compiled: list[Compiled], tmp_path: Path) -> None:
    """Stack of a kernel and parameters by cuobjdump for every SM: the layout of the records is not documented."""
    for unit in compiled:
        file = tmp_path / "kernel.cubin"
        file.write_bytes(unit.image)
        texts = []
        for option in ("-res-usage", "-elf"):
            command = [triton.knobs.nvidia.cuobjdump.path, option, str(file)]
            texts.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", texts[0])
        assert usage is not None
        info = unit.info
        assert [int(x) for x in usage.groups()] == [info.registers, info.stack_bytes, info.static_shared_bytes]
        body = texts[1].split(f".nv.info.{info.kernel}\n")[-1]
        found = {
            tuple(int(x, 16) for x in match)
            for match in re.findall(r"Ordinal : (0x\w+)\s+Offset\s+: (0x\w+)\s+Size\s+: (0x\w+)", body)
        }
        assert found == {(p.ordinal, p.offset, p.size) for p in info.parameters}
        assert info.parameter_bytes == info.parameters[-1].offset + info.parameters[-1].size


def test_tensor_cores_are_used_in_each_gpus_own_way(compiled: list[Compiled]) -> None:
    for unit in compiled:
        assert unit.code.tensor_kind == BY_SM[unit.job.sm].tensor_op, (unit.job.variant.name, unit.job.sm)


def test_one_special_function_per_activation_of_a_tile(compiled: list[Compiled]) -> None:
    """fast_gelu of 16-bit types is one tanh: the static count is that of whole passes over a tile."""
    for unit in (c for c in compiled if c.job.variant.family == "gdpa_forward"):
        per_pass = unit.job.variant.work.tile_scores / unit.threads
        assert unit.code.special >= per_pass
        assert unit.code.special % per_pass == 0


def test_something_else_than_a_cubin_is_refused() -> None:
    with pytest.raises(ValueError, match="not a 64-bit ELF file"):
        read_cubin(b"\x7fELF\x01" + bytes(100))


SASS = """
        /*0000*/                   LDC R1, c[0x0][0x37c] ;
        /*0010*/              @!P0 BRA `(.L_x_1) ;
        /*0020*/                   HGMMA.64x128x16.F32.BF16 R24, R4, gdesc[UR8], R24 ;
        /*0030*/              @UP1 UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR10], tmem[UR12], idesc[UR13], UP0 ;
        /*0040*/                   MUFU.TANH R3, R3 ;
        /*0050*/                   MUFU.RCP R3, R3 ;
        /*0060*/               @P1 STL.64 [R1], R2 ;
        /*0070*/                   FFMA.FTZ R3, R3, R4, R5 ;
.L_x_1:
        /*0080*/                   EXIT ;
"""


def test_instructions_are_counted_by_kind_with_and_without_predicates() -> None:
    code = count(SASS)
    assert code.tensor == {"HGMMA": 1, "UTCHMMA": 1}
    assert (code.instructions, code.special, code.f32_math, code.spill_accesses) == (9, 1, 1, 1)
