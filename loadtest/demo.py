"""`kunlun demo`: the whole product once, on one machine: prepare, train, export, compile, serve, rank, feed back.

Every stage is the command a user would type, run as a child process. Held-out requests are then
replayed against the server with the events and outcomes the log holds, and what the server says of
itself (/metrics) is put beside an offline recomputation with the torch twin.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kunlun.cli import Command, UsageError
from kunlun.client import Client, Event
from kunlun.values import RankReply
from loadtest.bench import Bench
from loadtest.pipeline import Pipeline
from loadtest.processes import RunningServer, StageFailed
from loadtest.prometheus_text import REPORTED, scrape, total
from loadtest.replay import Replay, ReplayResult
from model.cli.console import note, progress_bar
from model.metrics.normalized_entropy import NEState

TOP_ROWS = 6


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="a Metarank-format log (JSON lines, plain or gzip); default: synthetic data")
    parser.add_argument("--requests", type=int, default=1000, help="held-out requests to replay (default: 1000)")
    parser.add_argument("--config", type=Path, help="training configuration (default: the demo's own for the data)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in DIR and leave everything there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the closing JSON line only")


def _run(arguments: argparse.Namespace) -> int:
    workdir = arguments.keep or Path(tempfile.mkdtemp(prefix="kunlun-demo-"))
    workdir.mkdir(parents=True, exist_ok=True)
    say = (lambda _: None) if arguments.json else print
    try:
        bench = Bench(Pipeline(workdir, arguments.data, arguments.config, arguments.seed), arguments.requests)
        figures = Demo(arguments, bench, say).run()
    except StageFailed as error:
        raise UsageError(str(error)) from error
    finally:
        if arguments.keep is None:
            shutil.rmtree(workdir, ignore_errors=True)
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0 if figures["errors"] == 0 else 1


@dataclass
class Demo:
    """One run of the demo; `say` prints what a person reads."""

    arguments: argparse.Namespace
    bench: Bench
    say: Callable[[str], Any]

    def run(self) -> dict[str, Any]:
        """All stages; returns the figures of the closing line."""
        began = time.perf_counter()
        stages = self.bench.run()
        replay = self.bench.replay
        requests = self.bench.pipeline.held_out(replay.log)[-self.bench.requests :]
        with self.bench.server() as server, Client(server.address, timeout_s=10) as client:
            self.bench.load(server, requests)
            result = self._replay(client, replay, requests)
            online = self._online_ne(server, result.impressions)
            mfu = total(scrape(f"http://{server.metrics}/metrics"), "kunlun_mfu_busy")
            self._before_and_after_a_click(client, replay, int(requests[-1]))
        figures = {
            "data": "synthetic" if self.arguments.data is None else self.arguments.data.name,
            **self._quality(stages, replay, result, requests, online),
            "p50_ms": round(float(np.percentile(result.latencies_ms, 50)), 2),
            "p99_ms": round(float(np.percentile(result.latencies_ms, 99)), 2),
            "mfu": round(mfu, 4),
            "requests": len(requests),
            "errors": result.errors,
            "rungs": result.rungs,
            "precision": stages["compile"]["precision"],
            "parity": stages["compile"]["parity"]["max_probability_error"],
            "train_seconds": stages["train"]["seconds"],
            "seconds": round(time.perf_counter() - began, 1),
        }
        self._summary(figures, result)
        return figures

    def _replay(self, client: Client, replay: Replay, requests: NDArray[np.int64]) -> ReplayResult:
        note("[bold]replaying held-out requests[/] with their events and outcomes")
        with progress_bar(self.arguments.json) as bar:
            task = bar.add_task("requests", total=len(requests), note="")
            return replay.run(client, requests, lambda: bar.advance(task))

    def _online_ne(self, server: RunningServer, impressions: int) -> float:
        """The server's own NE over all slices, once it has consumed every reported impression."""
        self.bench.wait_for_outcomes(server, impressions)
        samples = scrape(f"http://{server.metrics}/metrics")
        found = [s.value for s in samples if s.name == "kunlun_online_ne" and REPORTED.items() <= s.labels.items()]
        return float(np.mean(found))

    def _quality(
        self,
        stages: dict[str, dict[str, Any]],
        replay: Replay,
        result: ReplayResult,
        requests: NDArray[np.int64],
        online: float,
    ) -> dict[str, Any]:
        task, first = next(iter(stages["evaluate"]["tasks"].items()))
        bayes = stages["prepare"].get("bayes", {}).get(task, {})
        twin = self.bench.pipeline.twin(replay.log, requests)
        labels = np.concatenate([replay.log.labels[replay.log.shown(r)] for r in requests.tolist()])
        answered = np.concatenate(
            [np.full(replay.log.offsets[r + 1] - replay.log.offsets[r], r in result.predictions) for r in requests]
        )
        served = np.concatenate([result.predictions[r] for r in requests.tolist() if r in result.predictions])
        return {
            "ne_test": round(first["ne"]["value"], 5),
            **{name: bayes.get(name) for name in ("ne_bayes", "ne_no_order", "ne_no_history")},
            "auc_test": round(first["auc"]["value"], 5),
            "ne_online": round(online, 6),
            "ne_offline_same_impressions": round(_mean_ne(twin[answered], labels[answered]), 6),
            "max_score_difference": float(np.abs(served - twin[answered]).max()),
        }

    def _before_and_after_a_click(self, client: Client, replay: Replay, number: int) -> None:
        """Rank a user's list, record a click on its last item, rank again."""
        log = replay.log
        before = replay.rank(client, number)
        clicked = before.items[-1]
        event = next(
            (e.name for e in log.schema.events if e.name in {t.name for t in log.schema.tasks}), log.schema.events[0].name
        )
        now = int(log.time_ms[number]) + 1000
        token = client.record_events([Event(log.user_ids[log.user_index[number]], event, clicked, time_ms=now)])
        after = replay.rank(client, number, after=token)
        self.say(
            f"\nOne list before and after a {event} on {clicked!r} "
            f"(history {before.history_length} → {after.history_length} events)"
        )
        self.say(_side_by_side(before, after, clicked))

    def _summary(self, f: dict[str, Any], result: ReplayResult) -> None:
        bayes = f" (Bayes bound {f['ne_bayes']:.4f}, without history {f['ne_no_history']:.4f})" if f["ne_bayes"] else ""
        self.say(f"\ntest NE {f['ne_test']:.4f}{bayes}, AUC {f['auc_test']:.4f}")
        self.say(
            f"online NE {f['ne_online']:.4f} over {result.impressions:,} impressions; "
            f"offline on the same impressions {f['ne_offline_same_impressions']:.4f}"
        )
        self.say(f"Rank p50 {f['p50_ms']:.1f} ms, p99 {f['p99_ms']:.1f} ms; busy MFU {f['mfu']:.1%}; {result.errors} errors")
        if result.errors:
            self.say(f"last error: {result.last_error}")
        self.say(f"all stages: {f['seconds']:.0f} s\n")


def _mean_ne(predictions: NDArray[np.float64], labels: NDArray[np.float32]) -> float:
    figures = []
    for task in range(labels.shape[1]):
        known = ~np.isnan(labels[:, task])
        figures.append(NEState.of(predictions[known, task].astype(np.float32), labels[known, task]).normalized_entropy)
    return float(np.mean(figures))


def _side_by_side(before: RankReply, after: RankReply, clicked: str | int) -> str:
    task = next(iter(before.scores))
    lines = [f"  {'rank':>4}  {'before':<14}{'p_' + task:>9}    {'after':<14}{'p_' + task:>9}"]
    lines += [
        f"  {row + 1:>4}  {before.items[row]!s:<14}{before.scores[task][row]:>9.4f}    "
        f"{after.items[row]!s:<14}{after.scores[task][row]:>9.4f}"
        for row in range(min(TOP_ROWS, len(before.items)))
    ]
    places = [reply.items.index(clicked) + 1 for reply in (before, after)]
    return "\n".join([*lines, f"  the clicked item: place {places[0]} → {places[1]}"])


command = Command("train, export, compile, serve and rank: the whole product once, on one machine", _configure, _run)
