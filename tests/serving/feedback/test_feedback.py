"""Receipts, outcomes and online NE: signed, exactly once, equal to an offline recomputation."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core.errors import ReceiptRejected
from serving.feedback.consumer import OutcomeConsumer
from serving.feedback.online_ne import NEKey, OnlineNE, offline_states
from serving.feedback.outcome import check_positions, decode_outcome, encode_outcome
from serving.feedback.receipt import ReceiptSigner, ServedList, receipt_identity

KEY = b"0123456789abcdef"
TASKS = ("click", "like")
SIGNER = ReceiptSigner({1: KEY}, 1, max_age_s=100)


def served(k: int = 4, seed: int = 0, version: str = "v1", request_id: str = "r") -> ServedList:
    rng = np.random.default_rng(seed)
    predictions = rng.uniform(0.01, 0.99, (k, 2)).astype(np.float32)
    return ServedList(request_id, 1_000_000, version, "home", 1, rng.integers(-(2**60), 2**60, k), predictions)


def test_a_receipt_carries_exactly_what_was_served() -> None:
    original = served()
    opened = SIGNER.open(SIGNER.sign(original), 1_000_000)
    assert (opened.request_id, opened.model_version, opened.slice_value, opened.rung) == ("r", "v1", "home", 1)
    assert opened.item_keys.tolist() == original.item_keys.tolist()
    assert np.array_equal(opened.predictions, original.predictions)


def test_every_changed_byte_and_every_length_is_refused() -> None:
    receipt = SIGNER.sign(served())
    for at in range(len(receipt)):
        changed = receipt[:at] + bytes([receipt[at] ^ 1]) + receipt[at + 1 :]
        with pytest.raises(ReceiptRejected):
            SIGNER.open(changed, 1_000_000)
    for length in range(len(receipt)):
        with pytest.raises(ReceiptRejected):
            SIGNER.open(receipt[:length], 1_000_000)


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


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_online_sums_equal_offline_however_reports_are_split_repeated_and_shuffled(data: st.DataObject) -> None:
    lists = []
    reports: list[bytes] = []
    for number in range(data.draw(st.integers(1, 5))):
        k = data.draw(st.integers(1, 6))
        one = served(k, seed=number, version=data.draw(st.sampled_from(["v1", "v2"])), request_id=f"r{number}")
        shown = data.draw(st.lists(st.integers(0, k - 1), unique=True))
        labels = data.draw(st.lists(st.tuples(st.integers(0, k - 1), st.integers(0, 1)), unique=True))
        lists.append((one, shown, labels))
        receipt = SIGNER.sign(one)
        reports += [encode_outcome(receipt, shown, labels, 1_000_001)] * data.draw(st.integers(1, 3))
        reports += [encode_outcome(receipt, [p], [], 1_000_002) for p in shown]
        reports += [encode_outcome(receipt, [], [pair], 1_000_003) for pair in labels]
    random.Random(data.draw(st.integers(0, 1000))).shuffle(reports)
    online = OnlineNE(TASKS)
    for report in reports:
        online.apply(decode_outcome(report))
    want = {k: v for k, v in offline_states(TASKS, lists).items() if v.examples}
    got = {k: v for k, v in online.states().items() if v.examples}
    assert got.keys() == want.keys()
    for key, state in want.items():
        for name in vars(state):
            assert getattr(got[key], name) == pytest.approx(getattr(state, name), rel=1e-9, abs=1e-12)


def test_a_label_waits_for_its_impression() -> None:
    online, receipt = OnlineNE(TASKS), SIGNER.sign(served())
    online.apply(decode_outcome(encode_outcome(receipt, [], [(2, 0)], 1)))
    assert online.states() == {}
    online.apply(decode_outcome(encode_outcome(receipt, [2], [], 2)))
    assert online.states()[NEKey("click", "v1", "home")].positives == 1


def test_callers_cannot_grow_the_number_of_slices() -> None:
    online = OnlineNE(("click",))
    for number in range(150):
        one = ServedList(f"r{number}", 1, "v1", f"s{number}", 1, np.arange(1), np.full((1, 1), 0.5, np.float32))
        online.apply(decode_outcome(encode_outcome(SIGNER.sign(one), [0], [], 1)))
    star = ServedList("star", 1, "v1", "*", 1, np.arange(1), np.full((1, 1), 0.5, np.float32))
    online.apply(decode_outcome(encode_outcome(SIGNER.sign(star), [0], [], 1)))
    states = online.states()
    assert len(states) == 101
    assert states[NEKey("click", "v1", "other")].examples == 51
    assert sum(s.examples for s in states.values()) == 151


def test_bitmaps_are_bounded_by_the_window_and_by_number() -> None:
    hour = 3_600_000
    online = OnlineNE(("click",), window_ms=hour, max_receipts=10)
    for number in range(30):
        one = ServedList(f"r{number}", number, "v1", "", 1, np.arange(1), np.full((1, 1), 0.5, np.float32))
        online.apply(decode_outcome(encode_outcome(SIGNER.sign(one), [0], [], number)))
    assert online.receipts_tracked == 10
    assert online.forgotten == 20
    late = ServedList("late", 3 * hour, "v1", "", 1, np.arange(1), np.full((1, 1), 0.5, np.float32))
    online.apply(decode_outcome(encode_outcome(SIGNER.sign(late), [0], [], 3 * hour)))
    assert online.receipts_tracked == 1


def test_the_consumer_reads_from_the_start_and_outlives_a_restarted_store(tmp_path) -> None:
    from store_fixtures import SCHEMA

    from serving.store.open import open_store

    async def scenario() -> None:
        store = await open_store("embedded", SCHEMA, data_dir=tmp_path)
        receipt = ReceiptSigner({1: KEY}, 1).sign(
            ServedList("r", 1_000_000, "v1", "", 1, np.arange(3), np.full((3, 1), 0.5, np.float32))
        )
        await store.append_outcomes([encode_outcome(receipt, [0], [], 1_000_000), b"junk"])
        online = OnlineNE(("click",))
        consumer = OutcomeConsumer(store, online)
        task = asyncio.create_task(consumer.run())
        await store.append_outcomes([encode_outcome(receipt, [0, 1], [(1, 0)], 1_000_000)])
        async with asyncio.timeout(10):
            while consumer.applied < 2:
                await asyncio.sleep(0.005)
        task.cancel()
        await store.close()
        assert consumer.unreadable == 1
        state = online.states()[NEKey("click", "v1", "")]
        assert (state.examples, state.positives) == (2, 1)

    asyncio.run(scenario())
