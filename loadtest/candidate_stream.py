"""`python -m loadtest.candidate_stream`: forms of the candidate stream by NE at equal milliseconds.

Trains the same model with each form on the same log, exports and compiles it, times `score_candidates` for one
request of 256 candidates on one thread, all forms in turn in one process, and compares the NE of the held-out part
pairwise over users. A literal form (the paper's Wukong experts) is put beside the best gated form that is no slower.
The closing JSON line is `ok` when none of the literal forms is better than that by more than chance.

Forms are trained by two processes at a time; forty minutes on two cores with the defaults.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from loadtest.bench import precisions
from loadtest.pipeline import CONFIGS, Pipeline
from model.architectures.registry import load_preset
from model.artifact import Artifact, open_artifact
from model.cli.console import note, progress_bar
from model.data.request_log import RequestLog, load_request_log
from model.flops import FlopModel
from model.metrics.bootstrap import difference_interval
from model.metrics.evaluate import TaskDraws, task_draws
from model.signature import SCORE_CANDIDATES
from serving.core.host_features import HostFeatures
from serving.engines.cache import default_cache
from serving.engines.open import open_engine

TOKENS = {"tokens": 8, "width": 64, "head_hidden": 128}
FORMS: dict[str, dict[str, Any]] = {
    "wukong, 1 expert, rank 8": TOKENS | {"wukong": {"experts": 1, "fm_rank": 8, "hidden": 128}},
    "wukong, 1 expert, rank 16": TOKENS | {"wukong": {"experts": 1, "fm_rank": 16, "hidden": 256}},
    "wukong, 2 experts, rank 16": TOKENS | {"wukong": {"experts": 2, "fm_rank": 16, "hidden": 256}},
    "gated, 128": TOKENS | {"hidden": 128},
    "gated, 256": TOKENS | {"hidden": 256},
    "gated, 512": TOKENS | {"hidden": 512},
}
CANDIDATES, ROUNDS = 256, 300


@dataclass(frozen=True)
class Variant:
    """One form, trained with one seed."""

    form: str
    seed: int
    pipeline: Pipeline

    @cached_property
    def artifact(self) -> Artifact:
        """What was exported."""
        return open_artifact(next(Path(self.pipeline.models).glob("*/*/manifest.json")).parent)

    def build(self, data: Path, precision: str) -> None:
        """Train, export and compile, unless that was done before."""
        stage, run = self.pipeline.stage, self.pipeline.path("run")
        done = Path(self.pipeline.path("done"))
        if not done.exists():
            config, what = str(self._write_config()), f"{self.form}, seed {self.seed}"
            stage("train", f"training {what}", config, "--data", str(data), "--output", run, "--seed", str(self.seed))
            exported = stage("export", f"exporting {what}", run, "--repository", self.pipeline.models)
            stage("compile", f"compiling {what}", exported["artifact"], "--precision", precision)
            done.touch()

    def _write_config(self) -> Path:
        config = yaml.safe_load((CONFIGS / "candidate_stream.yaml").read_text(encoding="utf-8"))
        config["model"] = load_preset("small").model_dump(mode="json", exclude_none=True) | {"candidate": FORMS[self.form]}
        self.pipeline.workdir.mkdir(parents=True, exist_ok=True)
        path = self.pipeline.workdir / "train.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path


def speeds(variants: Mapping[str, Variant], precision: str) -> dict[str, dict[str, float]]:
    """By form: median ms of one request of `CANDIDATES` candidates, MFLOP per candidate, share of the engine's peak."""
    engines = {
        form: open_engine(v.artifact, cache=default_cache(v.artifact), precision=precision, threads_per_slot=1, slots=1)
        for form, v in variants.items()
    }
    sessions = {form: engine.open_session() for form, engine in engines.items()}
    host = {form: HostFeatures(v.artifact) for form, v in variants.items()}
    inputs = {form: h.zeros(h.score_signature, {"R": 1, "C": CANDIDATES}) for form, h in host.items()}
    seconds: dict[str, list[float]] = {form: [] for form in variants}
    for _ in range(ROUNDS):
        for form, session in sessions.items():
            began = time.perf_counter()
            session.run(SCORE_CANDIDATES, inputs[form])
            seconds[form].append(time.perf_counter() - began)
    found = {}
    for form, variant in variants.items():
        flops = FlopModel.from_json(variant.artifact.manifest.flops, variant.artifact.config)
        median = float(np.median(seconds[form]))
        found[form] = {
            "ms": round(1e3 * median, 3),
            "mflop_per_candidate": round(flops.per_candidate / 1e6, 2),
            "share_of_peak": round(flops.score(1, CANDIDATES).total / median / engines[form].device_peak_flops, 2),
        }
    return found


