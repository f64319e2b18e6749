"""`kunlun prepare`: turn a log of another format, or the synthetic generator, into a canonical log.

Prints what was taken, what was rejected and why, and for synthetic data the Bayes figures. The schema
defaults to the one shipped for the source.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from kunlun.cli import Command, UsageError
from model.cli.console import add_json_flag, progress_bar, report
from model.config import PRESETS, ConfigError

DEFAULT_SCHEMA = {"metarank": PRESETS / "ranklens.schema.yaml", "synthetic": PRESETS / "synthetic.schema.yaml"}


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", choices=sorted(DEFAULT_SCHEMA), default="synthetic", help="what to convert")
    parser.add_argument("--input", type=Path, help="log file of the source (JSON lines, plain or gzip); not for synthetic")
    parser.add_argument("--schema", type=Path, help="schema (YAML) for metarank; default: the one shipped for RankLens")
    parser.add_argument("--output", type=Path, required=True, help="directory of the canonical log")
    parser.add_argument("--seed", type=int, default=0, help="seed of the synthetic generator")
    parser.add_argument("--requests", type=int, help="number of synthetic requests")
    parser.add_argument("--users", type=int, help="number of synthetic users; more requests of each make longer histories")
    parser.add_argument("--items", type=int, help="number of synthetic items")
    parser.add_argument("--history-cap", type=int, help="longest synthetic history a model sees (default: 32 clicks)")
    add_json_flag(parser)


def _run(arguments: argparse.Namespace) -> int:
    began = time.perf_counter()
    try:
        info = _metarank(arguments) if arguments.source == "metarank" else _synthetic(arguments)
    except ConfigError as error:
        raise UsageError(str(error)) from error
    seconds = round(time.perf_counter() - began, 2)
    report(arguments, {"output": str(arguments.output), "seconds": seconds, **info}, _text(info, arguments.output, seconds))
    return 0


def _metarank(arguments: argparse.Namespace) -> dict[str, Any]:
    from model.data.metarank import convert_metarank
    from model.schema import load_schema

    if arguments.input is None:
        raise UsageError("--input: expected a log file for --source metarank, found none")
    for flag in ("requests", "users", "items", "history_cap"):
        if getattr(arguments, flag) is not None:
            raise UsageError(f"--{flag.replace('_', '-')}: only for --source synthetic")
    schema = load_schema(arguments.schema or DEFAULT_SCHEMA["metarank"])
    with progress_bar(arguments.json) as bar:
        task = bar.add_task(f"reading {arguments.input.name}", total=None, note="bytes")
        return convert_metarank(
            arguments.input, arguments.output, schema, lambda done, total: bar.update(task, completed=done, total=total)
        )


def _synthetic(arguments: argparse.Namespace) -> dict[str, Any]:
    from model.data.synthetic import generate, synthetic_schema
    from model.data.synthetic_world import SyntheticConfig

    if arguments.input is not None or arguments.schema is not None:
        raise UsageError("--input and --schema: only for --source metarank; the generator has its own schema")
    if arguments.seed < 0:
        raise UsageError(f"--seed: expected at least 0, found {arguments.seed}")
    for flag, least in (("requests", 1), ("users", 1), ("items", SyntheticConfig.max_shown), ("history_cap", 2)):
        found = getattr(arguments, flag)
        if found is not None and found < least:
            raise UsageError(f"--{flag.replace('_', '-')}: expected at least {least}, found {found}")
    given = {name: getattr(arguments, name) for name in ("requests", "users", "items")}
    sizes = {name: size for name, size in given.items() if size is not None}
    config = SyntheticConfig(seed=arguments.seed, **sizes)
    with progress_bar(arguments.json) as bar:
        task = bar.add_task("simulating requests", total=config.requests, note="")
        schema = synthetic_schema(arguments.history_cap)
        return generate(config, arguments.output, lambda done: bar.update(task, completed=done), schema)


def _text(info: dict[str, Any], output: Path, seconds: float) -> str:
    counts = info["counts"]
    lines = [
        f"{counts['requests']:,} requests with {counts['impressions']:,} shown items, "
        f"{counts['users']:,} users, {counts['items']:,} items ({seconds:.1f} s) → {output}",
        "events: " + ", ".join(f"{n:,} {name}" for name, n in counts["events"].items()),
        "positives: "
        + ", ".join(f"{n:,} {name} ({n / max(1, counts['impressions']):.2%})" for name, n in counts["positives"].items()),
    ]
    rejected = info["rejected"]
    lines.append(f"rejected rows: {sum(r['rows'] for r in rejected.values()):,}")
    for title, group in (("rejected", rejected), ("note", info["notes"])):
        lines += [f"  {title}: {v['rows']:,} × {reason} (first: {', '.join(v['first'])})" for reason, v in group.items()]
    for task, figures in info.get("bayes", {}).items():
        lines.append(
            f"{task}: Bayes NE {figures['ne_bayes']:.4f}, without order {figures['ne_no_order']:.4f}, "
            f"without history {figures['ne_no_history']:.4f} (knowing positions {figures['ne_with_position']:.4f})"
        )
    return "\n".join(lines)


command = Command("convert a log, or generate a synthetic one, into the canonical form", _configure, _run)
