"""The queries of the provisioned Grafana dashboard, as Prometheus gets them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"
DASHBOARD = GRAFANA / "dashboards" / "kunlun.json"


@dataclass(frozen=True)
class Query:
    """One query of a panel, its variables filled in."""

    panel: str
    expression: str


def queries(window: str, path: Path = DASHBOARD) -> Iterator[Query]:
    """Every query, with `window` for `$__rate_interval` and each variable at its first value."""
    board = json.loads(path.read_text(encoding="utf-8"))
    values = {variable["name"]: variable["current"]["value"] for variable in board["templating"]["list"]}
    for panel in panels(board):
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", window)
            for name, value in values.items():
                expression = expression.replace(f"${name}", value)
            yield Query(panel["title"], expression)


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """The panels that show something."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]
