"""Both forms of the candidate stream leave the exporter as they are trained, and rows of a batch are rows of a smaller one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch

from model.architectures.kunlun.config import KunlunConfig
from model.architectures.kunlun.graphs import KunlunScore
from model.architectures.registry import load_preset
from model.config import parse_yaml
from model.export.graphs import export_graph
from model.schema import Schema
from tests.serving.random_artifact import SCHEMA, random_inputs

FORMS = {
    "gated": {"tokens": 8, "width": 64, "head_hidden": 64, "hidden": 128},
    "wukong": {"tokens": 8, "width": 64, "head_hidden": 64, "wukong": {"experts": 2, "fm_rank": 8, "hidden": 64}},
}


@pytest.mark.parametrize("form", FORMS)
def test_an_engine_computes_what_the_twin_computed(form: str, tmp_path: Path, rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    config = KunlunConfig.model_validate(load_preset("small").model_dump() | {"candidate": FORMS[form]})
    twin = KunlunScore(parse_yaml(Schema, SCHEMA), config).eval()
    inputs = random_inputs(twin.signature, {"R": 5, "C": 256}, rng)
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    path = tmp_path / "graph.onnx"
    path.write_bytes(export_graph(twin, twin.signature, tensors).SerializeToString())
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = np.array(compiled(inputs)[0])
    with torch.no_grad():
        wanted = twin(*tensors.values())[0].numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    for chosen in (np.arange(24), rng.permutation(256)[:100]):
        fewer = {k: v[chosen] if k.startswith("item_") or k == "request_index" else v for k, v in inputs.items()}
        assert np.array_equal(np.array(compiled(fewer)[0]), found[chosen]), len(chosen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": None}, r"candidate.*expected hidden \(gated units\) or wukong \(experts\), found neither"),
        ({"wukong": {"experts": 2, "fm_rank": 4, "hidden": 8}}, r"found both"),
        (
            {"hidden": None, "wukong": {"experts": 3, "fm_rank": 4, "hidden": 8}},
            r"tokens 4 must be a multiple of wukong.experts 3",
        ),
    ],
)
def test_one_interaction_is_asked_for(change: dict[str, object], message: str) -> None:
    data = load_preset("tiny").model_dump()
    data["candidate"] |= change
    with pytest.raises(ValueError, match=f"(?s){message}"):
        KunlunConfig.model_validate(data)
