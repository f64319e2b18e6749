"""Loop time per request and the loop's lag: what the loop's thread used, and how long a request waits for it."""

from __future__ import annotations

import asyncio
import time

import pytest

from serving.core.host_time import LEAST_REQUESTS, SAMPLE_S, STEPS, TICK_S, HostTime


def test_the_threads_own_work_is_divided_by_the_requests() -> None:
    async def main() -> None:
        host = HostTime()
        assert host.wait_s(100) == 0.0, "nothing is known yet"
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
        assert host.wait_s(10) == pytest.approx(10 * host.per_request_s)
        host.stop()

    asyncio.run(main())


def test_a_sleeping_loop_costs_nothing() -> None:
    async def main() -> float:
        host = HostTime()
        host.start()
        await asyncio.sleep(1.5 * SAMPLE_S)
        for _ in range(LEAST_REQUESTS):
            host.answered(time.monotonic())
        host.stop()
        return host.per_request_s

    # Waiting for a CPU counts, as it should, so neighbours may spoil some tries.
    assert any(asyncio.run(main()) < 0.25 * SAMPLE_S / LEAST_REQUESTS for _ in range(20))


def test_a_queue_in_front_of_the_loop_shows_as_lag_and_goes_away() -> None:
    async def main() -> None:
        host = HostTime()
        host.start()
        await asyncio.sleep(5 * TICK_S)
        for _ in range(20):
            time.sleep(0.05)  # noqa: ASYNC251  one callback after the other holds the loop up
            await asyncio.sleep(0)
        assert host.lag_s > 0.02
        assert host.wait_s(0) == STEPS * host.lag_s
        give_up = time.monotonic() + 30
        while host.lag_s >= 0.01 and time.monotonic() < give_up:
            await asyncio.sleep(0.05)
        assert host.lag_s < 0.01
        host.stop()

    asyncio.run(main())
