"""`kunlun rank`: one ranking request from the command line, as a table or as JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys

from kunlun.cli import Command, UsageError
from kunlun.client import Client, KunlunError, RankReply
from kunlun.values import Value

_WHOLE_NUMBER = re.compile(r"-?[0-9]+")


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", default="127.0.0.1:50051", metavar="HOST:PORT", help="default: 127.0.0.1:50051")
    parser.add_argument("--user", required=True, help="user id")
    parser.add_argument(
        "--items", required=True, metavar="A,B,…", help="candidates; numbers are numeric ids unless --string-ids"
    )
    parser.add_argument("--string-ids", action="store_true", help="send ids as strings even if all are numbers")
    parser.add_argument(
        "--context",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="context feature (repeatable); quote a VALUE that is a string of digits: 'zip=\"12345\"'",
    )
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME=V,V,…",
        help="request column: one number per item (repeatable)",
    )
    parser.add_argument("--top-k", type=int, default=0, help="return the best K only")
    parser.add_argument(
        "--priority", choices=("low", "normal", "high"), default="normal", help="under overload (default: normal)"
    )
    parser.add_argument("--timings", action="store_true", help="show where the time went")
    parser.add_argument("--timeout-s", type=float, default=5.0, help="deadline (default: 5)")
    parser.add_argument("--json", action="store_true", help="print the reply as one JSON object")


def _run(arguments: argparse.Namespace) -> int:
    items = _items(arguments.items, as_strings=arguments.string_ids)
    if not 0 <= arguments.top_k < 2**32:
        raise UsageError(f"--top-k: expected 0 (all) to {2**32 - 1}, found {arguments.top_k}")
    with Client(arguments.server, timeout_s=arguments.timeout_s) as client:
        try:
            reply = client.rank(
                arguments.user,
                items,
                context=dict(_assignment(text) for text in arguments.context),
                columns=dict(_numbers(text) for text in arguments.column),
                top_k=arguments.top_k,
                include_timings=arguments.timings,
                priority=arguments.priority,
            )
        except KunlunError as error:
            print(f"kunlun rank: {error}", file=sys.stderr)
            return 1
    print(json.dumps(_as_json(reply)) if arguments.json else table(reply))
    return 0


def _items(text: str, *, as_strings: bool) -> list[str] | list[int]:
    items = [item.strip() for item in text.split(",") if item.strip()]
    if as_strings or not all(_WHOLE_NUMBER.fullmatch(item) for item in items):
        return items
    for item in items:
        if len(item) > 20 or not _fits(int(item)):
            raise UsageError(f"--items: expected numbers of 64 bits (or --string-ids), found {item!r}")
    return [int(item) for item in items]


def _fits(number: int) -> bool:
    return -(2**63) <= number < 2**63


def _assignment(text: str) -> tuple[str, Value]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--context: expected NAME=VALUE, found {text!r}")
    if len(value) > 1 and value[0] == value[-1] == '"':
        return name, value[1:-1]
    if _WHOLE_NUMBER.fullmatch(value) and len(value) <= 20 and _fits(int(value)):
        return name, int(value)
    try:
        return name, float(value)
    except ValueError:
        return name, value


def _numbers(text: str) -> tuple[str, list[float]]:
    name, _, values = text.partition("=")
    try:
        return name, [float(value) for value in values.split(",")]
    except ValueError:
        raise UsageError(f"--column: expected NAME=NUMBER,NUMBER,…, found {text!r}") from None


def _as_json(reply: RankReply) -> dict[str, object]:
    return dataclasses.asdict(reply) | {"receipt": reply.receipt.hex()}


def table(reply: RankReply) -> str:
    """The reply for people: one line per item, then how it came about."""
    heads = ["rank", "item", *(f"p_{task}" for task in reply.scores), "value", "was"]
    rows = [
        [str(place), str(item), *(f"{scores[place - 1]:.4f}" for scores in reply.scores.values()), f"{value:.4f}", f"#{at + 1}"]
        for place, (item, value, at) in enumerate(zip(reply.items, reply.values, reply.order, strict=True), start=1)
    ]
    widths = [max(len(line[at]) for line in [heads, *rows]) for at in range(len(heads))]
    lines = [
        "  ".join(
            cell.ljust(width) if head == "item" else cell.rjust(width)
            for head, cell, width in zip(heads, line, widths, strict=True)
        )
        for line in [heads, *rows]
    ]
    return "\n".join([*lines, "", *_footer(reply)])


def _footer(reply: RankReply) -> list[str]:
    newest = f"newest {reply.newest_event_age_ms / 1000:.0f} s ago" if reply.newest_event_age_ms >= 0 else "no history"
    state = "cached" if reply.user_state_cached else "encoded now"
    lines = [
        f"{reply.model} {reply.version} · {reply.history_length} events of history, {newest} · user state {state}",
    ]
    if reply.rung != "FULL":
        lines.append(f"degraded: {reply.rung} ({reply.rung_reason})")
    if reply.unknown_user or reply.unknown_items:
        user = "unknown user" if reply.unknown_user else "known user"
        lines.append(f"{user}, {reply.unknown_items} of the candidates unknown to the model")
    if reply.timings is not None:
        lines.append(" · ".join(f"{name.removesuffix('_us')} {us / 1000:.2f} ms" for name, us in reply.timings.items()))
    return lines


command = Command("rank items for a user on a running server", _configure, _run)
