"""Files of serialised messages, each after its length in four bytes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def write_messages(path: Path, messages: Iterable[bytes]) -> None:
    """Write `messages` one after the other."""
    with path.open("wb") as file:
        for message in messages:
            file.write(len(message).to_bytes(4, "little") + message)


def read_messages(path: Path) -> list[bytes]:
    """Inverse of `write_messages`."""
    data, at, found = path.read_bytes(), 0, list[bytes]()
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        found.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return found
