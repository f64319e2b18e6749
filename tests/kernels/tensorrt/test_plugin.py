"""The plugins, driven as TensorRT drives them: by a C++ program with a recording driver, and by NVIDIA's parser and builder."""

from __future__ import annotations

import ctypes
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from fake_driver import build as build_driver
from smallest import HEADS, N_KV, WIDTH

from kernels.tensorrt.bodies import TYPES
from kernels.tensorrt.build import build_plugin
from kernels.tensorrt.examples import model_of, profiles, unchecked
from kernels.tensorrt.loader import find_plugin
from kernels.tensorrt.nodes import GDPA, PFFN, Node, SeedPooling, WindowAttention
from kernels.tensorrt.parser import Findings, ask
from kernels.tensorrt.toolkit import Headers, Libraries

NODES: list[Node] = [
    GDPA(n_kv=N_KV, indexed=1),
    GDPA(activation="silu", n_kv=0),
    PFFN(n_kv=N_KV, max_length=40),
    WindowAttention(4, WIDTH**-0.5),
    SeedPooling(WIDTH**-0.5),
]


@pytest.fixture(scope="session")
def scenarios(headers: Headers, plugin: Path) -> Path:
    program = plugin.parent / "scenarios"
    source = Path(__file__).with_name("plugin_scenarios.cpp")
    includes = ["-isystem", str(headers.tensorrt), "-isystem", str(headers.cuda)]
    command = ["c++", "-std=c++17", "-O1", *includes, str(source), "-o", str(program), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return program


def results(scenarios: Path, plugin: Path, driver: str) -> dict[str, str]:
    done = subprocess.run([str(scenarios), str(plugin), driver], capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


@pytest.fixture(scope="session")
def with_driver(scenarios: Path, plugin: Path) -> dict[str, str]:
    return results(scenarios, plugin, str(build_driver(plugin.parent)))


def test_attributes_that_do_not_fit_are_named(with_driver: dict[str, str]) -> None:
    assert with_driver["unknown_activation"].startswith("PFFN: activation: expected one of raw, relu, leaky_relu")
    assert with_driver["unknown_activation"].endswith("found 'tanh'")
    assert with_driver["negative_n_kv"] == "PFFN: n_kv: expected 0 to 2147483647, found -1"
    assert with_driver["indexed_40"] == "PFFN: indexed: expected 0 to 1, found 40"
    assert with_driver["eps_of_zero"] == "PFFN: eps: expected a number above 0 and finite, found 0"
    assert with_driver["float_n_kv"].startswith("PFFN: n_kv: expected an integer, found a field of type")
    assert with_driver["no_window"].startswith("WindowAttention: window: expected an integer, found no such attribute")


def test_types_and_shapes_that_do_not_fit_are_named(with_driver: dict[str, str]) -> None:
    assert all(with_driver[f"supports_{name}"] == "1" for name in ("f32", "f16", "bf16"))
    assert with_driver["supports_int64_offsets"] == with_driver["supports_mixed"] == "0"
    assert with_driver["int64_offsets_error"] == "PFFN: q_offsets: expected int32, found int64; cast it in the graph"
    assert with_driver["mixed_error"].startswith("PFFN: k: expected float32 like the first input, found float16")
    assert with_driver["missing_input_error"].startswith("PFFN: expected the inputs q, k, v, q_offsets, kv_index, found 4")
    assert with_driver["odd_keys_error"] == "PFFN: k: expected a multiple of n_kv = 8 rows, found 21"
    assert with_driver["dynamic_heads_error"].startswith("PFFN: q: expected heads and head_width known")
    assert with_driver["other_users_error"] == "PFFN: kv_index: expected an entry for each of 5 samples, found 4"
    refused = ("dynamic_heads", "odd_keys", "other_users", "not_shipped")
    assert all(with_driver[name] == "1" for name in refused)


def test_the_build_phase_opens_no_driver(with_driver: dict[str, str]) -> None:
    assert with_driver["configured"] == "0"
    assert with_driver["driver_opened_by_build"] == "0"


def test_a_kernel_is_loaded_when_attached_and_enqueue_only_launches(with_driver: dict[str, str]) -> None:
    assert (with_driver["attached"], with_driver["modules_after_attach"]) == ("1", "1")
    assert (with_driver["shapes"], with_driver["enqueued"], with_driver["launches"]) == ("0", "0", "1")
    assert with_driver["modules_after_enqueue"] == "1"
    assert int(with_driver["allocations_of_a_clone"]) > 0
    assert with_driver["allocations_in_enqueue"] == "0"
    assert with_driver["stream"] == str(0xABC0)


def test_a_thread_without_a_cuda_context_may_attach_and_loads_later(with_driver: dict[str, str]) -> None:
    assert (with_driver["attached_without_context"], with_driver["modules_without_context"]) == ("1", "0")
    assert with_driver["shapes_without_context"] == "1"
    assert "no CUDA context is current on this thread" in with_driver["shapes_without_context_error"]


def test_the_launch_is_that_of_the_attributes_and_shapes(with_driver: dict[str, str]) -> None:
    # max_length 40 is cut to the 30 rows there are: one tile of at least 30 rows for each of 5 samples, all heads in one block.
    assert with_driver["grid"] == "5x1x1"


def test_nothing_is_launched_without_rows_but_empty_samples_are_pooled(with_driver: dict[str, str]) -> None:
    assert (with_driver["empty"], with_driver["launches_of_empty"]) == ("0", "0")
    assert (with_driver["pool_shapes"], with_driver["pool_enqueued"], with_driver["pool_launches"]) == ("0", "0", "1")


def test_a_kernel_that_is_not_shipped_is_refused_before_it_is_launched(with_driver: dict[str, str]) -> None:
    assert "no kernel for these parameters on sm_80; there are: dtype KUNLUN_F32" in with_driver["not_shipped_error"]


def test_an_engine_is_built_without_a_driver_and_refused_at_run_time(scenarios: Path, plugin: Path) -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        found = results(scenarios, plugin, "none")
        assert (found["build_shapes"], found["attached"], found["runtime_shapes"]) == ("0", "0", "1")
        assert found["attach_error"].startswith("PFFN: no kernel is loaded: no NVIDIA driver")
    else:
        pytest.skip("this machine has a driver")


def test_the_library_says_what_it_is(headers: Headers, plugin: Path) -> None:
    library = find_plugin(plugin)
    assert library.tensorrt == ".".join(map(str, headers.version))
    assert library.kernels[f"pffn_f32_h{HEADS}x{WIDTH}_kv{N_KV}"] == (80,)


def test_missing_kernel_sources_are_named(headers: Headers, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as error:
        build_plugin(headers, tmp_path / "nothing", tmp_path / "build")
    words = " ".join(str(error.value).split())
    assert "KUNLUN_GENERATED: expected the folder of table.cpp, found none in" in words
    assert "run `make kernels` first" in words


def parsed(
    check: Path, libraries: Libraries, plugin: Path, model: onnx.ModelProto, tmp_path: Path, build: bool = False
) -> Findings:
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return ask(check, libraries, plugin, path, profiles(model, samples=6, rows=40, n_kv=N_KV) if build else ())


@pytest.mark.parametrize("dtype", TYPES)
def test_nvidias_parser_takes_the_plugins_and_infers_shapes(
    check: Path, libraries: Libraries, plugin: Path, tmp_path: Path, dtype: str
) -> None:
    for node in NODES:
        found = parsed(check, libraries, plugin, model_of([node], dtype, HEADS, WIDTH), tmp_path)
        assert not found.problems()
        assert [(p.operator, p.dtype, p.restored) for p in found.plugins] == [(node.op_type, dtype, True)]
        samples = (-1, -1) if isinstance(node, SeedPooling) else (-1,)
        assert found.outputs == {"out_0": (dtype, (*samples, HEADS, WIDTH))}


def test_plugins_are_taken_before_function_bodies_also_with_overloads(
    check: Path, libraries: Libraries, plugin: Path, tmp_path: Path
) -> None:
    model = model_of([replace(GDPA(n_kv=N_KV), activation=name) for name in ("silu", "gelu")], "f32", HEADS, WIDTH)
    assert {function.overload for function in model.functions} == {"", "gelu"}
    found = parsed(check, libraries, plugin, model, tmp_path)
    assert found.layers == len(found.plugins) == 2


def test_a_plan_with_the_plugin_is_built_on_the_cpu(check: Path, libraries: Libraries, plugin: Path, tmp_path: Path) -> None:
    found = parsed(check, libraries, plugin, model_of([NODES[2]], "f32", HEADS, WIDTH), tmp_path, build=True)
    assert not found.problems()
    assert found.plan_bytes, found.messages


def test_the_parsers_error_says_what_is_wrong_with_an_attribute(
    check: Path, libraries: Libraries, plugin: Path, tmp_path: Path
) -> None:
    attributes = GDPA(n_kv=N_KV).attributes | {"activation": "tanh"}
    found = parsed(check, libraries, plugin, unchecked([GDPA(n_kv=N_KV)], [attributes], "f32", HEADS, WIDTH), tmp_path)
    assert not found.parsed
    assert any("GDPA: activation: expected one of raw" in message for message in found.messages)


def test_the_manifest_is_json(with_driver: dict[str, str]) -> None:
    assert json.loads(with_driver["manifest"])["namespace"] == "kunlun"
