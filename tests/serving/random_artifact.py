"""A complete artifact with random weights: real graphs, tables, vocabularies and golden batch, no training.

Needs torch (tests only). Building one takes a few seconds; share it through a session fixture.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from model.affinity import RateTable
from model.architectures.registry import load_preset
from model.artifact import Artifact, Calibration, ScoreReference
from model.config import parse_yaml
from model.export.writer import ModelParts, write_artifact
from model.features import FeatureEncoder, FeatureStats
from model.layers.served_form import served_form
from model.metrics.score_histogram import score_histogram
from model.ranker import KunlunRanker
from model.schema import Schema
from model.signature import GraphSignature

SCHEMA = """
name: everything
tables:
  item: {width: 16}
  genre: {width: 4}
  surface: {width: 4, encoding: {kind: hash, buckets: 50}}
item: {id_type: int64, table: item}
user:
  - {name: country, kind: categorical, table: surface}
  - {name: age, kind: numeric, buckets: {boundaries: [18, 30, 50], width: 3}}
context:
  - {name: surface, kind: categorical, table: surface}
  - {name: since, kind: numeric, log1p: true, derived: seconds_since_newest_event}
item_features:
  - {name: genres, kind: multi, id_type: int64, table: genre, max_values: 4}
  - {name: popularity, kind: numeric, log1p: true}
request_columns: [bid]
events:
  - {name: click, cap: 64, attributes: [{name: dwell, kind: numeric}]}
  - name: impression
    cap: 32
    attributes:
      - {name: where, kind: categorical, table: surface}
      - {name: genres, kind: multi, id_type: int64, table: genre, max_values: 4}
    min_fold_interval_s: 60
affinities: [{name: liking, event: impression, outcome: click, by: [item, genres]}]
tasks: [{name: click}, {name: like, weight: 0.5}]
value: bid * p_click + p_like
slice: surface
"""
ITEMS = 1000
"""Item ids 1 … 1000 are in the vocabulary (and genres 1 … 20)."""


def build_artifact(repository: Path, *, preset: str = "tiny", version: str = "1", seed: int = 0) -> Artifact:
    """Write ``<repository>/random/<version>`` and open it."""
    torch.manual_seed(seed)
    schema = parse_yaml(Schema, SCHEMA)
    numeric = {"context.since": (5.0, 2.0), "item.popularity": (2.0, 1.0), "click.dwell": (3.0, 2.0)}
    vocabularies = {"item": np.arange(1, ITEMS + 1, dtype=np.int64), "genre": np.arange(1, 21, dtype=np.int64)}
    rates = {"liking": RateTable(np.arange(1, ITEMS + 1), np.linspace(0.01, 0.1, ITEMS, dtype=np.float32), 0.05)}
    stats = FeatureStats(numeric, {"user.age": (18.0, 30.0, 50.0)}, vocabularies, rates)
    encoder = FeatureEncoder(schema, stats)
    config = load_preset(preset)
    config = config.model_copy(update={"n_kv": max(config.n_kv, 16)})  # the least that engines have a kernel of their own for
    model = KunlunRanker(schema, config, encoder.table_rows()).eval()
    calibration = {"click": Calibration(scale=0.9, shift=-0.5), "like": Calibration(negative_rate=0.5)}
    model.score_candidates.calibrate([calibration[t.name] for t in schema.tasks])
    rng = np.random.default_rng(seed)
    prior = {
        "keys": np.arange(1, ITEMS + 1),
        "rates": rng.uniform(0.01, 0.2, (ITEMS, 2)).astype(np.float32),
        "default": np.full(2, 0.05, np.float32),
    }
    parts = ModelParts(
        model=model,
        encoder=encoder,
        calibration=calibration,
        base_rates={"click": 0.05, "like": 0.05},
        score_reference={t.name: random_reference(rng) for t in schema.tasks},
        evaluation={},
        provenance={},
        arrays={"vocabularies": stats.arrays(), "prior": prior, "golden": golden_batch(model, rng)},
    )
    return write_artifact(repository / "random" / version, parts)


def random_reference(rng: np.random.Generator) -> ScoreReference:
    """Probabilities of 5 % on average, and labels that agree with them."""
    return ScoreReference(histogram=tuple(score_histogram(rng.beta(1, 19, 10_000)).tolist()), base_rate=0.05)


def random_inputs(signature: GraphSignature, sizes: dict[str, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random inputs of a graph: history lengths inside their padding, padded steps zero, candidates spread over requests."""
    tensors: dict[str, np.ndarray] = {}
    for spec in signature.inputs:
        shape = [sizes[s] if isinstance(s, str) else s for s in spec.shape]
        if spec.name == "request_index":
            tensors[spec.name] = rng.integers(0, sizes["R"], shape)
        elif spec.name.endswith("_length"):
            tensors[spec.name] = rng.integers(0, sizes["T_" + spec.name.removesuffix("_length")] + 1, shape)
        else:
            tensors[spec.name] = rng.standard_normal(shape).astype(np.float32)
    for name, lengths in tensors.items():
        if name.endswith("_length"):
            event = name.removesuffix("_length")
            past = np.arange(sizes[f"T_{event}"])[None, :] >= lengths[:, None]
            for part in ("rows", "dense", "age"):
                tensors[f"{event}_{part}"][past] = 0.0
            tensors[f"{event}_age"] = np.abs(tensors[f"{event}_age"]) * 1000
    return tensors


@torch.no_grad()
@served_form()
def golden_batch(model: KunlunRanker, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random inputs and the twin's outputs of both graphs."""
    encode, score = model.encode_user, model.score_candidates
    first = random_inputs(encode.signature, {"U": 5, "T_click": 64, "T_impression": 32}, rng)
    states = encode(*(torch.from_numpy(first[s.name]) for s in encode.signature.inputs))
    second = random_inputs(score.signature, {"R": 5, "C": 40}, rng)
    second |= {spec.name: state.numpy() for spec, state in zip(encode.signature.outputs, states, strict=True)}
    outputs = score(*(torch.from_numpy(second[s.name]) for s in score.signature.inputs))
    tensors = {f"encode_user/{k}": v for k, v in first.items()} | {f"score_candidates/{k}": v for k, v in second.items()}
    tensors |= {f"encode_user/{s.name}": t.numpy() for s, t in zip(encode.signature.outputs, states, strict=True)}
    tensors |= {f"score_candidates/{s.name}": t.numpy() for s, t in zip(score.signature.outputs, outputs, strict=True)}
    return {name: np.ascontiguousarray(array) for name, array in tensors.items()}
