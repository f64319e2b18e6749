"""The cost of the training log is measured on a real store, and nothing of it is lost."""

from __future__ import annotations

from loadtest.checks.served_log_cost import served_log_cost


def test_every_list_is_stored_and_small() -> None:
    found = served_log_cost(lists=100, events=20, items=10)
    assert (found["lists"], found["events"], found["items"]) == (100, 20, 10)
    assert found["entry_bytes"] < found["record_bytes"] + 200
