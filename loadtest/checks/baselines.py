"""Every architecture on one log, same features and loop: `python -m loadtest.checks.baselines --data DIR`.

DIR is a canonical log (`kunlun prepare`). Each model of loadtest/configs/baselines.yaml is trained as `kunlun train` does
it, once per seed, and measured on the test part: NE and AUC with 95 % intervals over users, NDCG@10, examples/s of training,
and useful FLOPs per example. Beside them two yardsticks by scikit-learn: logistic regression on the one-hot form of the same
features, and boosted trees stacked on it (`loadtest.yardsticks`).

`ok`: logistic regression trained by the loop is at most 0.005 NE above scikit-learn's, which solves the same problem to
the end. The last line is one JSON object. Runs stay in --workdir, and a finished one is not trained again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from rich.table import Table

from model.architectures.registry import merged
from model.cli.console import note, progress_bar, stderr
from model.config import StrictModel, load_yaml
from model.data.request_log import RequestLog, load_request_log
from model.schema import Schema

CONFIG = Path(__file__).parents[1] / "configs" / "baselines.yaml"
NE_MARGIN = 0.005
FIGURES = ("ne", "auc", "ndcg10")
ONE_HOT, TREES = "one-hot regression (scikit-learn)", "boosted trees on it (scikit-learn)"


class ModelSettings(StrictModel):
    """How one model is trained: what differs from `common`, and whether it reads user ids and with what table width."""

    train: dict[str, Any]
    user_ids: bool = False
    table_width: int | None = Field(default=None, ge=1)


class Settings(StrictModel):
    """The file of settings."""

    common: dict[str, Any]
    models: dict[str, ModelSettings]


@dataclass(frozen=True)
class Row:
    """One trained model, or yardstick, and its figures on the test part: ``{"value", "low", "high"}`` by name."""

    model: str
    seed: int
    figures: dict[str, Any]
    validation_ne: float | None = None
    parameters: int | None = None
    train_examples_per_s: float | None = None
    flops_per_example: float | None = None


def adapted(log: RequestLog, settings: ModelSettings) -> RequestLog:
    """The log as a model of these settings reads it: with user ids embedded, with tables of another width."""
    data = log.schema.model_dump(mode="json")
    if settings.user_ids and data["user_id_table"] is None:
        name = "user_id" if "user" in data["tables"] else "user"
        data["tables"][name] = {"width": 16}
        data["user_id_table"] = name
    if settings.table_width is not None:
        for table in data["tables"].values():
            table["width"] = settings.table_width
        for group in (data["user"], data["context"], data["item_features"], *(e["attributes"] for e in data["events"])):
            for feature in group:
                if feature["buckets"] is not None:
                    feature["buckets"]["width"] = settings.table_width
    return replace(log, schema=Schema.model_validate(data))


def trained_row(data: Path, name: str, settings: Settings, seed: int, workdir: Path) -> Row:
    """Train (unless it has been) and measure one model."""
    from model.flops import flop_model
    from model.training.config import parse_config, split_of
    from model.training.evaluation import evaluate_run
    from model.training.fit_run import fit_run
    from model.training.run import TrainingRun

    own = settings.models[name]
    log = adapted(load_request_log(data), own)
    config = parse_config(merged(settings.common, own.train) | {"seed": seed, "device": "cpu"})
    path = workdir / f"{name}-{seed}"
    if not (path / "result.json").is_file() or TrainingRun.open(path).config != config:
        fit_run(config, log, path)
    run = TrainingRun.open(path)
    figures = evaluate_run(run, log, "test")[log.schema.tasks[0].name]
    test = split_of(config, log).test
    lengths = dict(zip((e.name for e in log.schema.events), log.history_lengths(test).mean(axis=0).round(), strict=True))
    shown = int(np.diff(log.offsets)[test].mean().round())
    flops = flop_model(log.schema, run.config.model)
    per_request = flops.encode(lengths).total + flops.score(1, shown, lengths=lengths).total
    return Row(
        name,
        seed,
        {f: figures[f] for f in FIGURES if f in figures},
        run.result["best"]["validation_ne"],
        run.result["parameters"],
        _examples_per_s(run.result, split_of(config, log).train, log),
        per_request / shown,
    )


def yardstick_rows(data: Path, settings: Settings) -> list[Row]:
    """Logistic regression on one-hot features, user ids among them, and boosted trees on it; split as the models are."""
    from loadtest.yardsticks.boosted_trees import boosted_trees
    from model.features import FeatureEncoder
    from model.metrics.evaluate import evaluate_predictions
    from model.training.config import parse_config, split_of
    from model.training.fit_features import fit_features

    log = adapted(load_request_log(data), ModelSettings(train={}, user_ids=True))
    split = split_of(parse_config(settings.common), log)
    encoder = FeatureEncoder(log.schema, fit_features(log, split.train))
    test, rows = log.subset(split.test), []
    predictions = boosted_trees(log, encoder, split, note=note)
    for name, probabilities in zip((ONE_HOT, TREES), predictions, strict=True):
        others = np.full((len(probabilities), len(log.schema.tasks) - 1), 0.5)  # yardsticks of the first task alone
        found = evaluate_predictions(np.column_stack([probabilities, others]), test)[log.schema.tasks[0].name]
        rows.append(Row(name, 0, {f: found[f] for f in FIGURES if f in found}))
    return rows


def summary(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Per model means over seeds, the spread of NE over seeds, and the interval over users of the first seed."""
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(row.model for row in rows):
        own = sorted((row for row in rows if row.model == name), key=lambda row: row.seed)
        nes = [row.figures["ne"]["value"] for row in own]
        found[name] = {
            **{f: float(np.mean([r.figures[f]["value"] for r in own])) for f in FIGURES if f in own[0].figures},
            "ne_interval": [own[0].figures["ne"]["low"], own[0].figures["ne"]["high"]],
            "ne_seeds": [min(nes), max(nes)],
            "seeds": len(own),
            "parameters": own[0].parameters,
            "train_examples_per_s": _mean([r.train_examples_per_s for r in own]),
            "flops_per_example": own[0].flops_per_example,
            "validation_ne": _mean([r.validation_ne for r in own]),
        }
    return found


