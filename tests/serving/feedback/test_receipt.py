"""Receipts and outcomes: signed, unchanged on their way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from feedback_fixtures import KEY, SIGNER, served

from serving.core.errors import ReceiptRejected
from serving.feedback.outcome import check_positions, decode_outcome, encode_outcome
from serving.feedback.receipt import ReceiptSigner, ShadowPredictions, receipt_identity


def test_a_receipt_carries_exactly_what_was_served() -> None:
    original = served()
    opened = SIGNER.open(SIGNER.sign(original), 1_000_000)
    assert (opened.request_id, opened.model_version, opened.slice_value, opened.rung) == ("r", "v1", "home", 1)
    assert opened.item_keys.tolist() == original.item_keys.tolist()
    assert np.array_equal(opened.predictions, original.predictions)
    assert opened.tasks == original.tasks == ("click", "like")


def test_a_receipt_carries_what_a_canary_would_have_said() -> None:
    shadow = ShadowPredictions("v2", np.linspace(0.1, 0.8, 8, dtype=np.float32).reshape(4, 2))
    opened = SIGNER.open(SIGNER.sign(replace(served(), canary=shadow)), 1_000_000)
    assert opened.canary is not None
    assert opened.canary.version == "v2"
    assert np.array_equal(opened.canary.predictions, shadow.predictions)
    assert np.array_equal(opened.predictions, served().predictions)
    assert len(SIGNER.sign(replace(served(), canary=shadow))) == len(SIGNER.sign(served())) + 4 * 8 + len("v2")


def test_every_changed_byte_and_every_length_is_refused() -> None:
    receipt = SIGNER.sign(served())
    for at in range(len(receipt)):
        changed = receipt[:at] + bytes([receipt[at] ^ 1]) + receipt[at + 1 :]
        with pytest.raises(ReceiptRejected):
            SIGNER.open(changed, 1_000_000)
    for length in range(len(receipt)):
        with pytest.raises(ReceiptRejected) as caught:
            SIGNER.open(receipt[:length], 1_000_000)
        assert caught.value.reason == "truncated"


def test_refusals_say_why() -> None:
    receipt = SIGNER.sign(served())
    with pytest.raises(ReceiptRejected, match="expected a receipt of at most 100 s, found 101 s") as expired:
        SIGNER.open(receipt, 1_000_000 + 101_000)
    assert expired.value.reason == "expired"
    with pytest.raises(ReceiptRejected, match="expected a key id this server knows, found key id 1") as unknown:
        ReceiptSigner({2: KEY}, 2).open(receipt, 1_000_000)
    assert unknown.value.reason == "unknown_key"


def test_keys_rotate_without_losing_receipts() -> None:
    old = ReceiptSigner({1: KEY}, 1).sign(served())
    both = ReceiptSigner({1: KEY, 2: b"fedcba9876543210"}, 2)
    assert both.open(old, 1_000_000).request_id == "r"
    assert both.sign(served())[1] == 2


def test_positions_are_checked() -> None:
    with pytest.raises(Exception, match=r"outcomes\[0\].shown: expected positions below 4, .* found 7"):
        check_positions("outcomes[0].shown", [0, 7], served())
    with pytest.raises(Exception, match="expected distinct positions, found 2 twice"):
        check_positions("outcomes[0].shown", [2, 0, 2], served())


def test_an_outcome_survives_the_stream() -> None:
    receipt = SIGNER.sign(served())
    outcome = decode_outcome(encode_outcome(receipt, [0, 3], [(3, 1)], 77))
    assert (outcome.shown, outcome.labels, outcome.reported_ms) == ((0, 3), ((3, 1),), 77)
    assert outcome.identity == receipt_identity(receipt)
    with pytest.raises(ValueError, match="not an outcome"):
        decode_outcome(b"\x00" * 5)
