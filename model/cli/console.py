"""How the model commands talk: progress and notes to stderr, figures to stdout, one JSON line with --json."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

stderr = Console(stderr=True, highlight=False)


def progress_bar(quiet: bool = False) -> Progress:
    """A progress bar on stderr; nothing when `quiet` or when stderr is not a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=stderr,
        disable=quiet or not stderr.is_terminal,
        transient=True,
    )


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """The --json flag every reporting command takes."""
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON line at the end")


def note(text: str) -> None:
    """One line for the person watching."""
    stderr.print(text)


def report(arguments: argparse.Namespace, figures: Mapping[str, Any], text: str) -> None:
    """The outcome: `text` for people, or `figures` as one JSON line."""
    sys.stdout.write((json.dumps(figures) if arguments.json else text) + "\n")
    sys.stdout.flush()
