"""A version of an artifact with other weights, to see that a refitted engine has taken them over.

What the twin would compute with them ONNX Runtime computes here, on the portable graphs: an engine of its own, so that the
refitted one is not compared with itself.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from safetensors.numpy import save_file

from model.artifact import MANIFEST, Artifact, file_digests, open_artifact
from model.signature import ENCODE_USER, SCORE_CANDIDATES

SEED, SPREAD = 20_261_126, 0.05
"""Every weight is multiplied by 1 + `SPREAD` · a normal number."""

Arrays = dict[str, NDArray[np.generic]]


def with_other_weights(artifact: Artifact, target: Path) -> Artifact:
    """A copy of `artifact` at `target` (whose name is its version) with other weights, and the golden outputs of those."""
    shutil.copytree(artifact.path, target)
    rng = np.random.default_rng(SEED)
    for weight in _stored_weights(target / "graphs/weights.safetensors"):
        weight *= 1 + np.float32(SPREAD) * rng.standard_normal(weight.shape, np.float32)
    save_file(_golden(artifact, target), target / "golden.safetensors")
    manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
    manifest |= {"version": target.name, "files": file_digests(target)}
    (target / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return open_artifact(target)


def _stored_weights(file: Path) -> Iterator[NDArray[np.float32]]:
    """Views of the weights in a file, to be changed where they lie: graphs refer to them by their place.

    The layout is that of safetensors: 8 bytes of the header's length, the header in JSON, the tensors.
    """
    stored = np.memmap(file, np.uint8, "r+")
    start = 8 + struct.unpack("<Q", stored[:8].tobytes())[0]
    for name, entry in json.loads(stored[8:start].tobytes()).items():
        if name == "__metadata__":
            continue
        assert entry["dtype"] == "F32", f"{file}: {name}: expected F32, found {entry['dtype']}"
        begin, end = (start + offset for offset in entry["data_offsets"])
        yield stored[begin:end].view(np.float32)
    stored.flush()


def _golden(artifact: Artifact, target: Path) -> Arrays:
    """The golden batch of `artifact`, computed by the graphs at `target`."""
    golden: Arrays = dict(artifact.golden())
    states = _run(target, ENCODE_USER, golden)
    golden |= {f"{graph}/{name}": state for graph in (ENCODE_USER, SCORE_CANDIDATES) for name, state in states.items()}
    return golden | {f"{SCORE_CANDIDATES}/{name}": a for name, a in _run(target, SCORE_CANDIDATES, golden).items()}


def _run(target: Path, graph: str, golden: Arrays) -> Arrays:
    session = onnxruntime.InferenceSession(target / f"graphs/{graph}.onnx", providers=["CPUExecutionProvider"])
    inputs = {value.name: golden[f"{graph}/{value.name}"] for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))
