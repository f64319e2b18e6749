"""Training throughput by batch, precision and prefetching: `python -m loadtest.checks.training_speed --data DIR`.

Every variant trains the same model on the same log for some steps from the same start; the first ones are left out. Figures
are those of the loop itself (`model.training.throughput`): examples/s as a ratio to the first variant, padding, and MFU, useful
and padded. Variants follow each other `--rounds` times and the median counts. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from model.cli.console import note, stderr
from model.data.request_log import RequestLog, load_request_log
from model.features import FeatureStats
from model.training.config import TrainConfig, parse_config, split_of
from model.training.fit_features import fit_features
from model.training.progress import Since
from model.training.run import TrainingRun
from model.training.trainer import Trainer

WARM_UP_STEPS = 3
"""Left out: kernels are loaded, memory is allocated."""


class _Enough(Exception):
    """As many steps as wanted."""


def variants(batch_requests: list[int], works: list[int]) -> list[dict[str, Any]]:
    """Configurations by what differs."""
    grouped = [{"batch_requests": n, "precision": p, "prefetch": 2} for n in batch_requests for p in ("f32", "bf16")]
    grouped += [{"batch_requests": n, "precision": "f32", "prefetch": 0} for n in batch_requests]
    return grouped + [{"batch_work": w, "precision": "f32", "prefetch": 2} for w in works]


def measure(log: RequestLog, stats: FeatureStats, config: TrainConfig, steps: int) -> dict[str, Any]:
    """Figures of `steps` steps after the first ones."""
    split = split_of(config, log)
    with tempfile.TemporaryDirectory(prefix="kunlun-speed-") as folder:
        run = TrainingRun.create(Path(folder) / "run", config, log.schema, stats)
        trainer, figures = Trainer(run, log, split.train, split.validation[:50]), dict[str, Any]()

        def step(progress: Any) -> None:
            if progress.step == WARM_UP_STEPS:
                trainer.since = Since()
            if progress.step == WARM_UP_STEPS + steps:
                figures.update(progress.figures)
                raise _Enough

        try:
            trainer.fit(step, lambda _: None)
        except _Enough:
            return figures
    raise SystemExit(f"--steps: the log has fewer than {WARM_UP_STEPS + steps} batches in {config.epochs} epochs")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.checks.training_speed", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="canonical log")
    parser.add_argument("--model", default="small", help="preset (default: small)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--batch-requests", type=int, nargs="+", default=[64], help="requests a batch (default: 64)")
    parser.add_argument("--batch-work", type=int, nargs="*", default=[], help="also batches of so much work")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    log = load_request_log(arguments.data)
    common = {"model": arguments.model, "device": arguments.device, "threads": 1, "epochs": 50}
    wanted = variants(arguments.batch_requests, arguments.batch_work)
    configs = [parse_config(common | variant) for variant in wanted]
    stats = fit_features(log, split_of(configs[0], log).train)
    found: list[list[dict[str, Any]]] = [[] for _ in configs]
    for number in range(arguments.rounds):
        note(f"round {number + 1} of {arguments.rounds}")
        for figures, config in zip(found, configs, strict=True):
            figures.append(measure(log, stats, config, arguments.steps))
    speeds = [statistics.median(f["examples_per_s"] for f in figures) for figures in found]
    rows = []
    for variant, speed, figures in zip(wanted, speeds, found, strict=True):
        last = {key: figures[-1][key] for key in ("padding", "mfu", "mfu_padded")}
        rows.append(variant | {"examples_per_s_ratio": round(speed / speeds[0], 3)} | last)
    table = Table("batch", "precision", "prefetch", "examples/s, ratio", "padding", "MFU", "MFU, padded")
    for row in rows:
        size = f"{row['batch_work']:,} work" if "batch_work" in row else f"{row['batch_requests']:,} requests"
        mfu = ("–" if row[k] is None else f"{row[k]:.2%}" for k in ("mfu", "mfu_padded"))
        ratio = f"{row['examples_per_s_ratio']:.2f}"
        table.add_row(size, row["precision"], str(row["prefetch"]), ratio, f"{row['padding']:.0%}", *mfu)
    stderr.print(table)
    sys.stdout.write(json.dumps({"ok": True, "model": arguments.model, "examples_per_s": speeds[0], "variants": rows}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
