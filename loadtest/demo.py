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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kunlun.cli import Command, UsageError
from kunlun.client import Client, Event
from kunlun.values import RankReply
from loadtest.processes import RunningServer, StageFailed, run_stage, serving
from loadtest.prometheus_text import scrape, total
from loadtest.replay import Replay, ReplayResult
from model.cli.console import note, progress_bar
from model.data.split import split_requests
from model.metrics.normalized_entropy import NEState

CONFIGS = Path(__file__).parent / "configs"
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
        figures = Demo(arguments, workdir, say).run()
    except StageFailed as error:
        raise UsageError(str(error)) from error
    finally:
        if arguments.keep is None:
            shutil.rmtree(workdir, ignore_errors=True)
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0 if figures["errors"] == 0 else 1


@dataclass
class Demo:
    """One run of the demo in `workdir`."""

    arguments: argparse.Namespace
    workdir: Path
    say: Any

    def run(self) -> dict[str, Any]:
        """All stages; returns the figures of the closing line."""
        began = time.perf_counter()
        prepared = self._stage("prepare", "preparing data", *self._source(), "--output", self._path("data"))
        run, data = self._path("run"), self._path("data")
        seed = str(self.arguments.seed)
        trained = self._stage("train", "training", str(self._config()), "--data", data, "--output", run, "--seed", seed)
        tested = self._stage("evaluate", "evaluating", run, "--data", data)
        exported = self._stage("export", "exporting", run, "--repository", self._path("models"))
        compiled = self._stage("compile", "compiling", exported["artifact"])
        replay = Replay(Path(data))
        requests = self._held_out(replay)
        with serving(self._server_arguments(), self.workdir) as server, Client(server.address, timeout_s=10) as client:
            self._load(server, replay, requests)
            result = self._replay(client, replay, requests)
            online = self._online_ne(server, result.impressions)
            mfu = total(scrape(f"http://{server.metrics}/metrics"), "kunlun_mfu_busy")
            self._before_and_after_a_click(client, replay, int(requests[-1]))
        figures = {
            "data": "synthetic" if self.arguments.data is None else self.arguments.data.name,
            **self._quality(prepared, tested, replay, result, requests, online),
            "p50_ms": round(float(np.percentile(result.latencies_ms, 50)), 2),
            "p99_ms": round(float(np.percentile(result.latencies_ms, 99)), 2),
            "mfu": round(mfu, 4),
            "requests": len(requests),
            "errors": result.errors,
            "rungs": result.rungs,
            "parity": compiled["parity"]["max_probability_error"],
            "train_seconds": trained["seconds"],
            "seconds": round(time.perf_counter() - began, 1),
        }
        self._summary(figures, result)
        return figures

    def _stage(self, command: str, doing: str, *arguments: str) -> dict[str, Any]:
        began = time.perf_counter()
        note(f"[bold]{doing}[/] (kunlun {command} …)")
        figures = run_stage([command, *arguments])
        note(f"  done in {time.perf_counter() - began:.1f} s")
        return figures

    def _path(self, name: str) -> str:
        return str(self.workdir / name)

    def _source(self) -> list[str]:
        if self.arguments.data is None:
            return ["--source", "synthetic", "--seed", str(self.arguments.seed)]
        return ["--source", "metarank", "--input", str(self.arguments.data)]

    def _config(self) -> Path:
        if self.arguments.config is not None:
            return Path(self.arguments.config)
        return CONFIGS / ("demo_synthetic.yaml" if self.arguments.data is None else "demo_metarank.yaml")

    def _server_arguments(self) -> list[str]:
        return ["--repository", self._path("models"), "--store", "embedded", "--port", "0", "--metrics-port", "0"]

    def _held_out(self, replay: Replay) -> NDArray[np.int64]:
        """The last test requests, in log order."""
        config = json.loads((self.workdir / "run" / "config.json").read_text())
        return split_requests(replay.log, config["split"]).test[-self.arguments.requests :]

    def _load(self, server: RunningServer, replay: Replay, requests: NDArray[np.int64]) -> None:
        """Item and user features, and the histories as they were before the first replayed request of each user."""
        earlier = self.workdir / "events_before.parquet"
        pq.write_table(replay.events_before(requests), earlier)
        self._stage("load", "loading the store", self._path("data"), "--store", server.store, "--events", str(earlier))

    def _replay(self, client: Client, replay: Replay, requests: NDArray[np.int64]) -> ReplayResult:
        note("[bold]replaying held-out requests[/] with their events and outcomes")
        with progress_bar(self.arguments.json) as bar:
            task = bar.add_task("requests", total=len(requests), note="")
            return replay.run(client, requests, lambda: bar.advance(task))

    def _online_ne(self, server: RunningServer, impressions: int) -> float:
        """The server's own NE, once it has consumed every reported impression."""
        deadline = time.monotonic() + 30
        while True:
            samples = scrape(f"http://{server.metrics}/metrics")
            tasks = len({s.labels["task"] for s in samples if s.name == "kunlun_online_examples_total"})
            if total(samples, "kunlun_online_examples_total") >= impressions * tasks or time.monotonic() > deadline:
                every_slice = [s.value for s in samples if s.name == "kunlun_online_ne" and s.labels["slice"] == "*"]
                return float(np.mean(every_slice))
            time.sleep(0.05)

    def _quality(
        self,
        prepared: dict[str, Any],
        tested: dict[str, Any],
        replay: Replay,
        result: ReplayResult,
        requests: NDArray[np.int64],
        online: float,
    ) -> dict[str, Any]:
        task, first = next(iter(tested["tasks"].items()))
        bayes = prepared.get("bayes", {}).get(task, {})
        twin = self._twin(replay, requests)
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

    def _twin(self, replay: Replay, requests: NDArray[np.int64]) -> NDArray[np.float64]:
        """The torch twin's probabilities of the same impressions, from offline histories."""
        from model.training.batches import BatchMaker
        from model.training.predict import predict_logits
        from model.training.run import TrainingRun

        run = TrainingRun.open(self.workdir / "run")
        logits = predict_logits(run.load_model(), BatchMaker(replay.log, run.encoder), requests, calibrated=True)
        return 1 / (1 + np.exp(-logits.astype(np.float64)))

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
