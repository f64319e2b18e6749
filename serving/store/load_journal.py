"""How far a bulk load has come, so that an interrupted one can go on: one small file beside the table that is loaded.

Rows are counted when the store has acknowledged them. A journal is believed for the same table (size and time of
change) and store only; loading rows again is harmless, skipping rows of another table would not be.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any


class LoadJournal:
    """Progress of loading one table into one store."""

    def __init__(self, table: Path, store: str) -> None:
        self._path = table.with_name(f".{table.name}.loading.json")
        stat = table.stat()
        self._of: dict[str, Any] = {"bytes": stat.st_size, "changed_ns": stat.st_mtime_ns, "store": store}
        self._rows = 0

    def resume(self) -> int:
        """Rows that an earlier load of this table into this store has acknowledged; counting goes on from there."""
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self._path.read_text(encoding="utf-8"))
            if isinstance(found, dict) and {key: found.get(key) for key in self._of} == self._of:
                self._rows = int(found["rows"])
        return self._rows

    def advance(self, rows: int) -> None:
        """So many more rows are done."""
        self._rows += rows
        aside = self._path.with_suffix(".tmp")
        with contextlib.suppress(OSError):  # a directory that cannot be written costs the resuming, not the load
            aside.write_text(json.dumps(self._of | {"rows": self._rows}), encoding="utf-8")
            aside.replace(self._path)

    def done(self) -> None:
        """The whole table is loaded."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
