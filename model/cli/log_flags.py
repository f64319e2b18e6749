"""Flags of the commands that train on a canonical log: where its arrays are held."""

from __future__ import annotations

import argparse
from pathlib import Path

from model.cli.console import note, progress_bar
from model.data.open_log import Storage, open_request_log
from model.data.request_log import RequestLog


def add_log_flags(parser: argparse.ArgumentParser) -> None:
    """--storage and --cache, beside a --data of their own."""
    parser.add_argument(
        "--storage",
        choices=[storage.value for storage in Storage],
        default=Storage.AUTO.value,
        help="hold the log in memory or in memory-mapped files (default: auto, by its size and the available memory)",
    )
    parser.add_argument("--cache", type=Path, help="folder of the mapped files (default: .mapped in the log's directory)")


def open_log(arguments: argparse.Namespace) -> RequestLog:
    """The log of --data; raises `ConfigError`."""
    with progress_bar(arguments.json) as bar:
        task = bar.add_task("mapping the log", total=None, note="rows", visible=False)
        return open_request_log(
            arguments.data,
            Storage(arguments.storage),
            arguments.cache,
            note,
            lambda done, total: bar.update(task, completed=done, total=total, visible=True),
        )
