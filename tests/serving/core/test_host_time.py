"""Loop time per request: what the loop's thread used, and how long the requests in flight need."""

from __future__ import annotations

import time

import pytest

from serving.core.host_time import LEAST_REQUESTS, SAMPLE_S, HostTime


def test_the_threads_own_work_is_divided_by_the_requests() -> None:
    host = HostTime()
    assert host.backlog_s(100) == 0.0, "nothing is known yet"
    began, used = time.monotonic(), time.thread_time()
    host.start()
    while time.monotonic() < began + 1.5 * SAMPLE_S:
        pass  # the work
    spent = time.thread_time() - used
    for _ in range(LEAST_REQUESTS - 1):
        host.answered(time.monotonic())
    assert host.per_request_s == 0.0, "too few requests to tell"
    host.answered(time.monotonic())
    assert host.per_request_s >= 0.9 * spent / LEAST_REQUESTS
    assert host.backlog_s(10) == pytest.approx(10 * host.per_request_s)


def test_a_sleeping_loop_costs_nothing() -> None:
    host = HostTime()
    host.start()
    time.sleep(1.5 * SAMPLE_S)
    for _ in range(LEAST_REQUESTS):
        host.answered(time.monotonic())
    assert host.per_request_s < 0.25 * SAMPLE_S / LEAST_REQUESTS
