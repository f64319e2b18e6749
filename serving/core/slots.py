"""An engine slot: one thread, one session, one batch at a time.

The scheduler hands batches over and hears of the outcome on the event loop. A slot may be given its
next batch while it runs one; with nothing to do for a moment it does spare work. The engine releases
the GIL; a slot can be pinned to a CPU of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from serving.engines.base import Engine, Session

Task = TypeVar("Task")
Outcome = TypeVar("Outcome")
SPARE_AFTER_S = 0.01
LEAST_PRIORITY = 19
BESIDE = "-beside"
BESIDE_GRACE_S = 1.0
"""How long `close` waits for what a slot's helper is at: a compiler cannot be interrupted, and at the least priority
on a busy machine one shape takes it minutes."""

_LOG = logging.getLogger(__name__)


class EngineSlot(Generic[Task, Outcome]):
    """Runs `work(session, task)` in its own thread and reports `done(slot, task, outcome or exception)` on the loop."""

    def __init__(
        self,
        engine: Engine,
        loop: asyncio.AbstractEventLoop,
        work: Callable[[Session, Task], Outcome],
        done: Callable[[EngineSlot[Task, Outcome], Task, Outcome | Exception], None],
        index: int,
        cpu: int | None = None,
    ) -> None:
        self.index = index
        self._engine, self._loop, self._work, self._done, self._cpu = engine, loop, work, done, cpu
        self._helper: threading.Thread | None = None
        self._cpus = os.sched_getaffinity(0)
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._ready: asyncio.Future[None] = loop.create_future()
        self._thread = threading.Thread(target=self._main, name=f"engine-slot-{index}", daemon=True)

    async def start(
        self,
        warm: Callable[[Session], None],
        spare: Callable[[Session], bool] = lambda _: False,
        beside: Callable[[Session], None] = lambda _: None,
    ) -> None:
        """Open and warm a session in the slot's thread; returns when it is ready, raises what it raised.

        `spare` is called whenever the slot has been idle for `SPARE_AFTER_S`, until it returns False;
        `beside` once, in a thread of the least priority that is not pinned with the slot's.
        """
        self._warm, self._spare, self._beside = warm, spare, beside
        self._thread.start()
        await self._ready

    def submit(self, task: Task) -> None:
        """Queue a task for the thread."""
        self._tasks.put(task)

    async def close(self) -> None:
        """Finish what was submitted and end the thread; work beside it may be left at its last step (`is_busy_beside`)."""
        self._tasks.put(None)
        if self._thread.ident is not None:  # it was started; it may have ended since, and its helper not
            await asyncio.get_running_loop().run_in_executor(None, self._join)

    def _join(self) -> None:
        self._thread.join()
        if self._helper is not None and self._helper.ident is not None:
            self._helper.join(BESIDE_GRACE_S)

    def _main(self) -> None:
        try:
            if self._cpu is not None:
                os.sched_setaffinity(0, {self._cpu})  # of this thread alone
            session = self._engine.open_session()
            self._warm(session)
            self._helper = threading.Thread(
                target=self._do_beside, args=(session,), name=f"{self._thread.name}{BESIDE}", daemon=True
            )
        except Exception as error:
            self._call(self._ready_failed, error)
            return
        self._call(self._ready_ok)
        self._helper.start()
        has_spare = True
        while True:
            try:
                task = self._tasks.get(timeout=SPARE_AFTER_S if has_spare else None)
            except queue.Empty:
                has_spare = self._do_spare(session)
                continue
            if task is None:
                return
            outcome: Outcome | Exception
            try:
                outcome = self._work(session, task)
            except Exception as error:
                outcome = error
            self._call(self._done, self, task, outcome)

    def _do_beside(self, session: Session) -> None:
        os.sched_setaffinity(0, self._cpus)
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LEAST_PRIORITY)
        try:
            self._beside(session)
        except Exception:  # nobody waits for it
            _LOG.exception("engine slot %d: work beside it failed and is given up", self.index)

    def _do_spare(self, session: Session) -> bool:
        try:
            return self._spare(session)
        except Exception:  # nobody waits for it: batches must still run, on the shapes that are warm
            _LOG.exception("engine slot %d: spare work failed and is given up", self.index)
            return False

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody is left to tell
            self._loop.call_soon_threadsafe(function, *arguments)

    def _ready_ok(self) -> None:
        if not self._ready.done():
            self._ready.set_result(None)

    def _ready_failed(self, error: Exception) -> None:
        if not self._ready.done():
            self._ready.set_exception(error)


def is_busy_beside() -> bool:
    """Whether a closed slot's helper is still at work, so that libraries must not be unloaded under it."""
    return any(thread.name.endswith(BESIDE) for thread in threading.enumerate())
