"""The fused PFFN block: against the plain form, the same bits in any batch, put in the right places and nowhere else."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch
from numpy.typing import NDArray
from openvino import opset13
from openvino.utils.node_factory import NodeFactory

from kernels.dispatch import GDPAParams
from kernels.pffn.padded import pffn_padded
from kunlun.cli import main
from model.artifact import Artifact, ArtifactError
from serving.engines.open import open_engine
from serving.engines.openvino_engine import OpenVinoEngine, cpu_settings
from serving.engines.openvino_kernels.build import LIBRARY, Kernels, KernelsUnavailable, build, load
from serving.engines.openvino_kernels.fuse import fuse_pffn

CODES = {"relu": 1, "fast_gelu": 2, "silu": 3}
BOUND = {"f32": 1e-6, "bf16": 4e-3}
"""Relative, in the L2 norm, against float64."""

Arrays = dict[str, NDArray[np.float32]]


@pytest.fixture(scope="module")
def library(fused_engine_cache: Path) -> Path:
    """Built with the shared engine."""
    return next(fused_engine_cache.glob(f"*/{LIBRARY}"))


def able(library: Path, precision: str) -> None:
    if precision == "bf16" and load(library) is not Kernels.BF16:
        pytest.skip("this CPU has no AMX")


def inputs(shape: tuple[int, int, int, int], n_kv: int, seed: int = 0) -> Arrays:
    """q [B, T, d], k and v [B, n_kv, H, d_h] at the sizes that a trained model has."""
    batch, steps, heads, width = shape
    rng = np.random.default_rng(seed)
    made = {
        "q": rng.standard_normal((batch, steps, heads * width)) + 0.3,
        "k": 3 * rng.standard_normal((batch, n_kv, heads, width)),
        "v": rng.standard_normal((batch, n_kv, heads, width)) / n_kv**0.5,
    }
    return {name: array.astype(np.float32) for name, array in made.items()}


@cache
def compiled(library: Path, activation: str, precision: str, n_kv: int, heads: int, width: int) -> Any:
    q = opset13.parameter([-1, -1, heads * width], np.float32)
    k, v = (opset13.parameter([-1, n_kv, heads, width], np.float32) for _ in range(2))
    factory = NodeFactory()
    factory.add_extension(str(library))
    load(library)
    attributes = {
        "activation": CODES[activation],
        "scale_in": 0.125,
        "scale_out": 0.7,
        "eps": 1e-5,
        "bf16": precision == "bf16",
    }
    node = factory.create("PFFN", [q.output(0), k.output(0), v.output(0)], attributes)
    return ov.Core().compile_model(ov.Model([node.output(0)], [q, k, v], "pffn"), "CPU", cpu_settings(precision, 1))


def run(library: Path, activation: str, precision: str, given: Arrays) -> NDArray[np.float32]:
    _, n_kv, heads, width = given["k"].shape
    request = compiled(library, activation, precision, n_kv, heads, width).create_infer_request()
    return np.array(request.infer([given["q"], given["k"], given["v"]])[0])


@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("activation", CODES)
def test_the_kernel_computes_what_the_plain_form_computes(library: Path, activation: str, precision: str) -> None:
    able(library, precision)
    for shape, n_kv in (((3, 21, 2, 64), 64), ((1, 50, 3, 32), 96), ((2, 1, 1, 128), 32)):
        given = inputs(shape, n_kv)
        q, k, v = (torch.from_numpy(given[name]).double() for name in "qkv")
        params = GDPAParams((activation,), 0.125, 0.7)
        want = pffn_padded(q.unflatten(-1, shape[2:]), k, v, params).flatten(2).numpy()
        got = run(library, activation, precision, given)
        assert np.linalg.norm(got - want) <= BOUND[precision] * np.linalg.norm(want), (shape, n_kv)


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_rows_have_the_same_bits_in_any_batch_and_beside_any_rows(library: Path, precision: str) -> None:
    able(library, precision)
    given = inputs((4, 40, 2, 64), 64)
    together = run(library, "fast_gelu", precision, given)
    for users, steps in ((1, 40), (2, 40), (4, 1), (3, 7), (1, 33)):
        fewer = {"q": given["q"][:users, :steps], "k": given["k"][:users], "v": given["v"][:users]}
        fewer = {name: np.ascontiguousarray(array) for name, array in fewer.items()}
        assert np.array_equal(run(library, "fast_gelu", precision, fewer), together[:users, :steps]), (users, steps)


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_rows_of_zeros_stay_zero(library: Path, precision: str) -> None:
    """What padding rests on."""
    able(library, precision)
    given = inputs((2, 20, 2, 64), 64)
    given["q"][1, 5:] = 0
    assert not run(library, "fast_gelu", precision, given)[1, 5:].any()


def test_every_block_of_a_model_is_fused(artifact: Artifact, fused_engine_cache: Path) -> None:
    engine = opened(artifact, fused_engine_cache)
    towers = [artifact.config.tower(event.name) for event in artifact.schema.events]
    assert engine.fused == sum((tower.layers + 1) // 2 for tower in towers)  # even layers have one each


@pytest.mark.parametrize(("activation", "fused"), [("fast_gelu", 1), ("silu", 1), ("gelu", 0)])
def test_blocks_are_fused_whose_activation_the_kernel_has(library: Path, activation: str, fused: int) -> None:
    """The erf form of GELU is another function than the kernel's."""
    fuse_and_compare(library, exported(activation).clone(), inputs((2, 9, 2, 16), 16), fused)


