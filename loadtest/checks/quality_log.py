"""Quality on a Metarank-format log: the served model, by seed, on two splits, beside a logistic regression with ids.

Per user, the last ranking is the test part and the one before it chooses how long to train (`refit_on_validation`): one
model is trained without that one, a second as long with it. Metarank's split takes rankings with a click alone, the first
80 % of them by time for training (of which the last tenth chooses, before a refit on all), the rest for the test.

Every model goes through the commands that a user would type (prepare, train, export, compile), and what is measured are the
probabilities of the compiled graphs. The test part is scored once, at the end; nothing is chosen by it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray

from loadtest.checks.check import Check
from loadtest.pipeline import CONFIGS
from loadtest.processes import run_stage
from loadtest.yardsticks.one_hot import fitted, one_hot
from model.artifact import open_artifact
from model.cli.console import note, progress_bar
from model.data.canonical import LogFile, read_log, write_log
from model.data.request_log import RequestLog, load_request_log
from model.data.split import split_requests
from model.features import FeatureEncoder
from model.metrics.bootstrap import Interval, interval
from model.metrics.comparison import mean_over_seeds, relative_gain
from model.metrics.evaluate import ALL, TaskDraws, sliced_draws
from model.schema import Table
from model.training.batches import BatchMaker
from model.training.fit_features import fit_features
from model.training.run import SELECTION
from serving.engines.cache import default_cache
from serving.engines.open import open_engine
from serving.tuning.log_scorer import LogScorer

CONFIG = CONFIGS / "quality_metarank.yaml"
TRAINED, REFITTED = {"ne": 0.765, "auc": 0.825}, {"ne": 0.758, "auc": 0.826}
NDCG = 0.615
"""On RankLens, as a mean over seeds. Logistic regression with ids: NE 0.784 and 0.773, NDCG@10 0.603; Metarank's: 0.583."""
VALIDATION_SHARE, TEST_SHARE = 0.08, 0.2
"""Of the rankings of Metarank's split."""


