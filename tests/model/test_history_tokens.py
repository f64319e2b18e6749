"""Places of history tokens are counted from the newest event, whatever the padding and however long the history."""

from __future__ import annotations

import torch

from model.layers.tokens import HistoryTokens


def test_places_count_from_the_newest_event() -> None:
    torch.manual_seed(0)
    tokens = HistoryTokens(6, 8, places=4)
    history = torch.randn(1, 5, 6)
    whole = tokens(history, torch.tensor([5]))
    newest_three = tokens(history[:, 2:], torch.tensor([3]))
    torch.testing.assert_close(newest_three, whole[:, 2:])
    padded = tokens(torch.cat([history, torch.randn(1, 3, 6)], dim=1), torch.tensor([5]))
    torch.testing.assert_close(padded[:, :5], whole)
    assert not padded[:, 5:].any()


def test_equal_events_differ_by_place_up_to_the_last_one() -> None:
    torch.manual_seed(0)
    same = torch.randn(1, 1, 6).expand(1, 6, 6)
    found = HistoryTokens(6, 8, places=4)(same, torch.tensor([6]))[0]
    assert not torch.allclose(found[5], found[4])
    torch.testing.assert_close(found[0], found[2])  # places 5 and 3 share the last vector
    without = HistoryTokens(6, 8)(same, torch.tensor([6]))[0]
    torch.testing.assert_close(without[5], without[0])


def test_empty_histories_stay_zero() -> None:
    assert not HistoryTokens(6, 8, places=4)(torch.randn(2, 3, 6), torch.tensor([0, 0])).any()
