"""`kunlun log export`: what was served and what came of it, as a canonical log that `kunlun train` reads."""

from __future__ import annotations

import argparse
import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path

from kunlun.cli import Command, UsageError
from model.artifact import ArtifactError, open_artifact
from model.cli.console import add_json_flag, progress_bar, report
from model.config import ConfigError
from model.schema import Schema, load_schema
from serving.config import ServerConfig, artifact_path
from serving.core.errors import StoreUnavailable
from serving.store.open import open_store
from serving.training_log.export import export_log
from serving.training_log.join import REASON_TEXT, ExportOptions, ExportReport

DEFAULT_WINDOW_S: float = ServerConfig.model_fields["attribution_window_s"].default


def _configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="action", required=True, metavar="export")
    text = "write what was served (`served_log_rate` of `kunlun serve`) with its outcomes as a canonical log for `kunlun train`"
    _configure_export(commands.add_parser("export", help=text, description=text))


def _configure_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", required=True, help="redis://, rediss:// or unix:// URL of the store")
    schema = parser.add_mutually_exclusive_group(required=True)
    schema.add_argument("--repository", type=Path, help="model repository whose schema was served")
    schema.add_argument("--artifact", type=Path, help="version directory with that schema: <repository>/<model>/<version>")
    schema.add_argument("--schema", type=Path, help="that schema itself (YAML)")
    parser.add_argument("--model", default="", help="model name in --repository (default: the only one)")
    parser.add_argument("--version", default="", help="version in --repository (default: the newest)")
    parser.add_argument("--output", type=Path, required=True, help="directory of the canonical log")
    parser.add_argument("--since", type=_time_ms, metavar="TIME", help="serving time to begin with: ISO 8601 (UTC) or ms")
    parser.add_argument("--until", type=_time_ms, metavar="TIME", help="serving time to end before: ISO 8601 (UTC) or ms")
    parser.add_argument(
        "--attribution-window",
        type=_positive,
        default=DEFAULT_WINDOW_S,
        metavar="SECONDS",
        help=f"outcomes count for this long; as the servers' attribution_window_s (default: {DEFAULT_WINDOW_S:.0f})",
    )
    parser.add_argument("--include-immature", action="store_true", help="export lists whose attribution window has not ended")
    parser.add_argument(
        "--negative-rate",
        type=_rate,
        default=1.0,
        metavar="W",
        help="keep this share of the shown items without any label; training corrects for it (default: 1)",
    )
    add_json_flag(parser)


def _run(arguments: argparse.Namespace) -> int:
    began = time.perf_counter()
    try:
        found = asyncio.run(_export(arguments, _schema(arguments)))
    except (ConfigError, ArtifactError, StoreUnavailable) as error:
        raise UsageError(str(error)) from error
    seconds = round(time.perf_counter() - began, 3)
    figures = {"output": str(arguments.output), "seconds": seconds, **found.to_json()}
    report(arguments, figures, _text(found, arguments.output, seconds))
    return 0


async def _export(arguments: argparse.Namespace, schema: Schema) -> ExportReport:
    options = ExportOptions(
        window_ms=round(arguments.attribution_window * 1000),
        now_ms=time.time_ns() // 1_000_000,
        since_ms=arguments.since,
        until_ms=arguments.until,
        include_immature=arguments.include_immature,
        negative_rate=arguments.negative_rate,
    )
    store = await open_store(arguments.store, schema)
    try:
        with progress_bar(arguments.json) as bar:
            task = bar.add_task("reading the store's streams", total=None, note="entries")
            return await export_log(
                store, schema, options, arguments.output, lambda done, total: bar.update(task, completed=done, total=total)
            )
    finally:
        await store.close()


def _schema(arguments: argparse.Namespace) -> Schema:
    if arguments.repository is None and (arguments.model or arguments.version):
        raise UsageError("--model and --version: only with --repository")
    if arguments.schema is not None:
        return load_schema(arguments.schema)
    if arguments.artifact is not None:
        return open_artifact(arguments.artifact).schema
    config = ServerConfig(repository=arguments.repository, model=arguments.model, version=arguments.version)
    return open_artifact(artifact_path(config)).schema


def _text(found: ExportReport, output: Path, seconds: float) -> str:
    lines = [
        f"{found.exported:,} of {found.served:,} served lists ({found.with_impressions:,} with impressions) with "
        f"{found.examples:,} examples of {found.impressions:,} impressions, {found.users:,} users, {found.items:,} items "
        f"({seconds:.1f} s) → {output}",
        "events: " + ", ".join(f"{count:,} {name}" for name, count in found.events.items()),
        "positives: "
        + ", ".join(f"{count:,} {name} ({count / max(1, found.examples):.2%})" for name, count in found.positives.items()),
    ]
    lines += [f"left out: {count:,} ({REASON_TEXT[reason]})" for reason, count in found.left_out.items()]
    items, users = found.changed_features["items"], found.changed_features["users"]
    lines.append(f"features that changed meanwhile: of {items:,} items, {users:,} users (the log has the newest)")
    if found.moved_arrivals:
        lines.append(f"{found.moved_arrivals:,} events arrived after the first list that saw them; they arrive just before it")
    if found.labels_not_shown:
        lines.append(f"{found.labels_not_shown:,} labels of items that were not reported as shown do not count")
    if found.undecodable_outcomes:
        lines.append(f"{found.undecodable_outcomes:,} entries of the outcome stream are no outcomes")
    return "\n".join(lines)


def _time_ms(text: str) -> int:
    """ms since the epoch of an ISO 8601 time (UTC unless it says otherwise) or of ms."""
    if text.isdecimal():
        return int(text)
    try:
        time_of = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected ISO 8601 or ms since the epoch, found {text!r}") from None
    return round((time_of if time_of.tzinfo else time_of.replace(tzinfo=UTC)).timestamp() * 1000)


def _positive(text: str) -> float:
    if (number := _number(text)) is None or not number > 0:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, found {text!r}")
    return number


def _rate(text: str) -> float:
    if (number := _number(text)) is None or not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"expected a share above 0 and at most 1, found {text!r}")
    return number


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


command = Command("export what was served and what came of it as a log to train on", _configure, _run)
