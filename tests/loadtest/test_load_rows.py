"""What the load rows compute from runs: straight lines, and how fresh the states were."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.openloop.generator import Sample
from loadtest.openloop.run import Counters, Run
from loadtest.openloop.workload import Workload
from loadtest.scoreboard.load_rows import freshness, slope

NAN = float("nan")
BEGAN_MS = 1_800_000_000_000.0


def run_of(user: list[int], sent_s: list[float], newest_s: list[float], events: dict[int, float], rung: list[int]) -> Run:
    """Requests of users at times; `newest_s`: time of the newest event their replies used; `events`: request → its event.

    Every event is acknowledged 10 ms after its time.
    """
    count = len(user)
    event_ms = np.array([BEGAN_MS + events[n] * 1e3 if n in events else NAN for n in range(count)])
    sample = Sample(
        at=np.array(sent_s),
        sent=np.array(sent_s),
        latency_s=np.full(count, 0.01),
        deadline_s=np.ones(count),
        candidates=np.ones(count, np.int64),
        user=np.array(user),
        status=["OK" if r else "RESOURCE_EXHAUSTED" for r in rung],
        rung=np.array(rung),
        cached=np.ones(count, bool),
        newest_event_ms=BEGAN_MS + np.array(newest_s) * 1e3,
        acknowledged_ms=event_ms + 10,
        event_ms=event_ms,
        began_ms=BEGAN_MS,
        cpu_share=0.1,
        replies=[],
    )
    return Run(Workload(rate=1, seconds=10), sample.summary(), sample, Counters(*[0.0] * 10))


@pytest.mark.parametrize(
    ("sent_s", "newest_s", "expected"),
    [
        pytest.param(3.0, 1.0, 1.0, id="the state has the event"),
        pytest.param(3.0, 0.0, 0.0, id="the state ends before the event"),
        pytest.param(3.0, NAN, 0.0, id="the state has no event"),
        pytest.param(1.9, 0.0, 1.0, id="the event is too young to count"),
        pytest.param(3.0, 2.5, 1.0, id="the state is even newer"),
    ],
)
def test_a_request_two_seconds_after_an_event(sent_s: float, newest_s: float, expected: float) -> None:
    """The first request is before any event and fresh by itself; the share is of the second."""
    run = run_of([7, 7], [0.99, sent_s], [NAN, newest_s], {0: 1.0}, [1, 1])
    assert freshness(run) == pytest.approx((1 + expected) / 2)


def test_events_of_others_and_unanswered_requests_do_not_count() -> None:
    stale_if_mixed_up = run_of([1, 2, 2], [0.0, 5.0, 5.0], [NAN, NAN, NAN], {0: 0.1}, [1, 1, 1])
    assert freshness(stale_if_mixed_up) == 1.0
    refused = run_of([1, 1, 1], [0.0, 5.0, 6.0], [NAN, NAN, 0.1], {0: 0.1}, [1, 0, 1])
    assert freshness(refused) == 1.0


def test_the_newest_event_that_is_due_must_be_in_the_state() -> None:
    events = {0: 1.0, 1: 2.0, 2: 5.0}
    answers = {1.0: 0.0, 2.0: 1.0, 5.0: 1.0}
    for newest, expected in answers.items():
        run = run_of([1, 1, 1, 1], [0.9, 1.9, 4.9, 5.5], [NAN, NAN, 2.0, newest], events, [1, 1, 1, 1])
        assert freshness(run) == pytest.approx((3 + expected) / 4)


def test_the_slope_of_a_line_under_noise_and_its_error(rng: np.random.Generator) -> None:
    steps, noise, repeats = 40, 2.0, 300
    fits = [slope((5 + 0.3 * np.arange(steps) + noise * rng.standard_normal(steps)).tolist()) for _ in range(repeats)]
    found, errors = np.array(fits).T
    exact = noise / np.sqrt((steps**3 - steps) / 12)  # of least squares on equally spaced steps
    assert found.mean() == pytest.approx(0.3, abs=5 * exact / np.sqrt(repeats))
    assert exact <= errors.mean() <= 1.15 * exact
    assert np.mean(np.abs(found - 0.3) <= 2 * errors) == pytest.approx(0.95, abs=0.05)


def test_noise_that_stays_for_a_while_is_not_taken_for_a_slope(rng: np.random.Generator) -> None:
    usual, known, steps = 0, 0, 40
    for _ in range(300):
        noise = rng.standard_normal(steps)
        for step in range(1, steps):
            noise[step] += 0.6 * noise[step - 1]
        found, error = slope(noise.tolist())
        x = np.arange(steps) - (steps - 1) / 2
        residual = noise - noise.mean() - found * x
        usual += abs(found) <= 2 * np.sqrt((residual**2).sum() / (steps - 2) / (x * x).sum())
        known += abs(found) <= 2 * error
    assert usual / 300 < 0.75
    assert known / 300 > 0.8


def test_the_error_of_a_constant_can_be_divided_by() -> None:
    found, error = slope([3.0] * 10)
    assert found == 0.0
    assert abs(found) / error == 0.0
    steep, error = slope([float(n) for n in range(10)])
    assert steep == pytest.approx(1.0)
    assert steep / error > 1e6
