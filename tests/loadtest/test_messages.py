"""Files of serialised messages come back whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadtest.openloop.messages import read_messages, write_messages


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.binary(max_size=600), max_size=8))
def test_what_was_written_is_read(tmp_path: Path, messages: list[bytes]) -> None:
    file = tmp_path / "messages.bin"
    write_messages(file, messages)
    assert read_messages(file) == messages


def test_a_file_cut_inside_a_message_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    file, messages = tmp_path / "messages.bin", [b"first", b"", b"third"]
    write_messages(file, messages)
    data = file.read_bytes()
    ends = {4 + 5: 1, 4 + 5 + 4: 2}  # where whole messages end, and how many they are
    for cut in range(1, len(data)):
        file.write_bytes(data[:cut])
        if cut in ends:
            assert read_messages(file) == messages[: ends[cut]]
            continue
        number = sum(end < cut for end in ends)
        with pytest.raises(ValueError, match=rf"expected whole messages, found the end of the file inside message {number};"):
            read_messages(file)