def means(model: Any) -> Any:
    return next(node for node in model.get_ordered_ops() if node.get_type_name() == "ReduceMean")


def norms(model: Any) -> Any:
    return next(node for node in model.get_ordered_ops() if node.get_type_name() == "MVN")


@pytest.mark.parametrize("node_of", [means, norms])
def test_norms_over_another_axis_are_left_alone(library: Path, node_of: Callable[[Any], Any]) -> None:
    model = exported("fast_gelu").clone()
    node_of(model).input(1).replace_source_output(opset13.constant([1]).output(0))
    fuse_and_compare(library, model, inputs((2, 9, 2, 16), 16), 0)


@pytest.mark.parametrize(("kv", "fused"), [((1, 16, 2, 16), 1), ((2, 16, 1, 16), 0)])
def test_keys_that_samples_share_are_read_once_and_shared_heads_are_left_alone(
    library: Path, kv: tuple[int, ...], fused: int
) -> None:
    """The products of the graph broadcast them; a kernel that took them for its own would read beyond their end."""
    model, given = exported("fast_gelu").clone(), inputs((2, 9, 2, 16), 16)
    given |= {name: given[name][: kv[0], :, : kv[2]].copy() for name in "kv"}
    for parameter in model.get_parameters()[1:]:
        parameter.set_partial_shape(ov.PartialShape(list(kv)))
    model.validate_nodes_and_infer_types()
    fuse_and_compare(library, model, given, fused)


def test_keys_of_fewer_samples_are_not_read_beyond_their_end(library: Path) -> None:
    """OpenVINO gives empty results where an operation refuses shapes that were dynamic."""
    given = inputs((3, 9, 2, 16), 16)
    assert run(library, "relu", "f32", given | {name: given[name][:2] for name in "kv"}).size == 0


def fuse_and_compare(library: Path, model: Any, given: Arrays, fused: int) -> None:
    before = np.array(compiled_graph(model).infer(list(given.values()))[0])
    load(library)
    assert fuse_pffn(model, library, bf16=False) == fused
    after = np.array(compiled_graph(model).infer(list(given.values()))[0])
    assert np.abs(before - after).max() <= 1e-5


@cache
def exported(activation: str) -> Any:
    """A block as the exporter writes it, between other operators."""

    class Graph(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            rows = (2 * q).unflatten(-1, (2, 16))
            return pffn_padded(rows, 3 * k, v, GDPAParams((activation,), 0.25, 0.5)).flatten(2).relu()

    example = tuple(torch.from_numpy(array) for array in inputs((2, 9, 2, 16), 16).values())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(
        Graph().eval(), example, dynamo=True, opset_version=20, input_names=list("qkv"), optimize=False, verbose=False
    )
    assert program is not None
    return ov.Core().read_model(program.model_proto.SerializeToString())


def compiled_graph(model: Any) -> Any:
    return ov.Core().compile_model(model.clone(), "CPU", cpu_settings("f32", 1)).create_infer_request()


def opened(artifact: Artifact, cache: Path) -> OpenVinoEngine:
    engine = open_engine(artifact, cache=cache, precision="f32", threads_per_slot=1, slots=1, fused_block=True)
    assert isinstance(engine, OpenVinoEngine)
    return engine


def test_a_compiler_that_is_missing_or_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(KernelsUnavailable, match=r"C\+\+17 compiler \(no-such-compiler\), found none; install one or set CXX"):
        build(tmp_path)
    failing = tmp_path / "failing"
    failing.write_text("#!/bin/sh\necho 'no such flag' >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setenv("CXX", str(failing))
    with pytest.raises(KernelsUnavailable, match="failing failed: no such flag"):
        build(tmp_path)
    assert not (tmp_path / LIBRARY).exists()


def test_compile_needs_no_compiler_unless_asked_for_the_block(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    arguments = ["compile", str(artifact.path), "--precision", "f32", "--cache", str(tmp_path)]
    assert main([*arguments, "--fused-block"]) == 1
    assert "fused_block: expected a C++17 compiler (no-such-compiler), found none" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main(arguments) == 0
    assert "kernels     OpenVINO's own" in capsys.readouterr().out


def test_engines_with_and_without_the_block_are_other_engines(artifact: Artifact, engine_cache: Path) -> None:
    with pytest.raises(ArtifactError, match=r"libraries: expected \{.*'fused_block'.*run `kunlun compile .* --fused-block"):
        opened(artifact, engine_cache)


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_library_that_is_not_the_compiled_one_is_never_loaded(
    artifact: Artifact, fused_engine_cache: Path, tmp_path: Path, damage: str
) -> None:
    cache = Path(shutil.copytree(fused_engine_cache, tmp_path / "engines"))
    library = next(cache.glob(f"*/{LIBRARY}"))
    if damage == "changed":
        with library.open("ab") as file:
            file.write(b"\0")
    else:
        library.unlink()
    with pytest.raises(ArtifactError, match=rf"files\.{LIBRARY} differs from its SHA-256 .*--fused-block"):
        opened(artifact, cache)


def test_the_engine_refuses_to_run_without_the_kernels_it_was_checked_with(engine_cache: Path) -> None:
    plain = next(engine_cache.iterdir())
    with pytest.raises(ArtifactError, match=f"fused_block: expected the compiled kernels at .*{LIBRARY}, found none"):
        OpenVinoEngine(plain, precision="f32", threads=1, device_peak_flops=1.0, fused_block=True)
