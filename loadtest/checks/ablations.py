"""`make ablations`: what each part of the architecture is worth in NE, FLOPs and speed, beside the paper's figures.

Every variant differs from the default in one thing and is trained on the same log, in the same order, for as many steps and
with the same seeds. Its NE on the held-out part is compared pairwise over users (and seeds). Speeds are measured on one
thread with all variants taking turns. What is finished is kept under --workdir and not done again. --page writes
docs/ablations.md from what was measured. The closing JSON line is `ok` when every row is there and well-defined.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import yaml

from loadtest.ablations.page import PAGE, page
from loadtest.ablations.study import Ablations, Row
from loadtest.ablations.trained import Study
from loadtest.ablations.variants import DEFAULT, VARIANTS
from loadtest.pipeline import CONFIGS, Pipeline
from loadtest.processes import StageFailed
from model.cli.console import note
from model.config import ConfigError

SIZES = {False: ("100000", "12500"), True: ("16000", "2000")}
"""Requests and users of the synthetic log, by --fast: eight requests per user, as in the default world."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.checks.ablations", description=__doc__)
    parser.add_argument("--data", type=Path, help="a Metarank-format log (default: synthetic data)")
    parser.add_argument("--fast", action="store_true", help="a smaller log and one seed: minutes, wider intervals")
    parser.add_argument("--seeds", type=int, help="trainings of each variant (default: 2, with --fast 1)")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=[v.name for v in VARIANTS], help="these variants and the default"
    )
    parser.add_argument("--preset", help="vary this preset as it is (default: the model of `make quality` for the data)")
    parser.add_argument("--rounds", type=int, default=60, help="rounds of the speed measurement (default: 60)")
    parser.add_argument("--workdir", type=Path, default=Path("runs/ablations"), help="kept, and not built again")
    parser.add_argument("--page", action="store_true", help="also write docs/ablations.md")
    arguments = parser.parse_args()
    try:
        ablations = _study(arguments)
        rows = ablations.rows()
    except (ConfigError, StageFailed) as error:
        note(str(error))
        return 2
    line = _line(arguments, ablations, rows)
    (arguments.workdir / "last.json").write_text(json.dumps(line), encoding="utf-8")
    if arguments.page:
        PAGE.write_text(page(line), encoding="utf-8")
        note(f"wrote {PAGE}")
    sys.stdout.write(json.dumps(line) + "\n")
    return 0 if line["ok"] else 1


def _study(arguments: argparse.Namespace) -> Ablations:
    source = "synthetic" if arguments.data is None else arguments.data.name.split(".")[0]
    workdir = arguments.workdir / f"{source}{'-fast' if arguments.fast else ''}"
    requests, users = SIZES[arguments.fast]
    pipeline = Pipeline(workdir, arguments.data, synthetic=("--requests", requests, "--users", users))
    if not (workdir / "data" / "dataset.json").exists():
        pipeline.prepare()
    config = "ablations.yaml" if arguments.data is None else "quality_metarank.yaml"
    training: dict[str, Any] = yaml.safe_load((CONFIGS / config).read_text(encoding="utf-8"))
    base = training.pop("model") if arguments.preset is None else {"preset": arguments.preset}
    training |= {"name": "ablation", "refit_on_validation": False}
    chosen = [v for v in VARIANTS if arguments.only is None or v.name in {DEFAULT, *arguments.only}]
    seeds = arguments.seeds or (1 if arguments.fast else 2)
    study = Study(workdir, workdir / "data", training)
    return Ablations(study, base, chosen, seeds, "auto", arguments.rounds)


def _line(arguments: argparse.Namespace, ablations: Ablations, rows: list[Row]) -> dict[str, Any]:
    wanted = {v.name for v in ablations.variants}
    broken = sorted(wanted - {row["name"] for row in rows if _is_defined(row)})
    return {
        "ok": not broken,
        "broken": broken,
        "data": "synthetic" if arguments.data is None else arguments.data.name,
        "requests": len(ablations.log),
        "fast": arguments.fast,
        "seeds": ablations.seeds,
        "model": dict(ablations.base),
        "precision": ablations.precision,
        "mean_history": {event: round(length, 1) for event, length in ablations.mean_lengths.items()},
        "rows": rows,
    }


def _is_defined(row: Row) -> bool:
    numbers = [row["ne"], *row["ne_change_percent"].values(), *row["mflop"].values(), *row["speed_ratio"].values()]
    return all(math.isfinite(n) for n in numbers) and all(v > 0 for v in row["speed_ratio"].values())


if __name__ == "__main__":
    sys.exit(main())