@dataclass
class LogQuality:
    """One log, one configuration, several seeds; everything is left in `workdir`."""

    data: Path
    workdir: Path
    seeds: Sequence[int]
    config: Path = CONFIG
    tested: dict[str, list[TaskDraws]] = field(default_factory=dict)

    def checks(self) -> dict[str, Callable[[], Check]]:
        """What is promised, by name and in order."""
        return {
            "trained": self.trained,
            "refitted": self.refitted,
            "against_logistic_regression": self.against_regression,
            "metarank_split": self.metarank,
        }

    def trained(self) -> Check:
        """Trained on the training part alone."""
        return self._per_user("trained", TRAINED)

    def refitted(self) -> Check:
        """Trained on training and validation part, as long as was chosen before."""
        return self._per_user("refitted", REFITTED)

    def against_regression(self) -> Check:
        """Both models against the regression fitted on the same part, on the same users."""
        figures: dict[str, Any] = {}
        for name, part in (("trained", "train"), ("refitted", "both")):
            regression = self._regression(part)
            gain = relative_gain(self.tested[name], [regression])
            figures[name] = {"regression_ne": round(regression.values["ne"], 5), "gain_percent": _rounded(gain)}
        ok = all(f["gain_percent"]["low"] > 0 for f in figures.values())
        return Check("against_logistic_regression", figures, "NE lower, with 95 % of resamples of users and seeds", ok)

    def metarank(self) -> Check:
        """NDCG@10 on Metarank's split."""
        runs, log = self._runs["metarank"], load_request_log(self.workdir / "clicked")
        test = split_requests(log, "time", validation=VALIDATION_SHARE, test=TEST_SHARE).test
        drawn = [self._served(run, log, test) for run in runs]
        figures: dict[str, Any] = {"test_requests": len(test)} | {f: _spread(drawn, f) for f in ("ndcg10", "ne", "auc")}
        return Check("metarank_split", figures, f"mean NDCG@10 ≥ {NDCG}", figures["ndcg10"]["value"] >= NDCG)

    @cached_property
    def log(self) -> RequestLog:
        """The prepared log."""
        self._stage("prepare", "--source", "metarank", "--input", str(self.data), "--output", str(self.workdir / "data"))
        return load_request_log(self.workdir / "data")

    @cached_property
    def _runs(self) -> dict[str, list[Path]]:
        """Finished runs by split, in the order of the seeds; one training per core at a time."""
        note(f"{len(self.log):,} rankings; {2 * len(self.seeds)} trainings")
        _only_with_positives(self.workdir / "data", self.workdir / "clicked")
        config, split = self.workdir / "metarank.yaml", {"validation_share": VALIDATION_SHARE, "test_share": TEST_SHARE}
        config.write_text(yaml.safe_dump(yaml.safe_load(self.config.read_text()) | split | {"split": "time"}))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            per_user = [pool.submit(self._train, self.config, "data", f"run-{seed}", seed) for seed in self.seeds]
            metarank = [pool.submit(self._train, config, "clicked", f"metarank-{seed}", seed) for seed in self.seeds]
            return {"per_user": [f.result() for f in per_user], "metarank": [f.result() for f in metarank]}

    def _per_user(self, name: str, targets: dict[str, float]) -> Check:
        test = split_requests(self.log, "per_user_last").test
        runs = [run if name == "refitted" else run / SELECTION for run in self._runs["per_user"]]
        drawn = self.tested[name] = [self._served(run, self.log, test) for run in runs]
        figures: dict[str, Any] = {figure: _spread(drawn, figure) for figure in ("ne", "auc", "ndcg10", "calibration")}
        if name == "trained":
            figures["validation_ne"] = [_curve(run) for run in runs]
        ok = figures["ne"]["value"] <= targets["ne"] and figures["auc"]["value"] >= targets["auc"]
        return Check(name, figures, f"mean NE ≤ {targets['ne']} and AUC ≥ {targets['auc']}", ok)

    def _train(self, config: Path, data: str, name: str, seed: int) -> Path:
        run = self.workdir / name
        self._stage("train", str(config), "--data", str(self.workdir / data), "--output", str(run), "--seed", str(seed))
        return run

    def _served(self, run: Path, log: RequestLog, requests: NDArray[np.int64]) -> TaskDraws:
        """Figures of the exported and compiled model on `requests`, of the first task."""
        version = run.relative_to(self.workdir).as_posix().replace("/", "-")
        exported = self._stage("export", str(run), "--repository", str(self.workdir / "models"), "--version", version)
        compiled = self._stage("compile", exported["artifact"])
        artifact = open_artifact(exported["artifact"])
        engine = open_engine(
            artifact, cache=default_cache(artifact), precision=compiled["precision"], threads_per_slot=1, slots=1
        )
        with progress_bar(False) as bar:
            task = bar.add_task(f"scoring {version}", total=len(requests), note="")
            served = LogScorer(artifact, engine, log).predict(requests, lambda: bar.advance(task))
        engine.close()
        return sliced_draws(served[:, 0], log.subset(requests), 0, {})[ALL]

    def _regression(self, part: str) -> TaskDraws:
        """Logistic regression with item and user ids and what describes an item, without affinities (they are the model's)."""
        schema = self.log.schema
        tables = schema.tables | {"user_id": Table(width=1)}
        log = replace(
            self.log, schema=schema.model_copy(update={"affinities": (), "tables": tables, "user_id_table": "user_id"})
        )
        split = split_requests(log, "per_user_last")
        train = split.train if part == "train" else np.sort(np.concatenate([split.train, split.validation]))
        note(f"logistic regression with ids ({len(train):,} rankings)")
        maker = BatchMaker(log, FeatureEncoder(log.schema, fit_features(log, train)))
        regression = fitted(one_hot(maker, train), log.labels[log.rows_of(train), 0])
        predicted = regression.predict_proba(one_hot(maker, split.test))[:, 1]
        return sliced_draws(predicted, self.log.subset(split.test), 0, {})[ALL]

    def _stage(self, command: str, *arguments: str) -> dict[str, Any]:
        note(f"[bold]{command}[/] {' '.join(arguments)}")
        return run_stage([command, *arguments], timeout_s=3600)


def _only_with_positives(source: Path, target: Path) -> None:
    """A copy of a canonical log without the requests that have no positive of the first task; events stay whole."""
    log = read_log(source)
    requests = log.tables[LogFile.REQUESTS]
    column = requests[f"label_{log.schema.tasks[0].name}"].combine_chunks()
    positives = np.add.reduceat(column.flatten().to_numpy(), column.offsets.to_numpy()[:-1], dtype=np.int64)
    kept = requests.filter(pa.array(positives > 0))
    shutil.rmtree(target, ignore_errors=True)
    tables = {file: {n: t[n] for n in t.column_names} for file, t in {**log.tables, LogFile.REQUESTS: kept}.items()}
    counts = log.info["counts"] | {"requests": len(kept), "impressions": len(kept["items"].combine_chunks().flatten())}
    write_log(target, log.schema, tables, {**log.info, "counts": counts})


def _curve(run: Path) -> list[float]:
    """Validation NE at every evaluation."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [round(line["validation_ne"], 4) for line in map(json.loads, lines) if "validation_ne" in line]


def _spread(drawn: Sequence[TaskDraws], figure: str) -> dict[str, Any]:
    """Mean over seeds with its 95 % interval over users and seeds, and every seed's."""
    value, draws = mean_over_seeds(drawn, figure)
    by_seed = [round(float(d.values[figure]), 4) for d in drawn]
    return {**_rounded(interval(value, draws), 4), "by_seed": by_seed}


def _rounded(found: Interval, digits: int = 2) -> dict[str, float]:
    return {name: round(float(value), digits) for name, value in asdict(found).items()}
