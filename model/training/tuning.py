"""Hyper-parameter search: trials are runs of `fit_run`, chosen and pruned by Optuna on the validation NE.

The study lives in ``study.journal`` of its directory, an append-only file, so a search that was killed continues: finished
trials count, the one that was running is tried again with the same values. A trial is pruned when after some evaluation its
best NE so far is worse than the median of the others at that point. One that diverges, or whose values are each valid but do
not go together, fails and the search goes on. Of trials only the best keeps its weights.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from model.config import ConfigError
from model.data.log_digest import log_digest
from model.data.request_log import RequestLog
from model.training.alarms import TrainingDiverged
from model.training.fit_run import Observer, fit_run
from model.training.run import BEST, CHECKPOINT
from model.training.search_space import Dimension, Scalar, with_values

JOURNAL, ABOUT, TABLE, BEST_CONFIG, TRIALS = "study.journal", "study.json", "results.csv", "best.yaml", "trials"


class ValuesDoNotFit(ConfigError):
    """Values that make no training configuration together."""


@dataclass(frozen=True)
class Row:
    """One trial: `state` is complete, pruned, fail or running; NE and seconds where known."""

    number: int
    state: str
    validation_ne: float | None
    seconds: float | None
    values: dict[str, Scalar]


class Search:
    """A search in a directory. `base` is the training configuration as plain data; its refit is left to the final run."""

    def __init__(
        self, path: Path, base: Mapping[str, Any], space: Mapping[str, Dimension], log: RequestLog, *, resume: bool = False
    ) -> None:
        self.path, self.base, self.space, self.log = path, dict(base), dict(space), log
        self.seed = with_values(base, {})[0].seed
        about = {
            "config": self.base,
            "space": {name: dimension.model_dump(mode="json") for name, dimension in space.items()},
            "data": log_digest(log),
        }
        if resume:
            self._check(about)
        elif path.exists() and any(path.iterdir()):
            raise ConfigError(f"{path}: is not empty; give another --output, or --resume to continue the search there")
        path.mkdir(parents=True, exist_ok=True)
        (path / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            study_name="kunlun",
            storage=JournalStorage(JournalFileBackend(str(path / JOURNAL))),
            direction="minimize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
            load_if_exists=True,
        )
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):  # of a search that was killed
            self.study.tell(trial.number, state=TrialState.FAIL)
            if trial.params:
                self.study.enqueue_trial(trial.params)
        self.study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(self.study.get_trials(deepcopy=False)))

    @property
    def finished(self) -> int:
        """Trials that count: complete and pruned ones."""
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))

    def run(self, trials: int, observer: Observer, ended: Callable[[Row], None]) -> None:
        """Run until `trials` of all have ended, in this call or earlier ones; writes the table and the best configuration.

        `observer.note` hears why a trial failed, and nothing else: what a run says would be the same in every trial.
        """
        while self.finished < trials:
            trial = self.study.ask()
            try:
                self.study.tell(trial, self._try(trial, observer))
            except optuna.TrialPruned:
                self.study.tell(trial, state=TrialState.PRUNED)
            except (TrainingDiverged, ValuesDoNotFit) as error:
                observer.note(f"trial {trial.number}: {error}")
                self.study.tell(trial, state=TrialState.FAIL)
            self._tidy()
            self._write()
            ended(self.rows()[trial.number])
            failed = self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
            if len(failed) > trials + 10:
                raise ConfigError(f"{self.path}: {len(failed)} trials diverged or had values that do not fit; narrow the space")

    def rows(self) -> list[Row]:
        """All trials in order."""
        return [self._row(trial) for trial in self.study.get_trials(deepcopy=False)]

    def best(self) -> FrozenTrial | None:
        """The trial with the lowest NE, None before one is complete."""
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return min(complete, key=lambda trial: (trial.value, trial.number)) if complete else None

    def _try(self, trial: Trial, observer: Observer) -> float:
        values = {name: dimension.suggest(trial, name) for name, dimension in self.space.items()}
        try:
            config = with_values(self.base, values)[0].model_copy(update={"refit_on_validation": False})
        except ConfigError as error:
            raise ValuesDoNotFit(str(error)) from error
        evaluations: list[float] = []

        def evaluated(line: dict[str, Any]) -> None:
            observer.evaluated(line)
            evaluations.append(line["validation_ne"])
            trial.set_user_attr("seconds", line["seconds"])
            trial.report(min(evaluations), len(evaluations))
            if trial.should_prune():
                raise optuna.TrialPruned

        told = Observer(started=observer.started, step=observer.step, evaluated=evaluated)
        result = fit_run(config, self.log, self._folder(trial.number), told)
        return float(result["best"]["validation_ne"])

    def _check(self, about: Mapping[str, Any]) -> None:
        file = self.path / ABOUT
        if not file.is_file():
            raise ConfigError(f"{self.path}: no search to resume (no {ABOUT}); leave out --resume to begin one")
        known = json.loads(file.read_text(encoding="utf-8"))
        for part in ("config", "space", "data"):
            if known[part] != json.loads(json.dumps(about[part])):
                raise ConfigError(f"{self.path}: --resume continues a search as it began; its {part} was another")

    def _folder(self, number: int) -> Path:
        return self.path / TRIALS / f"{number:04d}"

    def _tidy(self) -> None:
        best = self.best()
        for folder in (self.path / TRIALS).glob("*"):
            for part in (CHECKPOINT, *(() if best is not None and folder == self._folder(best.number) else (BEST,))):
                shutil.rmtree(folder / part, ignore_errors=True)

    def _row(self, trial: FrozenTrial) -> Row:
        reported = list(trial.intermediate_values.values())
        ne = trial.value if trial.value is not None else min(reported, default=None)
        return Row(trial.number, trial.state.name.lower(), ne, trial.user_attrs.get("seconds"), dict(trial.params))

    def _write(self) -> None:
        with (self.path / TABLE).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["trial", "state", "validation_ne", "seconds", *self.space])
            for row in self.rows():
                writer.writerow([row.number, row.state, row.validation_ne, row.seconds, *map(row.values.get, self.space)])
        best = self.best()
        if best is not None:
            text = yaml.safe_dump(with_values(self.base, best.params)[1], sort_keys=False, allow_unicode=True)
            note = f"# trial {best.number}: validation NE {best.value:.5f}\n"
            (self.path / BEST_CONFIG).write_text(note + text, encoding="utf-8")
