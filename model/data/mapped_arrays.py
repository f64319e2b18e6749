"""Arrays in files of one folder: appended to while a log is read, then memory-mapped. No headers: who reads knows the types."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


class Texts(Sequence[str]):
    """Texts in one array of UTF-8 bytes; text i is bytes[offsets[i]:offsets[i + 1]]."""

    def __init__(self, text: NDArray[np.uint8], lengths: NDArray[np.int64]) -> None:
        self._text, self._offsets = text, bounds_of(lengths)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return self._text[self._offsets[place] : self._offsets[place + 1]].tobytes().decode()


class MappedArrays:
    """Files of one folder, each one array; appended to, or mapped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, BinaryIO] = {}

    def append(self, name: str, array: NDArray[Any]) -> None:
        """Write an array behind what the file has."""
        if name not in self._open:
            self._open[name] = (self.folder / name).open("wb")
        self._open[name].write(np.ascontiguousarray(array).tobytes())

    def append_texts(self, name: str, column: pa.Array) -> None:
        """Texts of a column, behind those in ``<name>`` (bytes) and ``<name>.length``."""
        text = pc.cast(column, pa.large_binary())
        self.append(f"{name}.length", pc.binary_length(text).to_numpy(zero_copy_only=False).astype(np.int64))
        self.append(name, np.frombuffer(b"".join(text.to_pylist()), np.uint8))

    def texts(self, name: str) -> Texts:
        """What `append_texts` wrote."""
        return Texts(self.mapped(name, np.uint8), self.mapped(f"{name}.length", np.int64))

    def close(self) -> None:
        """End appending."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def mapped(self, name: str, dtype: Any, columns: int | None = None, mode: str = "r") -> NDArray[Any]:
        """The array in a file; an absent or empty one has no rows."""
        kind, file = np.dtype(dtype), self.folder / name
        shape = (-1,) if columns is None else (-1, columns)
        if not kind.itemsize or not file.is_file() or not file.stat().st_size:
            return np.empty(0 if columns is None else (0, columns), kind)
        return np.memmap(file, kind, mode).reshape(shape).view(np.ndarray)  # type: ignore[call-overload, no-any-return]

    def created(self, name: str, dtype: Any, rows: int) -> NDArray[Any]:
        """A new mapped array to write to."""
        return np.memmap(self.folder / name, dtype, "w+", shape=(rows,)) if rows else np.empty(0, dtype)


def bounds_of(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Offsets [N + 1] of parts of the given sizes [N]."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
