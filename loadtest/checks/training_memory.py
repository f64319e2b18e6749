"""Training on a log larger than its memory: `python -m loadtest.checks.training_memory`.

A synthetic log is repeated in time, with lists `WIDER` times as long, until its arrays are several times larger than what
training takes. A process that has trained on a tiny log limits its private writable memory (``RLIMIT_DATA``, which mapped
files are no part of) to what it has then and `--cap-mb` more, maps the log, fits features and trains, prefetching, to a
finished run. Another process with the same limit loads the log into memory, which must fail: the limit is real. Counted is
the growth of private pages (``RssAnon``), sampled every 20 ms; pages that the system had promised before count when used.

`ok`: the mapped run ends below the limit, the log's arrays are at least `TIMES` times the private memory that it took at its
peak, and holding the log in memory is refused under the same limit. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.cli.console import note
from model.data.canonical import LogFile
from model.data.open_log import STATUS, Storage, open_request_log, proc_bytes
from model.data.request_log import RequestLog

TIMES, WIDER = 4.0, 8
OUT_OF_MEMORY = ("MemoryError", "allocate", "bad_alloc", "malloc of size")
"""One of these is in the last line of an error where memory was refused."""
SAMPLE_S = 0.02
SHIFT_MS = 40 * 86_400_000


def repeated_log(directory: Path, requests: int, copies: int) -> None:
    """Write a synthetic log of `requests` requests, and the same again `copies` times, each later in time by `SHIFT_MS`."""
    from model.data.synthetic import generate
    from model.data.synthetic_world import SyntheticConfig

    generate(SyntheticConfig(requests=requests), directory, lambda _: None)
    for file, identity in ((LogFile.REQUESTS, "request_id"), (LogFile.EVENTS, "event_id")):
        path = directory / f"{file}.parquet"
        table = pq.read_table(path)
        with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
            for copy in range(copies):
                writer.write_table(_shifted(table, identity, copy), row_group_size=20_000)


def _shifted(table: pa.Table, identity: str, copy: int) -> pa.Table:
    for name in (identity, *(n for n in ("time_ms", "arrival_ms") if n in table.column_names)):
        values = table[name].to_pylist()
        moved = [f"{v}/{copy}" for v in values] if name == identity else [v + copy * SHIFT_MS for v in values]
        table = table.set_column(table.column_names.index(name), name, pa.array(moved, table.schema.field(name).type))
    if identity == "request_id":
        for name in table.column_names:
            if pa.types.is_list(table.schema.field(name).type):
                wider = [None if v is None else v * WIDER for v in table[name].to_pylist()]
                table = table.set_column(table.column_names.index(name), name, pa.array(wider, table.schema.field(name).type))
    return table


def train_capped(directory: Path, workdir: Path, storage: str, cap_bytes: int, seconds: float) -> dict[str, Any]:
    """In a process of its own: a run with at most `cap_bytes` more private memory than after a run on a tiny log."""
    import torch

    from model.training.config import TrainConfig
    from model.training.fit_run import fit_run

    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    config = TrainConfig.model_validate(
        {
            "model": "tiny",
            "device": "cpu",
            "threads": 1,
            "batch_work": 4_000,
            "shuffle_requests": 16_384,
            "max_validation_requests": 2_000,
            "max_seconds": seconds,
            "peak_flops": 1e11,
        }
    )
    with tempfile.TemporaryDirectory(prefix="kunlun-warm-") as folder:  # what is imported and allocated once is not the log's
        tiny = Path(folder) / "log"
        repeated_log(tiny, 200, 1)
        fit_run(config, open_request_log(tiny, Storage.MAPPED), Path(folder) / "run")
    before = proc_bytes(STATUS)
    limit = before["VmData"] + cap_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with PeakOf("RssAnon") as private:
        log = open_request_log(directory, Storage(storage), workdir / "mapped")
        result = fit_run(config, log, workdir / "run")
    return {
        "requests": len(log),
        "shown_items": len(log.item_index),
        "events": sum(len(arrivals.records) for arrivals in log.events.values()),
        "array_bytes": array_bytes(log),
        "peak_private_bytes": private.peak - before["RssAnon"],
        "steps": result["steps"],
        "validation_ne": round(result["best"]["validation_ne"], 4),
    }


def is_out_of_memory(returncode: int, stderr: str) -> bool:
    """Whether a process ended since it got no more memory, and for no other reason."""
    last = next((line for line in reversed(stderr.splitlines()) if line.strip()), "")
    return returncode != 0 and any(sign in last for sign in OUT_OF_MEMORY)


class PeakOf:
    """The largest value of a line of ``/proc/self/status`` while the context lasts."""

    def __init__(self, name: str) -> None:
        self.name, self.peak, self._done = name, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakOf:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_S):
            self.peak = max(self.peak, proc_bytes(STATUS)[self.name])


def array_bytes(log: RequestLog) -> int:
    """What the arrays of a log would take in memory."""
    arrays = [log.time_ms, log.user_index, log.contexts, log.offsets, log.item_index, log.positions, log.labels, log.items]
    arrays += [*log.columns.values(), *(a.records for a in log.events.values())]
    return sum(array.nbytes for array in arrays) + (0 if log.truth is None else log.truth.nbytes)


def _child(arguments: argparse.Namespace, directory: Path, workdir: Path, storage: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtest.checks.training_memory", "--capped", storage, "--data", str(directory)]
    command += ["--workdir", str(workdir), "--cap-mb", str(arguments.cap_mb), "--seconds", str(arguments.seconds)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _parent(arguments: argparse.Namespace, workdir: Path) -> int:
    directory, cap = workdir / "log", arguments.cap_mb * 1_000_000
    note(f"{arguments.requests:,} synthetic requests, {arguments.copies} times")
    repeated_log(directory, arguments.requests, arguments.copies)
    note(f"training with {arguments.cap_mb} MB on top of a tiny run's, from mapped files")
    began = time.perf_counter()
    mapped = _child(arguments, directory, workdir, "mapped")
    if mapped.returncode:
        note(mapped.stderr[-2000:])
    figures = json.loads(mapped.stdout.splitlines()[-1]) if not mapped.returncode else {}
    seconds = round(time.perf_counter() - began, 1)
    note("the same from memory, which must be refused")
    in_memory = _child(arguments, directory, workdir, "memory")
    refused = is_out_of_memory(in_memory.returncode, in_memory.stderr)
    if not refused:
        note(in_memory.stderr[-2000:])
    times = figures["array_bytes"] / figures["peak_private_bytes"] if figures else 0.0
    line = {
        "ok": bool(figures) and times >= TIMES and refused,
        "limit_on_top_bytes": cap,
        **figures,
        "log_to_private": round(times, 2),
        "target_log_to_private": TIMES,
        "in_memory_refused": refused,
        "seconds": seconds,
    }
    sys.stdout.write(json.dumps(line) + "\n")
    return 0 if line["ok"] else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.checks.training_memory", description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1_500, help="requests of the synthetic log (default: 1500)")
    parser.add_argument("--copies", type=int, default=120, help="how often it is repeated in time (default: 120)")
    parser.add_argument("--cap-mb", type=int, default=128, help="private memory on top of a tiny run's (default: 128)")
    parser.add_argument("--seconds", type=float, default=15.0, help="seconds of training (default: 15)")
    parser.add_argument("--workdir", type=Path, help="keep everything here (default: a folder that is removed)")
    parser.add_argument("--capped", choices=("mapped", "memory"), help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.capped:
        figures = train_capped(
            arguments.data, arguments.workdir, arguments.capped, arguments.cap_mb * 1_000_000, arguments.seconds
        )
        sys.stdout.write(json.dumps(figures) + "\n")
        return 0
    if arguments.workdir is not None:
        arguments.workdir.mkdir(parents=True, exist_ok=True)
        return _parent(arguments, arguments.workdir)
    with tempfile.TemporaryDirectory(prefix="kunlun-memory-") as folder:
        return _parent(arguments, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
