"""docs/ablations.md from the last line of `make ablations`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loadtest.ablations.study import REQUEST_SIZES

PAGE = Path("docs/ablations.md")
FAST = (
    "",
    "One short pass over a small log leaves every model far from the truth, so a row says how fast its variant learns",
    "from little data; intervals are over users alone, and what a seed changes is not in them.",
)


def page(line: dict[str, Any]) -> str:
    """The whole page."""
    rows = line["rows"]
    exact_bound = any("over_bayes_percent" in row for row in rows)
    head = ["variant", "NE", "NE against default, %"]
    head += ["over Bayes, %"] if exact_bound else []
    head += ["MFLOP per user", "per candidate", *(f"request of {n}" for n in REQUEST_SIZES)]
    head += ["state, bytes", "training", "serving", "paper"]
    table = [f"| {' | '.join(head)} |", "|--" * len(head) + "|"]
    table += [f"| {' | '.join(_cells(row, exact_bound))} |" for row in rows]
    seeds = f"{line['seeds']} seed{'s' * (line['seeds'] > 1)}"
    command = f"make ablations{' FAST=1' * line['fast']}{' DATA=' + line['data'] if line['data'] != 'synthetic' else ''}"
    lengths = ", ".join(f"{length} {event}s" for event, length in line["mean_history"].items())
    return "\n".join(
        [
            "# Ablations",
            "",
            f"Written by `{command} PAGE=1`: {line['data']} data, {line['requests']:,} requests,",
            f"model `{json.dumps(line['model'])}`, {seeds}.",
            "Every variant has the same data, order, steps and seeds. NE: position-free, held-out part; its change is paired",
            "over users (and seeds), with the 95 % interval, positive: worse than the default. FLOPs: histories of mean",
            f"held-out length ({lengths}), every state encoded anew. Training: examples/s of forward and backward. Serving:",
            f"requests/s of one user at the history caps with 100 candidates in OpenVINO ({line['precision']}). Both on one",
            "thread, relative to the default, variants in turn. Paper: arXiv:2602.10016 as its readers report it, at other",
            "sizes and on other hardware.",
            *(FAST if line["fast"] else ()),
            "",
            *table,
            "",
            *[f"* **{row['name']}**: {row['question']}" for row in rows],
            "",
        ]
    )


def _cells(row: dict[str, Any], exact_bound: bool) -> list[str]:
    change, mflop, ratio = row["ne_change_percent"], row["mflop"], row["speed_ratio"]
    cells = [row["name"], f"{row['ne']:.4f}", f"{change['value']:+.2f} [{change['low']:+.2f}, {change['high']:+.2f}]"]
    cells += [f"{row['over_bayes_percent']:.2f}"] if exact_bound else []
    cells += [f"{mflop['user']:.2f}", f"{mflop['candidate']:.3f}", *(f"{mflop[f'request_{n}']:.1f}" for n in REQUEST_SIZES)]
    return [
        *cells,
        f"{row['state_bytes']:,}",
        f"×{ratio['train_examples_per_s']:.2f}",
        f"×{ratio['requests_per_s']:.2f}",
        row["paper"],
    ]
