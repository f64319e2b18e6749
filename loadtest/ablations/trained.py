"""One model of a study, trained with one seed: each stage is the command a user would type, and is kept once it is done.

The folder of a stage's results is named by a digest of all that decides them (data, configuration, seed), so an interrupted
study goes on where it was, and a changed configuration is trained anew. Used by the ablations and by `make quality`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from loadtest.pipeline import Pipeline
from loadtest.processes import run_stage
from model.architectures.registry import merged, preset_data
from model.artifact import Artifact, open_artifact
from model.cli.console import note
from model.data.request_log import RequestLog
from model.training.config import TrainConfig, parse_config

TRAINING_LIMIT_S = 3 * 3600.0


@dataclass(frozen=True)
class Study:
    """What all models of a study share: the log, the training configuration without its `model`, where results are kept."""

    workdir: Path
    data: Path
    training: Mapping[str, Any]

    @cached_property
    def data_digest(self) -> str:
        """Of what the log's own description says; the generator and the adapters are deterministic."""
        return hashlib.sha256((self.data / "dataset.json").read_bytes()).hexdigest()[:16]


@dataclass(frozen=True)
class TrainedModel:
    """`model`: as in a training configuration."""

    study: Study
    name: str
    model: str | Mapping[str, Any]
    seed: int = 0
    training: Mapping[str, Any] | None = None
    """What differs from the study's training configuration."""

    @cached_property
    def config(self) -> TrainConfig:
        """The whole training configuration; raises `ConfigError`."""
        return parse_config({**self.study.training, **(self.training or {}), "model": self.model, "seed": self.seed})

    @cached_property
    def workdir(self) -> Path:
        """Where this model is kept."""
        decided = json.dumps([self.study.data_digest, self.config.model_dump(mode="json")], sort_keys=True)
        return self.study.workdir / "models" / f"{_slug(self.name)}-{hashlib.sha256(decided.encode()).hexdigest()[:12]}"

    @property
    def run(self) -> Path:
        """The training run."""
        return self.workdir / "run"

    @cached_property
    def result(self) -> dict[str, Any]:
        """What training ended with; of a trained model."""
        found: dict[str, Any] = json.loads((self.run / "result.json").read_text(encoding="utf-8"))
        return found

    @cached_property
    def artifact(self) -> Artifact:
        """What was exported; of an exported model."""
        return open_artifact(next((self.workdir / "models").glob("*/*/manifest.json")).parent)

    def train(self) -> None:
        """Train unless that was done before; a run that was cut off goes on."""
        from model.training.run import has_checkpoint

        if (self.run / "result.json").exists():
            return
        self.workdir.mkdir(parents=True, exist_ok=True)
        config = self.workdir / "train.yaml"
        config.write_text(yaml.safe_dump(self.config.model_dump(mode="json")), encoding="utf-8")
        resume = ["--resume"] if has_checkpoint(self.run) else []
        arguments = [str(config), "--data", str(self.study.data), "--output", str(self.run), *resume]
        note(f"[bold]training {self.name}, seed {self.seed}[/] (kunlun train …)")
        run_stage(["train", *arguments], timeout_s=TRAINING_LIMIT_S)

    def export(self, precision: str) -> None:
        """Export and compile for this machine's CPU unless that was done before."""
        done = self.workdir / f"compiled-{precision}"
        if done.exists():
            return
        if not any((self.workdir / "models").glob("*/*/manifest.json")):
            self._pipeline.stage("export", f"exporting {self.name}", str(self.run), "--repository", self._pipeline.models)
        path, flags = str(self.artifact.path), ["--precision", precision, "--threads", "1"]
        self._pipeline.stage("compile", f"compiling {self.name} ({precision})", path, *flags)
        done.touch()

    def predictions(self, log: RequestLog) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Test requests and the served probabilities [C', tasks] of their shown items, from the torch twin; kept."""
        from model.training.evaluation import predict_held_out
        from model.training.run import TrainingRun

        file = self.workdir / "predictions.npz"
        if not file.exists():
            held_out = predict_held_out(TrainingRun.open(self.run), log, "test")
            np.savez(file, requests=held_out.requests, probabilities=held_out.probabilities)
        with np.load(file) as kept:
            return kept["requests"], kept["probabilities"]

    @property
    def _pipeline(self) -> Pipeline:
        return Pipeline(self.workdir)


def varied(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A model that names a preset, with `changes` in it, written out; a change to null removes the key."""
    own = {key: value for key, value in base.items() if key != "preset"}
    return merged(merged(preset_data(base["preset"]), own), changes)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)