@dataclass(frozen=True)
class Quality:
    """Position-free NE of the first task, the mean over seeds, and the same of every resample of the users."""

    ne: float
    draws: NDArray[np.float64]


def quality(variants: list[Variant], log: RequestLog) -> dict[str, Quality]:
    """By form, on the held-out part."""
    requests = variants[0].pipeline.held_out(log)
    held_out, found = log.subset(requests), dict[str, list[TaskDraws]]()
    with progress_bar(False) as bar:
        task = bar.add_task("predicting", total=len(variants), note="")
        for variant in variants:
            drawn = task_draws(variant.pipeline.twin(log, requests)[:, 0], held_out)
            found.setdefault(variant.form, []).append(drawn)
            bar.advance(task)
    return {
        form: Quality(
            float(np.mean([d.values["ne"] for d in drawn])), np.asarray(np.mean([d.draws["ne"] for d in drawn], axis=0))
        )
        for form, drawn in found.items()
    }


def at_equal_ms(speed: Mapping[str, Mapping[str, float]], found: Mapping[str, Quality]) -> dict[str, dict[str, Any]]:
    """Every literal form beside the best gated one that is no slower: NE of the gated one - NE of the literal one."""
    verdicts = {}
    for form in (f for f in FORMS if "wukong" in FORMS[f]):
        rivals = [f for f in FORMS if "hidden" in FORMS[f] and speed[f]["ms"] <= speed[form]["ms"]]
        if rivals:
            best = min(rivals, key=lambda f: found[f].ne)
            gap = difference_interval(found[best].ne, found[best].draws, found[form].ne, found[form].draws)
            ratio = speed[best]["ms"] / speed[form]["ms"]
            verdicts[form] = {"beside": best, "ms_ratio": round(ratio, 2)} | {
                f"ne_{name}": round(value, 5) for name, value in asdict(gap).items()
            }
    return verdicts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.candidate_stream", description=__doc__)
    parser.add_argument("--data", type=Path, help="a Metarank-format log (default: synthetic data)")
    parser.add_argument("--workdir", type=Path, default=Path("runs/candidate_stream"), help="kept, and not built again")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each form (default: 2)")
    parser.add_argument("--processes", type=int, default=2, help="trainings at a time (default: 2)")
    arguments = parser.parse_args()
    data, precision = arguments.workdir / "data", precisions()[-1]
    if not (data / "dataset.json").exists():
        Pipeline(arguments.workdir, arguments.data).prepare()
    variants = [
        Variant(form, seed, Pipeline(arguments.workdir / f"{number}-{seed}"))
        for seed in range(arguments.seeds)
        for number, form in enumerate(FORMS)
    ]
    with ThreadPoolExecutor(arguments.processes) as pool:
        list(pool.map(lambda variant: variant.build(data, precision), variants))
    speed = speeds({v.form: v for v in variants}, precision)
    found = quality(variants, load_request_log(data))
    forms = {form: row | {"ne": round(found[form].ne, 5)} for form, row in speed.items()}
    for form, row in forms.items():
        shown = f"{row['ms']:6.2f} ms  {row['mflop_per_candidate']:5.2f} MFLOP each  {row['share_of_peak']:4.2f} of peak"
        note(f"{form:28} {shown}  NE {row['ne']:.5f}")
    verdicts = at_equal_ms(speed, found)
    ok = bool(verdicts) and all(v["ne_low"] <= 0 for v in verdicts.values())
    line = {"id": "candidate_stream", "ok": ok, "precision": precision, "candidates": CANDIDATES, "seeds": arguments.seeds}
    sys.stdout.write(json.dumps(line | {"forms": forms, "at_equal_ms": verdicts}) + "\n")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
