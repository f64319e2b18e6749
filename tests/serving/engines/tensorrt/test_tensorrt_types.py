"""The interface that we type-check against is NVIDIA's: our short stubs agree with those published on PyPI."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from pathlib import Path

import pytest
from cuda.bindings import runtime

ROOT = Path(__file__).parents[4]
OURS = ROOT / "typings/tensorrt/__init__.pyi"
ADAPTER = ROOT / "serving/engines/tensorrt/nvidia.py"


@pytest.fixture(scope="module")
def published() -> dict[str, list[ast.ClassDef | ast.FunctionDef]]:
    try:
        files = importlib.metadata.files("tensorrt-stubs") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("tensorrt-stubs is not installed: `make install` brings it")
    file = next(file for file in files if str(file).endswith("tensorrt_bindings/tensorrt.pyi"))
    text = Path(str(file.locate())).read_text(encoding="utf-8")
    # Where they are no valid Python: arguments named `in`, and ones without a default after others with one.
    text = re.sub(r"^ +def .*$", lambda d: re.sub(r" = [^,()]+(?=[,)])", "", d[0].replace(" in: ", " in_: ")), text, flags=re.M)
    found: dict[str, list[ast.ClassDef | ast.FunctionDef]] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.setdefault(node.name, []).append(node)
    return found


def names(function: ast.FunctionDef) -> list[str]:
    return [argument.arg for argument in function.args.args if argument.arg != "self"]


def test_our_stubs_agree_with_the_published_ones(published: dict[str, list[ast.ClassDef | ast.FunctionDef]]) -> None:
    checked = 0
    for ours in ast.parse(OURS.read_text(encoding="utf-8")).body:
        if isinstance(ours, ast.FunctionDef):
            assert ours.name in published
        if not isinstance(ours, ast.ClassDef):
            continue
        theirs = [item for entry in published[ours.name] if isinstance(entry, ast.ClassDef) for item in entry.body]
        attributes = {t.target.id for t in theirs if isinstance(t, ast.AnnAssign) and isinstance(t.target, ast.Name)}
        functions: dict[str, list[ast.FunctionDef]] = {}
        for entry in theirs:
            if isinstance(entry, ast.FunctionDef):
                functions.setdefault(entry.name, []).append(entry)
        for item in ours.body:
            if isinstance(item, ast.Assign | ast.AnnAssign):
                target = item.targets[0] if isinstance(item, ast.Assign) else item.target
                assert isinstance(target, ast.Name)
                assert target.id in attributes | set(functions), f"{ours.name}.{target.id}"
                checked += 1
            elif isinstance(item, ast.FunctionDef) and item.name != "__buffer__":
                assert any(names(item) == names(f) for f in functions[item.name]), f"{ours.name}.{item.name}"
                checked += 1
    assert checked > 40


def test_every_call_of_cuda_exists() -> None:
    called = set(re.findall(r"\bcuda\.(cuda\w+)", ADAPTER.read_text(encoding="utf-8")))
    assert len(called) > 15
    assert [name for name in sorted(called) if not hasattr(runtime, name)] == []
