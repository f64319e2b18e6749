"""Named tensors of the two graphs and the symbols of their dynamic sizes. Torch-free; used by everything that meets a graph."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

USERS, REQUESTS, CANDIDATES = "U", "R", "C"

_BYTES = {"float32": 4, "int32": 4, "int64": 8}


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor; string sizes are dynamic."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row: every size but the first, which is the number of users, requests or candidates."""
        return tuple(size for size in self.shape[1:] if isinstance(size, int))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return _BYTES[self.dtype] * prod(self.row_shape)


def history_size(event: str) -> str:
    """Symbol of an event type's padded history length."""
    return f"T_{event}"


def row_count(event: str) -> str:
    """Symbol of the number of an event type's jagged rows, of all users together."""
    return f"N_{event}"


OFFSETS = f"{USERS} + 1"
"""Symbol of the size of row offsets."""
