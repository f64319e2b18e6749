"""A small synthetic log and a way to train on it in parts, shared by the tests of training."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.data.request_log import RequestLog, load_request_log
from model.data.split import split_requests
from model.data.synthetic import generate
from model.data.synthetic_world import SyntheticConfig
from model.training.config import TrainConfig
from model.training.fit_features import fit_features
from model.training.run import TrainingRun
from model.training.trainer import Trainer

Losses = Callable[..., list[float]]


@pytest.fixture(scope="session")
def log_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 synthetic requests on disk."""
    torch.set_num_threads(1)
    directory = Path(tmp_path_factory.mktemp("log")) / "log"
    generate(SyntheticConfig(requests=400), directory, lambda _: None)
    return directory


@pytest.fixture(scope="session")
def log(log_directory: Path) -> RequestLog:
    """400 synthetic requests."""
    return load_request_log(log_directory)


@pytest.fixture(scope="session")
def losses(log: RequestLog) -> Losses:
    """The loss of every step of a new run, or of the rest of the run at `path`; `stop_after` steps it is cut, as by a kill."""

    def run_losses(path: Path, config: TrainConfig, stop_after: int | None = None) -> list[float]:
        split = split_requests(log, config.split.value)
        found: list[float] = []
        if path.exists():
            trainer = Trainer(TrainingRun.open(path), log, split.train, split.validation)
            trainer.resume()
        else:
            run = TrainingRun.create(path, config, log.schema, fit_features(log, split.train))
            trainer = Trainer(run, log, split.train, split.validation)

        class Stop(Exception):
            pass

        def report(progress: Any) -> None:
            found.append(progress.loss)
            if len(found) == stop_after:
                trainer._checkpoint()
                raise Stop

        with contextlib.suppress(Stop):
            trainer.fit(report, lambda _: None)
        return found

    return run_losses
