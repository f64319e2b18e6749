"""Examples/s of training beside a public library's DIN: `python -m loadtest.checks.training_throughput --data DIR`.

One thread, one log, equal batches: the library is torch-rechub (`pip install 'kunlun-serving[compare]'`), the features are
those that it can take (item id, its ids of other kinds, and the item ids of every history), all embedded in one width. A step
is forward, loss, backward and optimizer on batches made before, with all histories of a batch padded to its longest, which
the library asks for. Ours run as they train, with the user's side once per request of a batch (`grouped`), and with every
example a request of its own, as the library has it (`flat`). Rounds are interleaved, in changing order; a ratio is that of
two contenders in the same round, by the thread's CPU time, and is given as median and range.

`ok`: our DIN, grouped, trains at least as many examples per second as the library's. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from loadtest.yardsticks.rechub_din import RechubDIN
from model.architectures.registry import parse_architecture
from model.cli.console import note, progress_bar, stderr
from model.data.request_log import RequestLog, load_request_log
from model.data.split import split_requests
from model.features import FeatureEncoder
from model.ranker import KunlunRanker
from model.schema import FeatureKind, Schema
from model.training.batches import Batch, BatchMaker, EncodedTensors, HistoryTensors
from model.training.config import OptimizerConfig
from model.training.fit_features import fit_features
from model.training.forward import PositionBias, masked_bce, raw_logits
from model.training.optimizers import Optimizers

LIBRARY = "torch-rechub DIN"
ATTENTION_HIDDEN, HIDDEN = 36, (200, 80)
SEED = 20_261_126


def comparable(log: RequestLog, width: int, history: int) -> RequestLog:
    """The log with what both sides can read: item ids and ids of items' features, in tables of one width; histories are cut."""
    data = log.schema.model_dump(mode="json")
    data["tables"] = {name: table | {"width": width} for name, table in data["tables"].items()}
    data |= {"user": [], "user_id_table": None, "context": [], "affinities": [], "slice": None}
    data["item_features"] = [f for f in data["item_features"] if f["kind"] != FeatureKind.NUMERIC]
    data["events"] = [e | {"attributes": [], "cap": min(history, e["cap"]), "capacity": None} for e in data["events"]]
    return replace(log, schema=Schema.model_validate(data))


def evened(batch: Batch) -> Batch:
    """All types' histories padded to the longest."""
    steps = max(h.age_s.shape[1] for h in batch.histories.values())

    def padded(h: HistoryTensors) -> HistoryTensors:
        missing = steps - h.age_s.shape[1]
        events = EncodedTensors(F.pad(h.events.rows, (0, 0, 0, missing)), F.pad(h.events.dense, (0, 0, 0, missing)))
        return HistoryTensors(events, F.pad(h.age_s, (0, missing)), h.lengths)

    return replace(batch, histories={event: padded(h) for event, h in batch.histories.items()})


def flat(batch: Batch) -> Batch:
    """Every example a request of its own."""
    index = batch.request_index

    def repeated(group: EncodedTensors) -> EncodedTensors:
        return EncodedTensors(group.rows.index_select(0, index), group.dense.index_select(0, index))

    histories = {
        event: HistoryTensors(repeated(h.events), h.age_s.index_select(0, index), h.lengths.index_select(0, index))
        for event, h in batch.histories.items()
    }
    return replace(
        batch,
        users=repeated(batch.users),
        histories=histories,
        contexts=repeated(batch.contexts),
        request_index=torch.arange(batch.candidates),
    )


class Ours:
    """One of our models with the optimizers of the training loop."""

    def __init__(self, schema: Schema, encoder: FeatureEncoder, architecture: object) -> None:
        torch.manual_seed(SEED)
        config = parse_architecture(architecture if isinstance(architecture, dict) else {"preset": architecture})
        self.model = KunlunRanker(schema, config, encoder.table_rows()).train()
        self.position_bias = PositionBias(len(schema.tasks))
        self.optimizers = Optimizers(self.model, self.position_bias, OptimizerConfig(warmup_steps=1), 10_000)
        self.weights = torch.ones(len(schema.tasks))
        self.steps = 0

    def step(self, batch: Batch) -> float:
        """What the training loop does with a batch; the loss."""
        logits = raw_logits(self.model, batch) + self.position_bias(batch.positions)
        loss = masked_bce(logits, batch.labels, self.weights)
        self.optimizers.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizers.clip(self.optimizers.dense_norm())
        self.optimizers.step(self.steps)
        self.steps += 1
        return float(loss.item())


def _steps(ours: Ours, batches: list[Batch]) -> list[float]:
    return [ours.step(batch) for batch in batches]


