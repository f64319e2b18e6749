"""`kunlun migrate`: move what a store holds from the record layouts of one schema to those of another."""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

from kunlun.cli import Command, UsageError
from model.artifact import ArtifactError, open_artifact
from model.cli.console import add_json_flag, progress_bar, report
from model.config import ConfigError
from model.schema import Schema, load_schema
from serving.core.errors import StoreUnavailable
from serving.store.migrate import Migration
from serving.store.open import open_store


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Servers of a schema whose records look different find nothing of what servers of the old one have stored. Run this "
        "before traffic moves to the new schema, and once more when the last server of the old one has gone; running it "
        "again changes nothing but what has come since. Servers of both schemas may run meanwhile."
    )
    parser.add_argument("old", type=Path, metavar="OLD", help="schema.yaml or artifact directory whose records are stored")
    parser.add_argument("new", type=Path, metavar="NEW", help="schema.yaml or artifact directory to move them to")
    parser.add_argument("--store", required=True, help="URL of the store, as for `kunlun serve`")
    parser.add_argument("--delete-old", action="store_true", help="delete what was moved; no server of OLD may run any more")
    add_json_flag(parser)


def run(arguments: argparse.Namespace) -> int:
    try:
        figures = asyncio.run(_migrate(arguments))
    except (ConfigError, ArtifactError, StoreUnavailable) as error:
        raise UsageError(str(error)) from error
    lines = [f"{figures[part]:,} {part} written" for part in ("histories", "users", "items")]
    if unreadable := figures["unreadable"]:
        lines.append(f"{unreadable:,} records did not fit the old schema and stay as they are")
    lines += [f"not carried over: {name}" for name in figures["left_out"]]
    report(arguments, figures, "\n".join(lines))
    return 0


async def _migrate(arguments: argparse.Namespace) -> dict[str, Any]:
    old, new = _schema(arguments.old), _schema(arguments.new)
    store = await open_store(arguments.store, new)
    try:
        migration = Migration(store, old, delete_old=arguments.delete_old)
        began, stored = time.perf_counter(), sum(await store.nodes.on_every_node("DBSIZE"))
        with progress_bar(arguments.json) as bar:
            task = bar.add_task("keys", total=stored * migration.passes, note="")
            found = await migration.run(lambda keys: bar.advance(task, keys))
            bar.update(task, completed=stored * migration.passes)
        return vars(found) | {"seconds": round(time.perf_counter() - began, 3)}
    finally:
        await store.close()


def _schema(path: Path) -> Schema:
    return open_artifact(path).schema if path.is_dir() else load_schema(path)


command = Command("move what a store holds to the record layouts of another schema", configure, run)
