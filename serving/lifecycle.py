"""What every process of ours needs around its work: an end by signal, tasks in the background, /metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator
from types import FrameType
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, start_http_server

from model.config import ConfigError
from serving.config import ServerConfig

T = TypeVar("T")
_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def stopped_by_signals(stop: asyncio.Event) -> Iterator[None]:
    """The first SIGTERM or SIGINT sets `stop`; the next one ends the process at once, with status 128 and its number.

    By a handler of ours, since the kernel spares the first process of a container every signal that it does not handle.
    """
    loop, numbers = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}

    def end_at_once(number: int, _: FrameType | None) -> None:
        os._exit(128 + number)

    def stop_once() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, end_at_once)
        stop.set()

    for number in numbers:
        loop.add_signal_handler(number, stop_once)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, before[number])


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`; None once `stop` is set before it comes, and `work` has been cancelled."""
    task, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return await task
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return None
    finally:
        stopping.cancel()
        if task.cancel():  # whoever waited for it has been cancelled
            with contextlib.suppress(asyncio.CancelledError):
                await task


@contextlib.asynccontextmanager
async def in_background(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """`work` while the block runs; should it fail, the process goes on without it and says so."""

    def log_failure(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("%s stopped", name, exc_info=error)

    task = asyncio.create_task(work)
    task.add_done_callback(log_failure)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


def serve_metrics(config: ServerConfig, registry: CollectorRegistry, stack: contextlib.AsyncExitStack) -> str:
    """Serve `registry` at /metrics until `stack` closes; returns `host:port`, empty when off. Raises `ConfigError`."""
    if config.metrics_port is None:
        return ""
    try:
        server, thread = start_http_server(config.metrics_port, config.host, registry=registry)
    except OSError as error:
        raise ConfigError(
            f"metrics_port: {config.host}:{config.metrics_port} cannot be listened on: {error.strerror}"
        ) from error

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    stack.push_async_callback(asyncio.to_thread, close)
    return f"{config.host}:{server.server_port}"