def measured(contenders: dict[str, Callable[[], list[float]]], rounds: int, examples: int) -> dict[str, dict[str, Any]]:
    """CPU seconds and wall seconds of every contender per round, all of them in each round, one after the other."""
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    losses: dict[str, list[float]] = {}
    names = list(contenders)
    with progress_bar() as bar:
        task = bar.add_task("rounds", total=(rounds + 1) * len(names), note="")
        for number in range(rounds + 1):  # round 0 warms up
            for name in names[number % len(names) :] + names[: number % len(names)]:
                began_wall, began = time.perf_counter(), time.thread_time()
                losses[name] = contenders[name]()
                spent, spent_wall = time.thread_time() - began, time.perf_counter() - began_wall
                if number:
                    cpu[name].append(spent)
                    wall[name].append(spent_wall)
                bar.update(task, advance=1, note=name)
    found = {}
    for name in names:
        ratios = np.array(cpu[LIBRARY]) / np.array(cpu[name])
        found[name] = {
            "examples_per_cpu_s": examples / float(np.median(cpu[name])),
            "examples_per_wall_s": examples / float(np.median(wall[name])),
            "ratio": float(np.median(ratios)),
            "ratio_range": [float(ratios.min()), float(ratios.max())],
            "last_loss": float(np.mean(losses[name])),
        }
    return found


def throughput(
    log: RequestLog,
    *,
    rounds: int,
    steps: int,
    batch_requests: int,
    width: int,
    history: int,
    presets: list[str],
    flat_presets: list[str],
) -> dict[str, Any]:
    """Figures of every contender and of the batches."""
    log = comparable(log, width, history)
    train = split_requests(log, "per_user_last").train
    if len(train) < steps * batch_requests:
        raise SystemExit(
            f"--steps × --batch-requests: expected at most {len(train)} (training), found {steps * batch_requests}"
        )
    encoder = FeatureEncoder(log.schema, fit_features(log, train))
    maker, rng = BatchMaker(log, encoder), np.random.default_rng(SEED)
    order = rng.permutation(train)[: steps * batch_requests].reshape(-1, batch_requests)
    batches = [evened(maker.batch(np.sort(requests))) for requests in order]
    flats = [flat(batch) for batch in batches]
    library = RechubDIN(log.schema, encoder.table_rows(), ATTENTION_HIDDEN, HIDDEN)
    theirs: list[tuple[dict[str, Tensor], Tensor]] = [library.inputs(batch) for batch in batches]
    din = {"architecture": "din", "width": width, "attention_hidden": ATTENTION_HIDDEN, "hidden": list(HIDDEN)}
    contenders: dict[str, Callable[[], list[float]]] = {LIBRARY: lambda: [library.step(x, y) for x, y in theirs]}
    architectures: dict[str, object] = {"din": din | {"activation": "dice"}} | {f"kunlun {p}": p for p in presets}
    for name, architecture in architectures.items():
        for form, given in (("grouped", batches), ("flat", flats)):
            if form == "grouped" or name in ("din", *(f"kunlun {p}" for p in flat_presets)):
                contenders[f"{name}, {form}"] = partial(_steps, Ours(log.schema, encoder, architecture), given)
    examples = sum(batch.candidates for batch in batches)
    lengths = {e: float(np.mean([float(b.histories[e].lengths.float().mean()) for b in batches])) for e in batches[0].histories}
    padded = {e: float(np.mean([b.histories[e].age_s.shape[1] for b in batches])) for e in batches[0].histories}
    note(f"{examples:,} examples in {len(batches)} batches; history events {lengths}, padded to {padded} on average")
    return {
        "examples_per_batch": examples / len(batches),
        "requests_per_batch": batch_requests,
        "history_events": lengths,
        "padded_to": padded,
        "width": width,
        "rounds": rounds,
        "rows": measured(contenders, rounds, examples),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.checks.training_throughput", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="canonical log, as written by `kunlun prepare`")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: 5)")
    parser.add_argument("--steps", type=int, default=4, help="steps of every contender in a round (default: 4)")
    parser.add_argument("--batch-requests", type=int, default=32, help="requests per batch (default: 32)")
    parser.add_argument("--width", type=int, default=16, help="columns of every embedding (default: 16)")
    parser.add_argument("--history", type=int, default=50, help="newest events of each type (default: 50)")
    parser.add_argument("--presets", default="tiny,small", help="Kunlun presets beside DIN (default: tiny,small)")
    parser.add_argument(
        "--flat-presets", default="tiny", help="those also measured without grouping, which is slow (default: tiny)"
    )
    arguments = parser.parse_args()
    if find_spec("torch_rechub") is None:
        parser.error("torch-rechub is not installed; pip install 'kunlun-serving[compare]'")
    torch.set_num_threads(1)
    found = throughput(
        load_request_log(arguments.data),
        rounds=arguments.rounds,
        steps=arguments.steps,
        batch_requests=arguments.batch_requests,
        width=arguments.width,
        history=arguments.history,
        presets=[p for p in arguments.presets.split(",") if p],
        flat_presets=[p for p in arguments.flat_presets.split(",") if p],
    )
    table = Table(title=f"training, one thread, {found['examples_per_batch']:,.0f} examples per batch")
    for column in ("model", "examples per CPU second", f"ratio to {LIBRARY}", "range"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, row in found["rows"].items():
        low, high = row["ratio_range"]
        table.add_row(name, f"{row['examples_per_cpu_s']:,.0f}", f"{row['ratio']:.2f}", f"{low:.2f}–{high:.2f}")
    stderr.print(table)
    ok = found["rows"]["din, grouped"]["ratio"] >= 1
    sys.stdout.write(json.dumps({"ok": ok, "target": f"din, grouped: ratio to {LIBRARY} at least 1", **found}) + "\n")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
