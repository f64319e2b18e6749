"""Forming batches: every row exactly once or dropped, urgent first, within budget, background last."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core.batching import Batch, Budget, Group, Limits, Reason, Work, WorkQueue
from serving.core.work_time import WorkTime

SCORE, ENCODE = "score_candidates", "encode_user"
LIMITS = {SCORE: Limits(rows=64, pieces=4), ENCODE: Limits(rows=4, pieces=4)}


def times(fixed: float = 1e9, per_flop: float = 1.0) -> WorkTime:
    """A model that has seen calls of exactly this cost; by default one call less is worth any delay."""
    model = WorkTime((SCORE, ENCODE))
    for graph in (SCORE, ENCODE):
        for flops in (1.0, 1000.0):
            model.observe(graph, flops, fixed + flops * per_flop)
    return model


def queue_of(budget_flops: float = 1e6, fixed: float = 1e9) -> WorkQueue:
    return WorkQueue(LIMITS, times(fixed), Budget(fixed + budget_flops, fixed + 30.0))


def score(rows: int, due: float = 10.0, cost: float = 1.0, deadline: float = 10.0) -> Work:
    return Work(Group(SCORE), rows, cost, 0.0, deadline, due)


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
    due=st.floats(-1, 9),
    background=st.booleans(),
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(works, st.booleans()), max_size=30),
    st.floats(1, 500),
    st.sampled_from([0.0, 1.0, 50.0, 1e9]),
    st.integers(0, 30),
)
def test_every_row_is_dispatched_exactly_once_or_dropped(
    drawn: list[tuple[Work, bool]], budget: float, fixed: float, promoted: int
) -> None:
    queue = queue_of(budget, fixed)
    pushed, cancelled = [work for work, _ in drawn], [work for work, gone in drawn if gone]
    for work in pushed:
        if work.group.graph == ENCODE:
            work.rows = 1
        queue.push(work)
    for work in cancelled:
        queue.cancel(work, 0.0)
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
        if work in cancelled or work.deadline <= 0:
            assert rows[id(work)] == []
            assert (work in dropped) is (work not in cancelled)
        else:
            assert rows[id(work)] == list(range(work.rows))
            assert work not in dropped
    assert (len(queue), set(queue.foreground_flops.values())) == (0, {0.0})


@settings(max_examples=100, deadline=None)
@given(st.permutations([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
def test_order_of_arrival_does_not_change_who_goes_first(dues: list[float]) -> None:
    queue = queue_of(10.0)
    for due in dues:
        queue.push(score(5, due))
    batches, _ = drained(queue)
    assert [p.work.due for b in batches for p in b.pieces] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_requests_merge_only_where_a_call_less_saves_more_than_it_delays() -> None:
    queue = queue_of(fixed=3.0)  # seconds per call; every row takes one second
    for due, rows in enumerate((2, 2, 20, 20, 2)):
        queue.push(score(rows, float(due)))
    batches, _ = drained(queue)
    # 2 more seconds for one waiting request save a call (3 s) for four; 20 more seconds save it for three.
    assert [(b.rows, b.reason) for b in batches] == [(4, Reason.MERGED), (20, Reason.IDLE), (22, Reason.MERGED)]


def test_nothing_is_merged_when_told_so() -> None:
    queue = queue_of()
    for _ in range(3):
        queue.push(score(2))
    batch, _ = queue.form(0.0, merge=False)
    assert batch is not None
    assert (batch.rows, batch.reason, len(queue)) == (2, Reason.IDLE, 2)


def test_a_batch_stays_within_the_budget() -> None:
    queue = queue_of(20.0)
    for _ in range(5):
        queue.push(score(9))
    batches, _ = drained(queue)
    assert [b.rows for b in batches] == [18, 18, 9]
    assert [b.reason for b in batches] == [Reason.FULL, Reason.FULL, Reason.IDLE]


def test_a_huge_request_is_split_into_equal_pieces_that_let_urgent_ones_pass() -> None:
    queue = queue_of(40.0)
    huge = score(100, due=9.0)
    queue.push(huge)
    first, _ = queue.form(0.0)
    assert first is not None
    assert (first.reason, first.rows) == (Reason.SPLIT, 34)
    urgent = score(3, due=1.0)
    queue.push(urgent)
    second, _ = queue.form(0.0)
    assert second is not None
    assert second.pieces[0].work is urgent
    rest, _ = drained(queue)
    assert sum(p.stop - p.start for b in [first, second, *rest] for p in b.pieces if p.work is huge) == 100


def test_users_of_different_levels_never_share_a_batch() -> None:
    queue = queue_of(1000.0)
    for level in (0, 1, 0, 1, 1):
        queue.push(encode(level))
    batches, _ = drained(queue)
    assert sorted((b.group.level, b.rows) for b in batches) == [(0, 2), (1, 3)]


def test_background_work_waits_for_everything_else() -> None:
    queue = queue_of(1000.0)
    queue.push(encode(background=True, deadline=0.5))
    queue.push(score(3, deadline=9.0))
    batches, _ = drained(queue)
    assert [b.reason for b in batches] == [Reason.IDLE, Reason.BACKGROUND]


def test_background_work_runs_within_its_own_budget_and_only_when_allowed() -> None:
    queue = queue_of(1000.0)
    for _ in range(4):
        queue.push(encode(background=True))
    assert (len(queue), queue.foreground_flops[ENCODE]) == (0, 0.0), "nobody waits for it"
    assert queue.form(0.0, background=False) == (None, [])
    batches, _ = drained(queue)
    assert [(b.rows, b.reason) for b in batches] == [(3, Reason.BACKGROUND), (1, Reason.BACKGROUND)]


def test_promoted_background_work_runs_at_once_and_only_once() -> None:
    queue = queue_of(1000.0)
    work = encode(background=True)
    queue.push(work)
    queue.push(score(3, deadline=9.0))
    queue.promote(work, 1.0)
    batches, dropped = drained(queue)
    assert [b.group.graph for b in batches] == [ENCODE, SCORE]
    assert dropped == []


def test_cancelled_and_expired_work_costs_nothing() -> None:
    queue = queue_of(1000.0)
    late, gone, good = score(3, deadline=1.0), score(3), score(3)
    for work in (late, gone, good):
        queue.push(work)
    queue.cancel(gone, 0.0)
    assert (len(queue), queue.foreground_flops[SCORE]) == (2, 6.0), "cancelled work is not counted while it surfaces"
    batch, dropped = queue.form(now=2.0)
    assert batch is not None
    assert [p.work for p in batch.pieces] == [good]
    assert dropped == [late]


def test_work_that_no_engine_could_finish_in_time_is_dropped() -> None:
    queue = WorkQueue(LIMITS, WorkTime((SCORE, ENCODE), peak_flops=10.0), Budget())
    hopeless, tight = score(30, deadline=2.9), score(30, deadline=3.1)
    queue.push(hopeless)
    queue.push(tight)
    batch, dropped = queue.form(now=0.0)
    assert batch is not None
    assert ([p.work for p in batch.pieces], dropped) == ([tight], [hopeless])


def test_those_who_join_keep_work_alive_for_the_last_of_them() -> None:
    queue = queue_of()
    work = encode(deadline=1.0)
    queue.push(work)
    queue.promote(work, 5.0, 0.5)
    assert (work.deadline, work.due) == (5.0, 0.5)
    batch, dropped = queue.form(now=2.0)
    assert batch is not None
    assert dropped == []
