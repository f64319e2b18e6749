"""A training run on disk: everything needed to resume, evaluate and export it. No pickle.

Layout::

    config.json  schema.json                     what was asked for
    data.json                                    which log it is trained on
    features.json  vocabularies.safetensors      statistics fitted on the training part
    prior.safetensors                            popularity prior of the training part
    score_reference.json                         served probabilities and label rates of the validation part, per task
    golden.safetensors                           a few encoded requests and the twin's outputs, for parity checks
    checkpoint/  model, optimizers (safetensors), state.json     newest step
    best/        model.safetensors, state.json                   lowest validation NE
    metrics.jsonl                                one line per evaluation, and one every few seconds
    alarms/                                      steps whose loss or gradients were not finite
    selection/                                   of a refit: the run that chose how long it trains
    result.json                                  what the run ended with
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import ConfigError
from model.data.log_digest import identity_digest, log_digest
from model.data.request_log import RequestLog
from model.features import FeatureEncoder, FeatureStats
from model.ranker import KunlunRanker
from model.schema import Schema, schema_from_json
from model.training.config import TrainConfig

CHECKPOINT, BEST, SELECTION = "checkpoint", "best", "selection"
SCORE_REFERENCE, METRICS = "score_reference.json", "metrics.jsonl"


@dataclass(frozen=True)
class TrainingRun:
    """Paths and parsed parts of a run directory."""

    path: Path
    config: TrainConfig
    schema: Schema
    encoder: FeatureEncoder

    @classmethod
    def create(cls, path: Path, config: TrainConfig, schema: Schema, stats: FeatureStats) -> TrainingRun:
        """Start a new run directory. An earlier run at `path` is replaced; anything else there is refused (`ConfigError`)."""
        if path.exists() and not (path / "config.json").is_file() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(f"{path}: exists and is not a training run; give another --output")
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        write_json(path / "config.json", config.model_dump(mode="json"))
        write_json(path / "schema.json", schema.model_dump(mode="json"))
        write_json(path / "features.json", stats.to_json())
        run = cls(path, config, schema, FeatureEncoder(schema, stats))
        run.save_arrays("vocabularies", stats.arrays())
        return run

    @classmethod
    def open(cls, path: str | Path) -> TrainingRun:
        """Open a run directory; raises `ConfigError` when it is not one."""
        path = Path(path)
        if not (path / "config.json").is_file():
            raise ConfigError(f"{path}: not a training run (no config.json); expected the --output of `kunlun train`")
        config = TrainConfig.model_validate(read_json(path / "config.json"))
        schema = schema_from_json(read_json(path / "schema.json"))
        stats = FeatureStats.from_json(read_json(path / "features.json"), load_arrays(path / "vocabularies.safetensors"))
        return cls(path, config, schema, FeatureEncoder(schema, stats))

    def remember_data(self, log: RequestLog) -> None:
        """Note which log this run is trained on."""
        write_json(self.path / "data.json", _identity(log) | {"content": log_digest(log)})

    def check_data(self, log: RequestLog) -> None:
        """Raise `ConfigError` unless `log` is the one the run is trained on: figures on another would mislead.

        Runs from before contents were noted are known by their requests alone.
        """
        if not (self.path / "data.json").is_file():
            raise ConfigError(f"{self.path}: no data.json: it ended before training began; train again without --resume")
        trained = read_json(self.path / "data.json")
        content = {"content": log_digest(log)} if "content" in trained else {}
        if trained != _identity(log) | content:
            raise ConfigError(
                f"{self.path}: trained on a log of {trained['requests']:,} requests with another content or schema; "
                f"the given one has {len(log):,}"
            )

    def new_model(self) -> KunlunRanker:
        """A freshly initialised model of this run's configuration."""
        return KunlunRanker(self.schema, self.config.model, self.encoder.table_rows())

    def load_model(self, which: str = BEST) -> KunlunRanker:
        """The model of the best or the newest checkpoint, in eval mode."""
        file = self.path / which / "model.safetensors"
        if not file.is_file():
            raise ConfigError(f"{file}: missing; has `kunlun train` finished?")
        model = self.new_model()
        model.load_state_dict(load_file(file), strict=True)
        return model.eval()

    def save(self, which: str, state: Mapping[str, Any], groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write a checkpoint aside, then swap it in; a kill in between leaves the older one for `load`."""
        aside, target, old = self.path / f".{which}.tmp", self.path / which, self.path / f".{which}.old"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for name, tensors in groups.items():
            save_file({k: v.detach().contiguous() for k, v in tensors.items()}, aside / f"{name}.safetensors")
        write_json(aside / "state.json", state)
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        aside.rename(target)
        shutil.rmtree(old, ignore_errors=True)

    def load(self, which: str) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
        """Read back what `save` wrote."""
        folder = self.path / which
        if not folder.exists():
            folder = self.path / f".{which}.old"
        if not folder.exists():
            raise ConfigError(f"{self.path}: no {which} here yet")
        return read_json(folder / "state.json"), {f.stem: load_file(f) for f in folder.glob("*.safetensors")}

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """One more line of ``metrics.jsonl``."""
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def forget_metrics_after(self, step: int) -> None:
        """Drop lines of steps that a resumed run will take again."""
        file = self.path / METRICS
        if file.is_file():
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            file.write_text("".join(line for line in lines if json.loads(line)["step"] <= step), encoding="utf-8")

    def save_arrays(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write ``<name>.safetensors`` at the top of the run."""
        save_arrays({k: np.ascontiguousarray(v) for k, v in arrays.items()}, self.path / f"{name}.safetensors")

    @property
    def result(self) -> dict[str, Any]:
        """What the run ended with; empty before it ended."""
        return read_json(self.path / "result.json") if (self.path / "result.json").is_file() else {}


def _identity(log: RequestLog) -> dict[str, Any]:
    return {"requests": len(log), "digest": identity_digest(log)}


def has_checkpoint(path: Path) -> bool:
    """Whether the run at `path` can go on: `load` finds a newest step, if only the one before a kill while saving."""
    return (path / CHECKPOINT).exists() or (path / f".{CHECKPOINT}.old").exists()


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object."""
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON object, indented; aside and then renamed, since that a file is there says that something has ended."""
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    aside.replace(path)
