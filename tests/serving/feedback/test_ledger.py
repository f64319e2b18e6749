"""What is new in outcomes: each impression and label once, equal to a recomputation from whole lists."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from feedback_fixtures import ISSUED_MS, SIGNER, TASKS, List, offline_sums, reported_lists, served
from hypothesis import given, settings
from hypothesis import strategies as st

from model.metrics.paired_ne import PairedNE
from model.metrics.score_histogram import BINS, score_histogram
from serving.feedback.ledger import Batch, ReceiptKey, Seen, Slices
from serving.feedback.outcome import decode_outcome, encode_outcome
from serving.feedback.receipt import ServedList, ShadowPredictions
from serving.feedback.sums import COUNTS, Kind, SumKey, Sums, add, late_positives, ne_state, paired_ne

HOUR_MS = 3_600_000
HOME = SumKey(Kind.NE, "click", "v1", "home")


class Book:
    """Feeds batches and keeps what a store would: bitmaps and sums."""

    def __init__(self) -> None:
        self.slices = Slices(set())
        self.seen: dict[ReceiptKey, Seen] = {}
        self.buckets: dict[int, Sums] = {}
        self.reported: Sums = {}

    def feed(self, *reports: bytes, first_open: int = 0) -> None:
        stored = {key: Seen.decode(seen.encode()) for key, seen in self.seen.items()}
        batch = Batch(HOUR_MS, stored, self.slices, first_open)
        for report in reports:
            batch.add(decode_outcome(report))
        revision = batch.finish()
        self.seen |= revision.seen
        for minute, sums in revision.buckets.items():
            add(self.buckets.setdefault(minute, {}), sums)
        add(self.reported, revision.reported)

    @property
    def counts(self) -> dict[str, float]:
        return dict(zip(COUNTS, self.reported[SumKey(Kind.COUNTS)].tolist(), strict=True))


def of_kind(sums: Sums, kind: Kind) -> Sums:
    return {key: vector for key, vector in sums.items() if key.kind is kind and vector.any()}


def check_equal(found: Sums, wanted: Sums) -> None:
    assert found.keys() == wanted.keys()
    for key, vector in wanted.items():
        assert found[key] == pytest.approx(vector, rel=1e-9, abs=1e-12)


@settings(max_examples=80, deadline=None)
@given(reported_lists(), st.data())
def test_sums_equal_offline_however_reports_are_split_repeated_and_shuffled(
    reported: tuple[list[List], list[bytes]], data: st.DataObject
) -> None:
    lists, reports = reported
    book = Book()
    while reports:
        size = data.draw(st.integers(1, len(reports)))
        book.feed(*reports[:size])
        reports = reports[size:]
    wanted = {key: vector for key, vector in offline_sums(lists).items() if vector.any()}
    check_equal(of_kind(book.reported, Kind.NE), wanted)
    by_minute: Sums = {}
    for bucket in book.buckets.values():
        add(by_minute, bucket)
    check_equal(of_kind(by_minute, Kind.NE), wanted)
    for key, vector in book.reported.items():
        if key.kind is Kind.SCORES:
            task = TASKS.index(key.task)
            shown = [one.predictions[p, task] for one, own, _ in lists if one.model_version == key.version for p in own]
            assert np.array_equal(vector[:BINS], score_histogram(np.array(shown)))
        if key.kind is Kind.CANARY:
            check_paired(paired_ne(vector), [entry for entry in lists if entry[0].model_version == key.version], key)


def check_paired(found: PairedNE, lists: list[List], key: SumKey) -> None:
    task, wanted = TASKS.index(key.task), PairedNE()
    for one, shown, labels in lists:
        if one.canary is not None and shown:
            y = np.array([(p, task) in labels for p in shown])
            both = one.predictions[shown, task], one.canary.predictions[shown, task]
            wanted += PairedNE.of(*both, y, np.zeros(len(shown), int))
    assert list(vars(found).values()) == pytest.approx(list(vars(wanted).values()), rel=1e-9, abs=1e-9)


def test_a_label_waits_for_its_impression() -> None:
    book, receipt = Book(), SIGNER.sign(served())
    book.feed(encode_outcome(receipt, [], [(2, 0)], ISSUED_MS))
    assert ne_state(book.reported[HOME]).positives == 0
    assert (book.counts["labels"], book.counts["joined_labels"], book.counts["lists"]) == (1, 0, 0)
    book.feed(encode_outcome(receipt, [2], [], ISSUED_MS))
    assert ne_state(book.reported[HOME]).positives == 1
    assert (book.counts["labels"], book.counts["joined_labels"], book.counts["lists"]) == (1, 1, 1)


def test_a_late_positive_revises_the_minute_it_belongs_to() -> None:
    book, receipt = Book(), SIGNER.sign(served())
    book.feed(encode_outcome(receipt, [0, 1], [(1, 0)], ISSUED_MS + 60_000))
    book.feed(encode_outcome(receipt, [], [(0, 0)], ISSUED_MS + 60_001))
    (minute,) = book.buckets
    assert minute == ISSUED_MS // 60_000
    assert ne_state(book.buckets[minute][HOME]).positives == 2
    assert late_positives(book.buckets[minute][HOME]) == 1


def test_what_comes_after_the_window_does_not_count() -> None:
    book, receipt = Book(), SIGNER.sign(served())
    book.feed(encode_outcome(receipt, [0], [], ISSUED_MS + HOUR_MS + 1))
    book.feed(encode_outcome(receipt, [0], [], ISSUED_MS), first_open=ISSUED_MS // 60_000 + 1)
    assert book.counts["expired"] == 2
    assert not book.buckets
    book.feed(encode_outcome(receipt, [0], [], ISSUED_MS + HOUR_MS), first_open=ISSUED_MS // 60_000)
    assert ne_state(book.reported[HOME]).examples == 1


def test_what_cannot_be_of_its_receipt_is_unreadable() -> None:
    book, one = Book(), served()
    endless = replace(one, predictions=np.full((4, 2), np.nan, np.float32))
    shadow = replace(one, canary=ShadowPredictions("v2", np.full((4, 2), np.inf, np.float32)))
    for broken in (endless, shadow, replace(one, tasks=("click",))):
        book.feed(encode_outcome(SIGNER.sign(broken), [0], [], ISSUED_MS))
    book.feed(encode_outcome(SIGNER.sign(one), [0, 4], [], ISSUED_MS))
    book.feed(encode_outcome(SIGNER.sign(one), [], [(4, 0)], ISSUED_MS))
    book.feed(encode_outcome(SIGNER.sign(one), [], [(0, 2)], ISSUED_MS))
    assert (book.counts["unreadable"], book.counts["outcomes"]) == (6, 0)


def test_lists_count_for_the_tasks_they_were_served_for() -> None:
    book, one = Book(), served()
    book.feed(encode_outcome(SIGNER.sign(one), [0, 1], [(0, 0)], ISSUED_MS))
    other = replace(one, request_id="r2", tasks=("like", "click"))
    book.feed(encode_outcome(SIGNER.sign(other), [0, 1], [(0, 0)], ISSUED_MS))
    single = replace(one, request_id="r3", predictions=one.predictions[:, :1], tasks=("buy",))
    book.feed(encode_outcome(SIGNER.sign(single), [0], [(0, 0)], ISSUED_MS))
    assert ne_state(book.reported[HOME]).positives == 1
    assert ne_state(book.reported[HOME._replace(task="like")]).positives == 1
    assert ne_state(book.reported[HOME._replace(task="buy")]).examples == 1


@pytest.mark.parametrize("label_first", [True, False])
@pytest.mark.parametrize("label_s", [1, 61])
@pytest.mark.parametrize("shown_s", [1, 61])
def test_a_label_is_late_by_its_own_report(label_first: bool, label_s: int, shown_s: int) -> None:
    book, receipt = Book(), SIGNER.sign(served())
    shown = encode_outcome(receipt, [0], [], ISSUED_MS + 1000 * shown_s)
    label = encode_outcome(receipt, [], [(0, 0)], ISSUED_MS + 1000 * label_s)
    for report in (label, shown) if label_first else (shown, label):
        book.feed(report)
    assert late_positives(book.reported[HOME]) == (label_s > 60)


def test_callers_cannot_grow_the_number_of_slices() -> None:
    book = Book()

    def report(name: str) -> bytes:
        one = ServedList(f"r{name}", ISSUED_MS, "v1", name, 1, np.arange(1), np.full((1, 1), 0.5, np.float32), ("click",))
        return encode_outcome(SIGNER.sign(one), [0], [], ISSUED_MS)

    book.feed(*(report(f"s{number}") for number in range(80)))
    book.feed(*(report(f"s{number}") for number in range(150)), report("*"), report("other"))
    states = of_kind(book.reported, Kind.NE)
    assert len(states) == 101
    assert ne_state(states[SumKey(Kind.NE, "click", "v1", "other")]).examples == 52
    assert sum(ne_state(vector).examples for vector in states.values()) == 152


@given(st.builds(Seen, st.integers(0, 2**300), st.integers(0, 2**300), st.integers(0, 2**20), st.integers(0, 2**70)))
def test_bitmaps_survive_the_store(seen: Seen) -> None:
    assert Seen.decode(seen.encode()) == seen
