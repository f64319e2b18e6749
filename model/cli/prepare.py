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

DEFAULT_SCHEMA = {
    "metarank": PRESETS / "ranklens.schema.yaml",
    "ratings": PRESETS / "ratings.schema.yaml",
    "synthetic": PRESETS / "synthetic.schema.yaml",
}
OWN_FLAGS = {
    "synthetic": ("requests", "users", "items", "shards", "history_cap"),
    "ratings": ("like_from", "columns", "delimiter", "header", "time_unit", "negatives", "item_features", "user_features"),
}
"""Flags of one source alone."""


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", choices=sorted(DEFAULT_SCHEMA), default="synthetic", help="what to convert")
    parser.add_argument("--input", type=Path, help="file of the source, plain or gzip: metarank JSON lines, ratings CSV")
    parser.add_argument("--schema", type=Path, help="schema (YAML); default: the one shipped for the source")
    parser.add_argument("--output", type=Path, required=True, help="directory of the canonical log")
    parser.add_argument("--seed", type=int, default=0, help="seed of the synthetic generator, and of sampled negatives")
    parser.add_argument("--requests", type=int, help="number of synthetic requests")
    parser.add_argument("--users", type=int, help="number of synthetic users; more requests of each make longer histories")
    parser.add_argument("--items", type=int, help="number of synthetic items")
    parser.add_argument(
        "--shards", type=int, help="groups of synthetic users, simulated in parallel (another log than with one; default: 1)"
    )
    parser.add_argument("--history-cap", type=int, help="longest synthetic history a model sees (default: 32 clicks)")
    ratings = parser.add_argument_group("ratings", "CSV of user, item, rating and time, as in MovieLens")
    ratings.add_argument("--like-from", type=float, help="lowest rating that counts as liked (default: 4)")
    ratings.add_argument("--columns", metavar="K=NAME,…", help="header names, such as user=uid,item=isbn,rating=stars,time=at")
    ratings.add_argument("--delimiter", help="between columns (default: a comma); such as '::' or '\\t'")
    ratings.add_argument("--header", metavar="NAME,…", help="column names of a file without a header line")
    ratings.add_argument("--time-unit", choices=("s", "ms", "iso"), help="of times (default: s, since the epoch)")
    ratings.add_argument("--negatives", type=int, help="unrated items shown beside every liked one, label 0 (default: 0)")
    ratings.add_argument(
        "--item-features", type=Path, help="CSV of items: the id and columns named as in the schema; lists a|b"
    )
    ratings.add_argument("--user-features", type=Path, help="CSV of users, likewise")
    add_json_flag(parser)


def _run(arguments: argparse.Namespace) -> int:
    began = time.perf_counter()
    try:
        _check_flags(arguments)
        info = {"metarank": _metarank, "ratings": _ratings, "synthetic": _synthetic}[arguments.source](arguments)
    except ConfigError as error:
        raise UsageError(str(error)) from error
    seconds = round(time.perf_counter() - began, 2)
    report(arguments, {"output": str(arguments.output), "seconds": seconds, **info}, _text(info, arguments.output, seconds))
    return 0


def _metarank(arguments: argparse.Namespace) -> dict[str, Any]:
    from model.data.metarank import convert_metarank
    from model.schema import load_schema

    schema = load_schema(arguments.schema or DEFAULT_SCHEMA["metarank"])
    with progress_bar(arguments.json) as bar:
        task = bar.add_task(f"reading {arguments.input.name}", total=None, note="bytes")
        return convert_metarank(
            arguments.input, arguments.output, schema, lambda done, total: bar.update(task, completed=done, total=total)
        )


def _ratings(arguments: argparse.Namespace) -> dict[str, Any]:
    from model.data.cells import TimeUnit
    from model.data.delimited import Delimited
    from model.data.ratings import ALIASES, RatingsConfig, convert_ratings
    from model.schema import load_schema

    pairs = [part.partition("=") for part in (arguments.columns or "").split(",") if part]
    for kind, _, name in pairs:
        if kind not in ALIASES or not name:
            raise UsageError(f"--columns: expected {', '.join(f'{k}=NAME' for k in ALIASES)}, found {kind!r}")
    if arguments.negatives is not None and arguments.negatives < 0:
        raise UsageError(f"--negatives: expected at least 0, found {arguments.negatives}")
    delimiter = (arguments.delimiter or ",").replace("\\t", "\t")
    config = RatingsConfig(
        like_from=4.0 if arguments.like_from is None else arguments.like_from,
        time_unit=TimeUnit(arguments.time_unit or "s"),
        negatives=arguments.negatives or 0,
        seed=arguments.seed,
        columns={kind: name for kind, _, name in pairs},
    )
    header = tuple(name for name in (arguments.header or "").split(",") if name)
    items, users = (
        None if path is None else Delimited(path, delimiter) for path in (arguments.item_features, arguments.user_features)
    )
    with progress_bar(arguments.json) as bar:
        task = bar.add_task(f"reading {arguments.input.name}", total=None, note="ratings")
        return convert_ratings(
            Delimited(arguments.input, delimiter, header),
            arguments.output,
            load_schema(arguments.schema or DEFAULT_SCHEMA["ratings"]),
            config,
            items=items,
            users=users,
            progress=lambda rows: bar.update(task, completed=rows),
        )


def _check_flags(arguments: argparse.Namespace) -> None:
    """Raise `UsageError` for a flag of another source, for an input that is missing and for a seed that is none."""
    if arguments.source == "synthetic":
        if arguments.input is not None or arguments.schema is not None:
            raise UsageError("--input and --schema: not for --source synthetic; the generator has its own schema")
    elif arguments.input is None:
        raise UsageError(f"--input: expected a log file for --source {arguments.source}, found none")
    for source, flags in OWN_FLAGS.items():
        for flag in flags:
            if source != arguments.source and getattr(arguments, flag) is not None:
                raise UsageError(f"--{flag.replace('_', '-')}: only for --source {source}")
    if arguments.seed < 0:
        raise UsageError(f"--seed: expected at least 0, found {arguments.seed}")


def _synthetic(arguments: argparse.Namespace) -> dict[str, Any]:
    from model.data.synthetic import generate, synthetic_schema
    from model.data.synthetic_world import SyntheticConfig

    for flag, least in (("requests", 1), ("users", 1), ("shards", 1), ("items", SyntheticConfig.max_shown), ("history_cap", 2)):
        found = getattr(arguments, flag)
        if found is not None and found < least:
            raise UsageError(f"--{flag.replace('_', '-')}: expected at least {least}, found {found}")
    given = {name: getattr(arguments, name) for name in ("requests", "users", "items", "shards")}
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
