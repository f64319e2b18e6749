"""`kunlun load`: item features, user features and histories of a canonical log into a store."""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

from rich.progress import TaskID

from kunlun.cli import Command, UsageError
from model.cli.console import add_json_flag, progress_bar, report
from model.config import ConfigError
from model.records import FieldError
from model.schema import load_schema
from serving.core.errors import StoreUnavailable
from serving.store.load import LoadReport, load_events, load_items, load_users, rows_in
from serving.store.load_journal import LoadJournal
from serving.store.open import open_store

LOADERS = {"items": load_items, "users": load_users, "events": load_events}


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, help="canonical log with schema.yaml, items.parquet, users.parquet, …")
    parser.add_argument("--store", required=True, help="redis://, rediss:// or unix:// URL of the store")
    parser.add_argument("--schema", type=Path, help="schema (default: the directory's schema.yaml)")
    for part in LOADERS:
        parser.add_argument(f"--{part}", type=Path, metavar="FILE", help=f"{part} file (default: {part}.parquet if present)")
    parser.add_argument("--only", choices=tuple(LOADERS), action="append", help="load only this part (repeatable)")
    parser.add_argument("--resume", action="store_true", help="leave out what an interrupted load of the same files has done")
    add_json_flag(parser)


def _run(arguments: argparse.Namespace) -> int:
    try:
        figures = asyncio.run(_load(arguments))
    except (ConfigError, FieldError, StoreUnavailable) as error:
        raise UsageError(str(error)) from error
    lines = [
        f"{part}: {f['loaded']:,} loaded in {f['seconds']:.1f} s ({f['rows_per_s']:,.0f} rows/s)"
        + "".join(f"\n  {count:,} refused: {reason}" for reason, count in f["rejected"].items())
        for part, f in figures.items()
    ]
    report(arguments, figures, "\n".join(lines) or "nothing to load")
    return 0


async def _load(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    schema = load_schema(arguments.schema or arguments.directory / "schema.yaml")
    store = await open_store(arguments.store, schema)
    figures = {}
    try:
        with progress_bar(arguments.json) as bar:
            for part, load in LOADERS.items():
                given: Path | None = getattr(arguments, part)
                path = given or arguments.directory / f"{part}.parquet"
                if (arguments.only and part not in arguments.only) or (given is None and not path.is_file()):
                    continue
                if not path.is_file():
                    raise ConfigError(f"{path}: no such file")
                journal = LoadJournal(path, store.public_url)
                skip = journal.resume() if arguments.resume else 0
                task = bar.add_task(part, total=rows_in(path), completed=skip, note="")

                def advance(rows: int, task: TaskID = task, journal: LoadJournal = journal) -> None:
                    bar.advance(task, rows)
                    journal.advance(rows)

                began = time.perf_counter()
                done: LoadReport = await load(store, schema, path, advance, skip)
                seconds = time.perf_counter() - began
                journal.done()
                figures[part] = {
                    "loaded": done.loaded,
                    "rejected": dict(done.rejected),
                    "seconds": round(seconds, 3),
                    "skipped": skip,
                    "rows_per_s": round(done.loaded / max(seconds, 1e-9)),
                }
    finally:
        await store.close()
    return figures


command = Command("load item features, user features and histories into a store", _configure, _run)
