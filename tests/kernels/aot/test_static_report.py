"""The committed report, tile table and catalogue fit the kernels: a subset is compiled, the rest is `make kernels-check`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from kernels.aot import report, tiles
from kernels.aot.catalogue import everything, variants
from kernels.aot.compiler import Compiled, Job, compile_variant
from kernels.aot.jobs import selected_jobs
from kernels.aot.targets import PTX_SM, PTX_TILES_SM, TARGETS
from kernels.aot.tile_search import classes
from kernels.variants import Blocks

ROOT = Path(__file__).parents[3]


def test_nothing_that_is_compiled_here_has_a_fault(compiled: list[Compiled]) -> None:
    assert [problem for unit in compiled for problem in report.problems(unit)] == []


def test_a_spill_or_a_block_that_does_not_fit_is_a_fault(compiled: list[Compiled]) -> None:
    unit = compiled[0]
    spilling = dataclasses.replace(unit, info=dataclasses.replace(unit.info, stack_bytes=8))
    assert "spills: 8 bytes of stack" in report.problems(spilling)[0]
    assert "does not fit" in report.problems(dataclasses.replace(unit, shared_bytes=300 * 1024))[0]
    idle = dataclasses.replace(unit, code=dataclasses.replace(unit.code, tensor={}))
    assert "no tensor cores" in report.problems(idle)[0]


def test_the_committed_report_is_that_of_these_kernels(compiled: list[Compiled]) -> None:
    """Every cell of the subset, and every name; all cells in `make kernels-check`."""
    lines = (ROOT / report.PATH).read_text(encoding="utf-8").splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    rows = {row[0]: row[1:] for row in table if len(row) == 1 + len(TARGETS)}
    column = {t.sm: i for i, t in enumerate(TARGETS)}
    for unit in compiled:
        fresh = [cell.strip() for cell in report.resource_row("", [unit]).strip("|").split("|")][1:]
        at = column[unit.job.sm]
        assert rows[unit.job.variant.name][at] == fresh[at], (unit.job.variant.name, unit.job.sm)
    assert {v.name for v in everything()} <= set(rows)


def test_every_variant_is_text_once_and_fits_the_smallest_gpu(compiled: list[Compiled]) -> None:
    """What the driver compiles for a GPU of its own must not ask for the shared memory of an A100."""
    texts = [job for job in selected_jobs() if job.text]
    assert {job.sm for job in texts} == {PTX_SM}
    assert [job.variant for job in texts] == variants(PTX_TILES_SM)
    unit = next(unit for unit in compiled if unit.job.text)
    large = dataclasses.replace(unit, shared_bytes=160 * 1024)
    assert report.problems(large) == [
        f"{unit.job.variant.name} on sm_80 as text: 163840 bytes of shared memory, other GPUs may have 101376"
    ]
    assert report.problems(dataclasses.replace(large, job=dataclasses.replace(unit.job, text=False))) == []


def test_the_tile_table_holds_exceptions_alone() -> None:
    members = classes()
    for name, row in json.loads(tiles.TABLE.read_text(encoding="utf-8")).items():
        for sm, chosen in row.items():
            assert tiles.blocks(members[name][0], int(sm)) == Blocks(**chosen)
            assert chosen != dataclasses.asdict(tiles.tuned(members[name][0])), (name, sm)


def test_candidates_begin_with_the_tuned_tiles_and_become_smaller() -> None:
    for members in classes().values():
        found = list(tiles.candidates(members[0]))
        assert found[0] == tiles.tuned(members[0])
        assert len(found) == len(set(found))
        assert all(b.m * b.n <= found[0].m * found[0].n for b in found)


def test_a_kernel_whose_arguments_changed_is_refused_by_name() -> None:
    variant = variants(80)[0]
    renamed = dict(variant.arguments)
    renamed["queries"] = renamed.pop("q")
    with pytest.raises(ValueError, match=r"arguments must name exactly .*missing \['q'\], unexpected \['queries'\]"):
        dataclasses.replace(variant, arguments=renamed)


def test_nothing_is_compiled_in_interpret_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"):
        compile_variant(Job(variants(80)[0], 80))
