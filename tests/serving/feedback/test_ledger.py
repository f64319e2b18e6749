"""What is new in outcomes: each impression and label once, equal to a recomputation from whole lists."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from feedback_fixtures import ISSUED_MS, SIGNER, TASKS, List, reported_lists, served
from hypothesis import given, settings
from hypothesis import strategies as st

from model.metrics.paired_ne import PairedNE
from model.metrics.score_histogram import BINS, score_histogram
from serving.feedback.ledger import Batch, ReceiptKey, Seen, Slices, offline_sums
from serving.feedback.outcome import decode_outcome, encode_outcome
from serving.feedback.receipt import ServedList
from serving.feedback.sums import COUNTS, Kind, SumKey, Sums, add, late_positives, ne_state, paired_ne

HOUR_MS = 3_600_000
HOME = SumKey(Kind.NE, "click", "v1", "home")


class Book:
    """Feeds batches and keeps what a store would: bitmaps and sums."""

    def __init__(self, tasks: Sequence[str] = TASKS) -> None:
        self.tasks, self.slices = tasks, Slices(set())
        self.seen: dict[ReceiptKey, Seen] = {}
        self.buckets: dict[int, Sums] = {}
        self.reported: Sums = {}

    def feed(self, *reports: bytes, first_open: int = 0) -> None:
        stored = {key: Seen.decode(seen.encode()) for key, seen in self.seen.items()}
        batch = Batch(self.tasks, HOUR_MS, stored, self.slices, first_open)
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
    wanted = {key: vector for key, vector in offline_sums(TASKS, lists).items() if vector.any()}
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


def test_a_list_of_other_tasks_and_a_position_that_was_not_served_are_unreadable() -> None:
    book = Book(("click",))
    book.feed(encode_outcome(SIGNER.sign(served()), [0], [], ISSUED_MS))
    assert book.counts["unreadable"] == 1
    book = Book()
    book.feed(encode_outcome(SIGNER.sign(served()), [0, 4], [], ISSUED_MS))
    book.feed(encode_outcome(SIGNER.sign(served()), [], [(4, 0)], ISSUED_MS))
    assert (book.counts["unreadable"], book.counts["outcomes"]) == (2, 0)


def test_callers_cannot_grow_the_number_of_slices() -> None:
    book = Book(("click",))

    def report(name: str) -> bytes:
        one = ServedList(f"r{name}", ISSUED_MS, "v1", name, 1, np.arange(1), np.full((1, 1), 0.5, np.float32))
        return encode_outcome(SIGNER.sign(one), [0], [], ISSUED_MS)

    book.feed(*(report(f"s{number}") for number in range(80)))
    book.feed(*(report(f"s{number}") for number in range(150)), report("*"), report("other"))
    states = of_kind(book.reported, Kind.NE)
    assert len(states) == 101
    assert ne_state(states[SumKey(Kind.NE, "click", "v1", "other")]).examples == 52
    assert sum(ne_state(vector).examples for vector in states.values()) == 152


@given(st.builds(Seen, st.integers(0, 2**300), st.integers(0, 2**300), st.integers(0, 2**20)))
def test_bitmaps_survive_the_store(seen: Seen) -> None:
    assert Seen.decode(seen.encode()) == seen