def _examples_per_s(result: Mapping[str, Any], train: NDArray[np.int64], log: RequestLog) -> float:
    """Examples per second of training, evaluations left out."""
    return float(result["steps"] / result["steps_per_epoch"] * len(log.rows_of(train)) / result["seconds"])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _jobs(names: Sequence[str], seeds: int) -> Iterator[tuple[str, int]]:
    for seed in range(seeds):
        for name in names:
            yield name, seed


def _show(found: Mapping[str, Mapping[str, Any]]) -> None:
    table = Table(title="test part, position-free; NE with the interval over users (first seed) and the range over seeds")
    for column in ("model", "NE", "95 % users", "seeds", "AUC", "NDCG@10", "train examples/s", "kFLOP/example"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, row in sorted(found.items(), key=lambda item: item[1]["ne"]):
        table.add_row(
            name,
            f"{row['ne']:.4f}",
            "{:.4f}–{:.4f}".format(*row["ne_interval"]),
            "{:.4f}–{:.4f}".format(*row["ne_seeds"]) if row["seeds"] > 1 else "1",
            f"{row['auc']:.4f}",
            f"{row['ndcg10']:.4f}" if "ndcg10" in row else "",
            f"{row['train_examples_per_s']:,.0f}" if row["train_examples_per_s"] else "",
            f"{row['flops_per_example'] / 1e3:,.1f}" if row["flops_per_example"] else "",
        )
    stderr.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.checks.baselines", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="canonical log, as written by `kunlun prepare`")
    parser.add_argument("--config", type=Path, default=CONFIG, help="settings (default: loadtest/configs/baselines.yaml)")
    parser.add_argument("--models", help="comma-separated, of those in the settings (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="runs per model (default: 3)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each (default: 1)")
    parser.add_argument("--workdir", type=Path, default=Path("runs/baselines"), help="where runs are kept")
    parser.add_argument("--no-yardsticks", action="store_true", help="leave scikit-learn's models out")
    arguments = parser.parse_args()
    settings = load_yaml(Settings, arguments.config)
    names = arguments.models.split(",") if arguments.models else list(settings.models)
    if unknown := sorted(set(names) - set(settings.models)):
        parser.error(f"--models: expected some of {', '.join(settings.models)}, found {unknown[0]}")
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    jobs = list(_jobs(names, arguments.seeds))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool, progress_bar() as bar:
        task = bar.add_task("training", total=len(jobs), note="")
        given = [pool.submit(trained_row, arguments.data, name, settings, seed, arguments.workdir) for name, seed in jobs]
        for future in as_completed(given):
            row = future.result()
            rows.append(row)
            bar.update(task, advance=1, note=row.model)
            note(f"{row.model} seed {row.seed}: NE {row.figures['ne']['value']:.4f}, AUC {row.figures['auc']['value']:.4f}")
    if not arguments.no_yardsticks:
        rows += yardstick_rows(arguments.data, settings)
    found = summary(rows)
    _show(found)
    line: dict[str, Any] = {"ok": True, "rows": found}
    if ONE_HOT in found and "logistic_regression" in found:
        gap = found["logistic_regression"]["ne"] - found[ONE_HOT]["ne"]
        line |= {"ok": gap <= NE_MARGIN, "ne_above_scikit_learn": gap, "target": f"at most {NE_MARGIN}"}
    sys.stdout.write(json.dumps(line) + "\n")
    return 0 if line["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
