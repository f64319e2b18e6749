"""The launcher library against a recording driver: what it loads, launches and refuses, and where every parameter goes."""

from __future__ import annotations

import ctypes
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import launcher_scenarios as scenarios
import pytest
from fake_driver import in_driver_process

from kernels.aot.catalogue import variants
from kernels.aot.compiler import Compiled
from kernels.aot.library import ACTIVATIONS, Status


@pytest.mark.parametrize(
    ("fields", "name"), [(scenarios.GDPA, "gdpa_bf16_h2x64_kv64"), (scenarios.PFFN, "pffn_f16_h2x64_kv64")]
)
@pytest.mark.parametrize("sm", [80, 90, 100])
def test_every_parameter_lands_where_the_loaded_cubin_reads_it(
    fake_libcuda: Path, library_path: Path, compiled: list[Compiled], sm: int, fields: dict[str, Any], name: str
) -> None:
    seen = in_driver_process(scenarios.launched, fake_libcuda, library_path, sm, fields)
    (unit,) = (c for c in compiled if c.job.sm == sm and c.job.variant.name == name)
    assert seen["image"] == unit.image[: len(seen["image"])]
    assert seen["block"] == (unit.threads, 1, 1)
    assert seen["shared"] == unit.shared_bytes
    assert seen["stream"] == 0xABC0
    rows = unit.job.variant.unit_rows
    assert seen["unit_rows"] == rows
    per_sample = -(-fields["max_length"] // rows)
    assert seen["grid"] == (per_sample * fields["samples"], fields["heads"] if fields["block"] == 0 else 1, 1)
    values = fields | {"tiles": 0, "q_lengths": fields.get("q_lengths", 0), "units_per_sample": per_sample, "window": -1}
    order = list(unit.job.variant.c_types())
    assert len(seen["parameters"]) == len(order) + unit.hidden_parameters
    for argument, (size, raw) in zip(order, seen["parameters"], strict=False):
        kind = "<f" if isinstance(values[argument], float) else {4: "<i", 8: "<Q"}[size]
        assert struct.unpack(kind, raw)[0] == pytest.approx(values[argument]), argument
    assert all(raw == bytes(8) for _, raw in seen["parameters"][len(order) :])


@pytest.mark.parametrize("sm", [80, 90, 100])
def test_attention_parameters_land_where_the_loaded_cubin_reads_them(
    fake_libcuda: Path, library_path: Path, compiled: list[Compiled], sm: int
) -> None:
    window, pooling = scenarios.WINDOW | {"samples": 3, "max_length": 500}, scenarios.POOLING
    for family, fields, name in (("window", window, "window_bf16_h2x64"), ("seed_pooling", pooling, "seed_pooling_f16_h2x64")):
        seen = in_driver_process(scenarios.launched, fake_libcuda, library_path, sm, fields, False, family)
        (unit,) = (c for c in compiled if c.job.sm == sm and c.job.variant.name == name)
        rows = unit.job.variant.unit_rows
        tiles = -(-fields["n_seeds"] // rows) if family == "seed_pooling" else 1
        assert seen["grid"] == ((11, 2, 1) if family == "window" else (7, 2, tiles))
        values = fields | {"lse": fields.get("lse", 0), "tiles": fields.get("units", 0)}
        values |= {"log2_scale": fields["scale"] * math.log2(math.e), "units_per_sample": -(-500 // rows)}
        for argument, (size, raw) in zip(unit.job.variant.c_types(), seen["parameters"], strict=False):
            kind = "<f" if isinstance(values[argument], float) else {4: "<i", 8: "<Q"}[size]
            assert struct_of(kind, raw) == pytest.approx(values[argument]), argument


def struct_of(kind: str, raw: bytes) -> float:
    value: float = struct.unpack(kind, raw)[0]
    return value


def test_attention_arguments_are_validated(fake_libcuda: Path, library_path: Path) -> None:
    in_driver_process(scenarios.attention_refusals, fake_libcuda, library_path)


def test_more_than_48_kib_of_shared_memory_are_asked_for(
    fake_libcuda: Path, library_path: Path, compiled: list[Compiled]
) -> None:
    large = [c for c in compiled if c.shared_bytes > 48 * 1024 and c.job.variant.name.startswith("pffn")]
    assert large, "no variant of this library needs it: choose others in conftest.py"
    seen = in_driver_process(scenarios.launched, fake_libcuda, library_path, large[0].job.sm, scenarios.PFFN)
    assert seen["dynamic"] == seen["shared"] == large[0].shared_bytes


@pytest.mark.parametrize(("sm", "expected"), [(80, 80), (86, 80), (89, 80), (90, 90), (100, 100)])
def test_the_nearest_cubin_is_loaded(
    fake_libcuda: Path, library_path: Path, compiled: list[Compiled], sm: int, expected: int
) -> None:
    """8.x runs a cubin of an earlier 8.y; from 9.0 on cubins are bound to their architecture."""
    seen = in_driver_process(scenarios.launched, fake_libcuda, library_path, sm, scenarios.GDPA)
    (unit,) = (c for c in compiled if c.job.sm == expected and c.job.variant.name == "gdpa_bf16_h2x64_kv64")
    assert seen["image"] == unit.image[: len(seen["image"])]
    assert seen["modules"] == 1


@pytest.mark.parametrize(("sm", "force"), [(121, False), (103, False), (90, True)])
def test_other_gpus_and_forced_ones_get_text(fake_libcuda: Path, library_path: Path, sm: int, force: bool) -> None:
    seen = in_driver_process(scenarios.launched, fake_libcuda, library_path, sm, scenarios.GDPA, force)
    assert b".target sm_80" in seen["image"]
    assert b".version 8.0" in seen["image"]


def test_a_driver_that_is_too_old_for_a_cubin_gets_text(fake_libcuda: Path, library_path: Path) -> None:
    assert b".target sm_80" in in_driver_process(scenarios.refused_cubin, fake_libcuda, library_path)


def test_a_cubin_that_the_driver_was_short_of_memory_for_is_tried_again(fake_libcuda: Path, library_path: Path) -> None:
    in_driver_process(scenarios.short_of_memory, fake_libcuda, library_path)


def test_a_module_whose_kernel_cannot_be_used_is_unloaded(
    fake_libcuda: Path, library_path: Path, compiled: list[Compiled]
) -> None:
    message = in_driver_process(scenarios.unusable_kernels, fake_libcuda, library_path)
    assert "cuModuleGetFunction failed" in message
    large = next(c.job.sm for c in compiled if c.shared_bytes > 48 * 1024 and c.job.variant.name.startswith("pffn"))
    loaded, unloaded = in_driver_process(scenarios.too_much_shared_memory, fake_libcuda, library_path, large)
    assert loaded == unloaded + 1


def test_loading_happens_in_prepare_once_per_context(fake_libcuda: Path, library_path: Path) -> None:
    in_driver_process(scenarios.preparation, fake_libcuda, library_path)


def test_arguments_are_validated_and_messages_say_what_to_change(fake_libcuda: Path, library_path: Path) -> None:
    in_driver_process(scenarios.refusals, fake_libcuda, library_path)


def test_a_gpu_that_is_too_old_is_named(fake_libcuda: Path, library_path: Path) -> None:
    status, message = in_driver_process(scenarios.old_gpu, fake_libcuda, library_path)
    assert status is Status.UNSUPPORTED_DEVICE
    assert "device 0 has compute capability 7.5; expected 8.0 or later" in message


def test_a_driver_without_a_gpu_is_no_driver(fake_libcuda: Path, library_path: Path) -> None:
    status, message = in_driver_process(scenarios.no_device, fake_libcuda, library_path)
    assert status is Status.NO_DRIVER
    assert "cuInit returned 100" in message


def test_threads_prepare_and_launch_together(fake_libcuda: Path, library_path: Path) -> None:
    in_driver_process(scenarios.threads, fake_libcuda, library_path)


NO_DRIVER = """
import sys
from pathlib import Path
from kernels.aot.library import GDPAParams, KernelError, KernelLibrary
library = KernelLibrary(Path(sys.argv[1]))
assert "libcuda" not in Path("/proc/self/maps").read_text()
try:
    library.prepare_all()
except KernelError as error:
    print(error)
"""


def test_without_a_driver_the_library_loads_and_says_what_is_missing(library_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", NO_DRIVER, str(library_path)]
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        assert done.stdout.startswith("no_driver: no NVIDIA driver: libcuda.so.1: cannot open shared object file")
        assert "install a driver of R525 or later, or give the container access to the GPU" in done.stdout
    else:
        pytest.skip("this machine has a driver")


def test_the_library_needs_libc_alone_and_exports_its_header_alone(library_path: Path) -> None:
    dynamic = subprocess.run(["readelf", "-dW", str(library_path)], capture_output=True, text=True, check=True).stdout
    needed = {line.split("[")[1].split("]")[0] for line in dynamic.splitlines() if "(NEEDED)" in line}
    assert needed <= {"libc.so.6", "ld-linux-x86-64.so.2", "libdl.so.2", "libpthread.so.0"}
    exported = subprocess.run(["nm", "-D", "--defined-only", str(library_path)], capture_output=True, text=True, check=True)
    names = {line.split()[-1] for line in exported.stdout.splitlines()}
    header = (library_path.parent / "kunlun_kernels.h").read_text()
    declared = {line.split("(")[0].split()[-1].lstrip("*") for line in header.splitlines() if line.startswith("KUNLUN_API")}
    assert names == declared


@pytest.mark.parametrize("name", sorted(scenarios.STRUCTS))
def test_the_ctypes_structs_have_the_layout_of_the_header(tmp_path: Path, library_path: Path, name: str) -> None:
    struct_type = scenarios.STRUCTS[name]
    fields = [field for field, _ in struct_type._fields_]
    c_name, macro = f"kunlun_{name}_params", f"KUNLUN_{name.upper()}_PARAMS_V1"
    offsets = "\n".join(f'printf("%zu ", offsetof({c_name}, {field}));' for field in fields)
    source = tmp_path / "layout.c"
    source.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "kunlun_kernels.h"\n'
        f'int main(void) {{ {offsets} printf("%zu %u", sizeof({c_name}), {macro}); }}'
    )
    command = ["cc", "-std=c99", "-Wall", "-Werror", f"-I{library_path.parent}", str(source), "-o", str(tmp_path / "layout")]
    subprocess.run(command, check=True)
    found = subprocess.run([str(tmp_path / "layout")], capture_output=True, text=True, check=True).stdout.split()
    expected = [getattr(struct_type, field).offset for field in fields]
    assert [int(number) for number in found] == [*expected, ctypes.sizeof(struct_type), struct_type().version]


def test_activations_have_the_numbers_of_the_kernels() -> None:
    from kernels.activations import NAMES

    assert tuple(NAMES) == ACTIVATIONS


def test_every_shipped_name_is_unique_on_every_sm() -> None:
    for sm in (80, 120):
        names = [v.name for v in variants(sm)]
        assert len(names) == len(set(names))
