"""Files of serialised messages, each after its length in four bytes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

LENGTH_BYTES = 4


def write_messages(path: Path, messages: Iterable[bytes]) -> None:
    """Write `messages` one after the other."""
    with path.open("wb") as file:
        for message in messages:
            file.write(len(message).to_bytes(LENGTH_BYTES, "little") + message)


def read_messages(path: Path) -> list[bytes]:
    """Inverse of `write_messages`; raises `ValueError` when the file ends inside a message."""
    data, at, found = path.read_bytes(), 0, list[bytes]()
    while at < len(data):
        end = at + LENGTH_BYTES + int.from_bytes(data[at : at + LENGTH_BYTES], "little")
        if end > len(data):
            raise ValueError(
                f"{path}: expected whole messages, found the end of the file inside message {len(found)}; write the file again"
            )
        found.append(data[at + LENGTH_BYTES : end])
        at = end
    return found
