"""Delimited text files (CSV and its kin), plain or gzip: rows with their line numbers, columns by name."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from model.config import ConfigError
from model.data.rejects import Tally


@dataclass(frozen=True)
class Delimited:
    """A file and how to read it. `header`: names of the columns of a file that does not begin with them."""

    path: Path
    delimiter: str = ","
    header: tuple[str, ...] = ()

    def rows(self, columns: Sequence[str], rejected: Tally) -> Iterator[tuple[int, list[str]]]:
        """Line number and the cells of `columns` for every row; rows of another width are counted as rejected.

        Raises `ConfigError` naming a column that the file does not have.
        """
        with self._opened() as file:
            lines = self._split(file)
            number, names = (0, list(self.header)) if self.header else next(lines, (0, []))
            missing = [c for c in columns if c not in names]
            if missing:
                raise ConfigError(
                    f"{self.path}: column {missing[0]!r}: expected in the header ({', '.join(names) or 'empty'}), found none; "
                    "name the columns with --columns, or with --header for a file that has no header line"
                )
            places = [names.index(c) for c in columns]
            for number, cells in lines:
                if not cells:
                    continue
                if len(cells) != len(names):
                    rejected.add(f"expected {len(names)} columns, found {len(cells)}", f"line {number}")
                    continue
                yield number, [cells[p] for p in places]

    def names(self) -> list[str]:
        """The columns there are."""
        if self.header:
            return list(self.header)
        with self._opened() as file:
            return next(self._split(file), (0, []))[1]

    def _split(self, file: IO[str]) -> Iterator[tuple[int, list[str]]]:
        """Cells per line; quotes as in CSV, but for delimiters of several characters, which files with quotes do not have."""
        try:
            if len(self.delimiter) == 1:
                reader = csv.reader(file, delimiter=self.delimiter)
                for cells in reader:
                    yield reader.line_num, [c.strip() for c in cells]
            else:
                for number, line in enumerate(file, start=1):
                    yield number, [c.strip() for c in line.rstrip("\r\n").split(self.delimiter)] if line.strip() else []
        except UnicodeDecodeError as error:
            raise ConfigError(f"{self.path}: expected UTF-8, found byte {error.object[error.start]:#x}") from error
        except csv.Error as error:
            raise ConfigError(f"{self.path}: not valid delimited text: {error}") from error

    @contextmanager
    def _opened(self) -> Iterator[IO[str]]:
        try:
            with self.path.open("rb") as raw:
                is_zipped = raw.read(2) == b"\x1f\x8b"
                raw.seek(0)
                yield io.TextIOWrapper(gzip.GzipFile(fileobj=raw) if is_zipped else raw, encoding="utf-8-sig", newline="")
        except (OSError, EOFError, zlib.error) as error:
            raise ConfigError(f"{self.path}: cannot be read: {error}") from error
