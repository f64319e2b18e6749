"""Forming batches: every row exactly once or dropped, urgent first, within budget, background last."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core.batching import Batch, Group, Limits, Reason, Work, WorkQueue

SCORE, ENCODE = "score_candidates", "encode_user"
LIMITS = {SCORE: Limits(rows=64, pieces=4), ENCODE: Limits(rows=4, pieces=4)}


def score(rows: int, deadline: float = 10.0, cost: float = 1.0) -> Work:
    return Work(Group(SCORE), rows, cost, 0.0, deadline)


def encode(level: int = 0, deadline: float = 10.0, *, background: bool = False) -> Work:
    return Work(Group(ENCODE, level), 1, 10.0, 0.0, deadline, background=background)


def drained(queue: WorkQueue, now: float = 0.0) -> tuple[list[Batch], list[Work]]:
    batches, dropped = [], []
    while True:
        batch, gone = queue.form(now)
        dropped += gone
        if batch is None:
            return batches, dropped
        batches.append(batch)


works = st.builds(
    Work,
    group=st.sampled_from([Group(SCORE), Group(ENCODE, 0), Group(ENCODE, 1)]),
    rows=st.integers(1, 300),
    flops_per_row=st.floats(0.1, 10),
    flops_fixed=st.floats(0, 5),
    deadline=st.floats(-1, 5),
    background=st.booleans(),
    cancelled=st.booleans(),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(works, max_size=30), st.floats(1, 500), st.integers(0, 30))
def test_every_row_is_dispatched_exactly_once_or_dropped(pushed: list[Work], budget: float, promoted: int) -> None:
    queue = WorkQueue(LIMITS, budget)
    for work in pushed:
        if work.group.graph == ENCODE:
            work.rows = 1
        queue.push(work)
        if work.cancelled:
            queue.cancel(work)
    for work in pushed[:promoted]:
        queue.promote(work, 1.0)
    batches, dropped = drained(queue)
    rows: dict[int, list[int]] = {id(w): [] for w in pushed}
    for batch in batches:
        assert 1 <= len(batch.pieces) <= LIMITS[batch.group.graph].pieces
        assert batch.rows <= LIMITS[batch.group.graph].rows
        for piece in batch.pieces:
            assert piece.work.group == batch.group
            rows[id(piece.work)] += range(piece.start, piece.stop)
    for work in pushed:
        if work.cancelled or work.deadline <= 0:
            assert rows[id(work)] == []
            assert (work in dropped) is not work.cancelled
        else:
            assert rows[id(work)] == list(range(work.rows))
            assert work not in dropped
    assert (len(queue), set(queue.foreground_flops.values())) == (0, {0.0})


@settings(max_examples=100, deadline=None)
@given(st.permutations([score(5, deadline=d) for d in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)]))
def test_order_of_arrival_does_not_change_who_goes_first(pushed: list[Work]) -> None:
    queue = WorkQueue(LIMITS, 10.0)
    for work in pushed:
        work.taken = 0
        queue.push(work)
    batches, _ = drained(queue)
    assert [p.work.deadline for b in batches for p in b.pieces] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_a_batch_stays_within_the_budget() -> None:
    queue = WorkQueue(LIMITS, 20.0)
    for _ in range(5):
        queue.push(score(9))
    batches, _ = drained(queue)
    assert [b.rows for b in batches] == [18, 18, 9]
    assert [b.reason for b in batches] == [Reason.FULL, Reason.FULL, Reason.IDLE]


def test_a_huge_request_is_split_into_equal_pieces_that_let_urgent_ones_pass() -> None:
    queue = WorkQueue(LIMITS, 40.0)
    huge = score(100, deadline=9.0)
    queue.push(huge)
    first, _ = queue.form(0.0)
    assert first is not None
    assert (first.reason, first.rows) == (Reason.SPLIT, 34)
    urgent = score(3, deadline=1.0)
    queue.push(urgent)
    second, _ = queue.form(0.0)
    assert second is not None
    assert second.pieces[0].work is urgent
    rest, _ = drained(queue)
    assert sum(p.stop - p.start for b in [first, second, *rest] for p in b.pieces if p.work is huge) == 100


def test_users_of_different_levels_never_share_a_batch() -> None:
    queue = WorkQueue(LIMITS, 1000.0)
    for level in (0, 1, 0, 1, 1):
        queue.push(encode(level))
    batches, _ = drained(queue)
    assert sorted((b.group.level, b.rows) for b in batches) == [(0, 2), (1, 3)]


def test_background_work_waits_for_everything_else() -> None:
    queue = WorkQueue(LIMITS, 1000.0)
    queue.push(encode(background=True, deadline=0.5))
    queue.push(score(3, deadline=9.0))
    batches, _ = drained(queue)
    assert [b.reason for b in batches] == [Reason.IDLE, Reason.BACKGROUND]


def test_background_work_runs_one_at_a_time_and_only_when_allowed() -> None:
    queue = WorkQueue(LIMITS, 1000.0)
    for _ in range(3):
        queue.push(encode(background=True))
    assert (len(queue), queue.foreground_flops[ENCODE]) == (0, 0.0), "nobody waits for it"
    assert queue.form(0.0, background=False) == (None, [])
    batches, _ = drained(queue)
    assert [(b.rows, b.reason) for b in batches] == [(1, Reason.BACKGROUND)] * 3


def test_promoted_background_work_runs_at_once_and_only_once() -> None:
    queue = WorkQueue(LIMITS, 1000.0)
    work = encode(background=True)
    queue.push(work)
    queue.push(score(3, deadline=9.0))
    queue.promote(work, 1.0)
    batches, dropped = drained(queue)
    assert [b.group.graph for b in batches] == [ENCODE, SCORE]
    assert dropped == []


def test_cancelled_and_expired_work_costs_nothing() -> None:
    queue = WorkQueue(LIMITS, 1000.0)
    late, gone, good = score(3, deadline=1.0), score(3, deadline=9.0), score(3, deadline=9.5)
    for work in (late, gone, good):
        queue.push(work)
    queue.cancel(gone)
    assert (len(queue), queue.foreground_flops[SCORE]) == (2, 6.0), "cancelled work is not counted while it surfaces"
    batch, dropped = queue.form(now=2.0)
    assert batch is not None
    assert [p.work for p in batch.pieces] == [good]
    assert dropped == [late]
