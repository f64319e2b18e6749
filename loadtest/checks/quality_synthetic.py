"""Quality on synthetic data: how close models come to the true probabilities, which no model can beat.

Sizes are fixed before the runs (`SIZES`): `full`, and `fast` for a reduced figure in minutes. Each log has eight requests per
user, as the default world, so histories are as long and the truth is of the same kind; the held-out part is its newest tenth.
Figures are free of label noise: the cross-entropy with the true probability. The gap that models share is the one between
the best prediction without history and the truth itself, on the held-out part.

Called by `make quality` without DATA; trained models are kept in the working directory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from loadtest.ablations.trained import Study, TrainedModel, varied
from loadtest.checks.check import Check
from loadtest.pipeline import CONFIGS, Pipeline
from model.cli.console import note
from model.data.request_log import RequestLog, load_request_log
from model.metrics.bootstrap import Interval, interval
from model.metrics.evaluate import TaskDraws, task_draws

CONFIG = CONFIGS / "quality_synthetic.yaml"
OVER_BAYES = 0.01
REDUCED_SHARE = 0.5
MODELS: Mapping[str, Mapping[str, Any]] = {
    "kunlun": {"target_pooling": {"seeds": 2, "width": 16, "weights": "sigmoid"}},
    "logistic regression": {"architecture": "logistic_regression"},
    "din": {"architecture": "din"},
}
"""What differs from the model of the configuration; a mapping with `architecture` is a model of its own."""


@dataclass(frozen=True)
class Size:
    """A log of `requests` by `users` in `shards`, and passes over it; `models`: those that are trained."""

    requests: int
    users: int
    shards: int
    epochs: int
    batch_requests: int
    models: tuple[str, ...]


SIZES: Mapping[str, Size] = {
    "fast": Size(32_000, 4_000, 2, 2, 64, ("kunlun",)),
    "full": Size(200_000, 25_000, 16, 3, 128, ("kunlun", "logistic regression", "din")),
}


@dataclass
class SyntheticQuality:
    """One log and the models of one size; everything is left in `workdir`."""

    workdir: Path
    size_name: str
    tested: dict[str, TaskDraws] = field(default_factory=dict)

    def checks(self) -> dict[str, Callable[[], Check]]:
        """What is promised, by name and in order."""
        return {"over_bayes": self.over_bayes, "gap_closed": self.gap_closed}

    def over_bayes(self) -> Check:
        """NE of Kunlun over that of the true probabilities; for the reduced size, its share of the gap."""
        drawn = self._tested("kunlun")
        over, share = interval(drawn.values["over_bayes"], drawn.draws["over_bayes"]), self._share(drawn)
        figures: dict[str, Any] = {
            "ne_expected": round(drawn.values["ne_expected"], 5),
            "ne_bayes": round(self.bounds["ne_bayes"], 5),
            "over_bayes_percent": _percent(over),
            "gap_closed_percent": _percent(share),
            "size": {name: size for name, size in asdict(self.size).items() if name != "models"},
        }
        if self.size_name == "fast":
            figures["full_target"] = f"the full run's: at most {OVER_BAYES:.0%} over the NE of the true probabilities"
            met = share.value >= REDUCED_SHARE
            return Check("synthetic_reduced", figures, f"at least {REDUCED_SHARE:.0%} of the gap to the truth closed", met)
        return Check("synthetic_truth", figures, f"at most {OVER_BAYES:.0%} over Bayes NE", over.value <= OVER_BAYES)

    def gap_closed(self) -> Check:
        """Share of the gap between no history and the truth that each model closes."""
        figures: dict[str, Any] = {name: round(value, 5) for name, value in self.bounds.items() if name.startswith("ne_")}
        for name in self.size.models:
            drawn = self._tested(name)
            figures[name] = {
                "ne_expected": round(drawn.values["ne_expected"], 5),
                "gap_closed_percent": _percent(self._share(drawn)),
                "train_seconds": self._model(name).result["seconds"],
            }
            note(f"{name}: {figures[name]}")
        ok = all(figures[name]["gap_closed_percent"]["value"] > 0 for name in self.size.models)
        return Check("gap_closed", figures, "every model better than no history", ok)

    @property
    def size(self) -> Size:
        """Of this run."""
        return SIZES[self.size_name]

    @cached_property
    def bounds(self) -> dict[str, float]:
        """Bayes figures of the held-out part."""
        info = json.loads((self.study.data / "dataset.json").read_text(encoding="utf-8"))
        found: dict[str, float] = next(iter(info["bayes"].values()))["newest_tenth"]
        return found

    @cached_property
    def study(self) -> Study:
        """The log, prepared when first asked for, and the training configuration."""
        workdir, size = self.workdir / f"synthetic-{self.size_name}", self.size
        flags = ("--requests", str(size.requests), "--users", str(size.users), "--shards", str(size.shards))
        if not (workdir / "data" / "dataset.json").exists():
            Pipeline(workdir, synthetic=flags).prepare()
        training = {k: v for k, v in yaml.safe_load(CONFIG.read_text(encoding="utf-8")).items() if k != "model"}
        return Study(workdir, workdir / "data", training | {"epochs": size.epochs, "batch_requests": size.batch_requests})

    @cached_property
    def log(self) -> RequestLog:
        """The whole log."""
        return load_request_log(self.study.data)

    def _model(self, name: str) -> TrainedModel:
        changes = MODELS[name]
        base = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["model"]
        return TrainedModel(self.study, name, changes if "architecture" in changes else varied(base, changes))

    def _tested(self, name: str) -> TaskDraws:
        if name not in self.tested:
            model = self._model(name)
            model.train()
            requests, probabilities = model.predictions(self.log)
            self.tested[name] = task_draws(probabilities[:, 0], self.log.subset(requests))
        return self.tested[name]

    def _share(self, drawn: TaskDraws) -> Interval:
        """(NE without history - NE) / (NE without history - Bayes NE), with the users of every resample."""
        none, best = self.bounds["ne_no_history"], self.bounds["ne_bayes"]
        # Per resample the bound moves with the users: NE over Bayes is taken from it, the size of the gap from the whole part.
        over = drawn.draws["over_bayes"] * best
        return interval((none - drawn.values["ne_expected"]) / (none - best), 1 - over / (none - best))


def _percent(found: Interval) -> dict[str, float]:
    return {"value": round(100 * found.value, 2), "low": round(100 * found.low, 2), "high": round(100 * found.high, 2)}
