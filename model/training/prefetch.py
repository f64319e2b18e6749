"""Runs ahead of a consumer: items are made in order on a background thread, at most `depth` of them beyond the one in use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Made = TypeVar("Made")


def prefetched(jobs: Iterable[Job], make: Callable[[Job], Made], depth: int) -> Generator[Made, None, None]:
    """``make(job)`` for every job, in order; errors surface where their item would. `depth` 0: no thread, made when asked for.

    Closing the iterator waits for the item being made and drops the others.
    """
    if depth == 0:
        yield from map(make, jobs)
        return
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(make, job))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
