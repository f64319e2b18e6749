"""Trains the variants of an ablation study and puts their figures into rows.

A row: NE on the held-out part with the paired interval of its change against the default (in per cent, positive: worse than
the default), FLOPs per user, per candidate and per request, training and serving speed relative to the default. Everything is
kept under the study's folder, so a study that was cut off goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from loadtest.ablations import speed
from loadtest.ablations.trained import Study, TrainedModel
from loadtest.ablations.variants import DEFAULT, Variant
from model.architectures.registry import parse_architecture
from model.cli.console import note, progress_bar
from model.data.request_log import RequestLog, load_request_log
from model.flops import FlopModel
from model.metrics.comparison import relative_gain
from model.metrics.evaluate import TaskDraws, task_draws

REQUEST_SIZES = (24, 100, 500)
Row = dict[str, Any]


@dataclass(frozen=True)
class Ablations:
    """`base`: the default model as a mapping (for example ``{"preset": "tiny"}``); `seeds` trainings of every variant."""

    study: Study
    base: Mapping[str, Any]
    wanted: Sequence[Variant]
    seeds: int
    precision: str
    rounds: int

    @cached_property
    def variants(self) -> list[Variant]:
        """Those that are something else than the default, and the default."""
        models = {v.name: parse_architecture(v.model(self.base, self.log.schema)) for v in self.wanted}
        return [v for v in self.wanted if v.name == DEFAULT or models[v.name] != models[DEFAULT]]

    @cached_property
    def models(self) -> dict[str, list[TrainedModel]]:
        """By variant, one per seed. Raises `ConfigError` for a variant that is none, before anything is trained."""
        schema = self.log.schema
        made = {
            v.name: [TrainedModel(self.study, v.name, v.model(self.base, schema), seed) for seed in range(self.seeds)]
            for v in self.variants
        }
        for variant in made.values():
            for model in variant:
                model.config.model.check_schema(self.log.schema)
        return made

    @cached_property
    def log(self) -> RequestLog:
        """The log that all are trained on."""
        return load_request_log(self.study.data)

    def rows(self) -> list[Row]:
        """Train, predict, measure; one row per variant, the default first."""
        everything = [model for variant in self.models.values() for model in variant]
        with progress_bar(False) as bar:
            task = bar.add_task("variants", total=len(everything), note="")
            for model in everything:
                bar.update(task, note=f"{model.name}, seed {model.seed}")
                model.train()
                if model.seed == 0:
                    model.export(self.precision)
                bar.advance(task)
        firsts = {name: models[0] for name, models in self.models.items()}
        speeds = self._speeds(firsts)
        draws = {name: [self._draws(m) for m in models] for name, models in self.models.items()}
        return [self._row(v, draws[v.name], draws[DEFAULT], speeds) for v in self.variants]

    def _draws(self, model: TrainedModel) -> TaskDraws:
        requests, probabilities = model.predictions(self.log)
        return task_draws(probabilities[:, 0], self.log.subset(requests))

    def _speeds(self, models: Mapping[str, TrainedModel]) -> dict[str, dict[str, float]]:
        """Measured together, in one process; kept for this very set of models."""
        kept, key = self.study.workdir / "speeds.json", {name: m.workdir.name for name, m in models.items()}
        if kept.exists():
            found = json.loads(kept.read_text(encoding="utf-8"))
            if found["models"] == key and found["rounds"] == self.rounds:
                return dict(found["speeds"])
        training = speed.training_speeds(models, self.log, self.rounds)
        serving = speed.serving_speeds(models, self.precision, self.rounds)
        speeds = {name: {"train_examples_per_s": training[name], **serving[name]} for name in models}
        kept.write_text(json.dumps({"models": key, "rounds": self.rounds, "speeds": speeds}), encoding="utf-8")
        return speeds

    @cached_property
    def mean_lengths(self) -> dict[str, float]:
        """Mean length of the held-out requests' histories by event type."""
        requests, _ = self.models[DEFAULT][0].predictions(self.log)
        means = self.log.history_lengths(requests).mean(axis=0)
        return dict(zip((e.name for e in self.log.schema.events), means.tolist(), strict=True))

    def flops(self, model: TrainedModel) -> dict[str, float]:
        """MFLOPs of encoding a user of mean history, of a candidate, and of whole requests, all states encoded anew."""
        formulas = FlopModel.from_json(model.artifact.manifest.flops, model.artifact.config)
        lengths = {event: round(length) for event, length in self.mean_lengths.items()}
        user = formulas.encode(lengths).total
        requests = {n: user + formulas.score(1, n, lengths=lengths).total for n in REQUEST_SIZES}
        each = formulas.score(1, 2, lengths=lengths).total - formulas.score(1, 1, lengths=lengths).total
        figures = {"user": user, "candidate": each, **{f"request_{n}": f for n, f in requests.items()}}
        return {name: round(value / 1e6, 4) for name, value in figures.items()}

    def _row(
        self, variant: Variant, own: list[TaskDraws], default: list[TaskDraws], speeds: Mapping[str, Mapping[str, float]]
    ) -> Row:
        gain = relative_gain(own, default)
        model = self.models[variant.name][0]
        mine, theirs = speeds[variant.name], speeds[DEFAULT]
        row: Row = {
            "name": variant.name,
            "question": variant.question,
            "ne": round(float(np.mean([d.values["ne"] for d in own])), 5),
            "ne_of_seeds": [round(d.values["ne"], 5) for d in own],
            "ne_change_percent": {"value": _r(-gain.value), "low": _r(-gain.high), "high": _r(-gain.low)},
            "mflop": self.flops(model),
            "parameters": model.result["parameters"],
            "state_bytes": sum(s.row_bytes for s in model.artifact.config.state_specs(self.log.schema, "U")),
            "speed_ratio": {name: round(mine[name] / theirs[name], 3) for name in mine},
            "speed": {name: round(value, 1) for name, value in mine.items()},
            "paper": variant.paper,
        }
        if "over_bayes" in own[0].values:
            row["over_bayes_percent"] = round(100 * float(np.mean([d.values["over_bayes"] for d in own])), 3)
        change = row["ne_change_percent"]
        note(
            f"{variant.name:24} NE {row['ne']:.5f}  {change['value']:+.2f} % [{change['low']:+.2f}, {change['high']:+.2f}]  "
            f"{row['mflop']['user']:.2f} + {row['mflop']['candidate']:.3f} MFLOP  "
            f"train ×{row['speed_ratio']['train_examples_per_s']:.2f}  serve ×{row['speed_ratio']['requests_per_s']:.2f}"
        )
        return row


def _r(value: float) -> float:
    return round(value, 3) + 0.0
