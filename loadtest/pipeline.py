"""A trained, exported and compiled model from the commands a user would type, kept in one directory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.processes import run_stage
from model.cli.console import note
from model.data.request_log import RequestLog
from model.training.config import parse_config, split_of

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Pipeline:
    """Stages and what they leave in `workdir`. `data`: a Metarank-format log, None for synthetic data.

    `synthetic`: further flags of the synthetic generator; `precisions`: engines to compile.
    """

    workdir: Path
    data: Path | None = None
    config: Path | None = None
    seed: int = 0
    synthetic: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ("auto",)

    def path(self, name: str) -> str:
        return str(self.workdir / name)

    @property
    def models(self) -> str:
        """The model repository."""
        return self.path("models")

    @property
    def config_path(self) -> Path:
        """The training configuration."""
        return self.config or CONFIGS / ("demo_synthetic.yaml" if self.data is None else "demo_metarank.yaml")

    def run(self) -> dict[str, dict[str, Any]]:
        """All stages; their figures by stage."""
        config = self.config_path
        data, run = self.path("data"), self.path("run")
        figures = {
            "prepare": self.prepare(),
            "train": self.stage("train", "training", str(config), "--data", data, "--output", run, "--seed", str(self.seed)),
            "evaluate": self.stage("evaluate", "evaluating", run, "--data", data),
            "export": self.stage("export", "exporting", run, "--repository", self.models),
        }
        for precision in self.precisions:
            artifact = figures["export"]["artifact"]
            figures["compile"] = self.stage("compile", f"compiling ({precision})", artifact, "--precision", precision)
        return figures

    def prepare(self) -> dict[str, Any]:
        """The canonical log."""
        source = ["--source", "synthetic", "--seed", str(self.seed), *self.synthetic]
        if self.data is not None:
            source = ["--source", "metarank", "--input", str(self.data)]
        return self.stage("prepare", "preparing data", *source, "--output", self.path("data"))

    def stage(self, command: str, doing: str, *arguments: str) -> dict[str, Any]:
        """One command, announced."""
        note(f"[bold]{doing}[/] (kunlun {command} …)")
        return run_stage([command, *arguments])

    def held_out(self, log: RequestLog) -> NDArray[np.int64]:
        """The test requests, in log order."""
        config = parse_config(json.loads((self.workdir / "run" / "config.json").read_text()))
        return split_of(config, log).test

    def twin(self, log: RequestLog, requests: NDArray[np.int64]) -> NDArray[np.float64]:
        """The torch twin's calibrated probabilities [C, tasks] of the shown items of `requests`, from offline histories."""
        from model.training.batches import BatchMaker
        from model.training.predict import predict_logits
        from model.training.run import TrainingRun

        run = TrainingRun.open(self.workdir / "run")
        logits = predict_logits(run.load_model(), BatchMaker(log, run.encoder), requests, calibrated=True)
        return 1 / (1 + np.exp(-logits.astype(np.float64)))
