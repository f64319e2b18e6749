"""Counting outcomes and exporting what they come to: inside a server, or (`kunlun feedback`) in a process of its own.

In its own process nothing of it takes time from Ranks, and the servers run with `feedback: report`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

from prometheus_client import CollectorRegistry, Gauge

from model.artifact import Artifact, open_artifact
from serving.config import ServerConfig, artifact_path
from serving.feedback.consumer import FeedbackConsumer
from serving.feedback.figures import FigureReader
from serving.lifecycle import in_background, serve_metrics, stopped_by_signals
from serving.metrics.online_ne import OnlineNECollector
from serving.store.open import open_store
from serving.store.redis_store import RedisOptions, RedisStore

_LOG = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def feedback(
    config: ServerConfig, artifact: Artifact, store: RedisStore, registry: CollectorRegistry
) -> AsyncIterator[None]:
    """Counts outcomes and exports what they come to while the block runs, as far as `config.feedback` says."""
    tasks = tuple(task.name for task in artifact.schema.tasks)
    window_ms, shown_ms = round(config.attribution_window_s * 1000), round(config.online_window_s * 1000)
    async with contextlib.AsyncExitStack() as stack:
        if config.feedback == "consume":
            consumer = FeedbackConsumer(store, window_ms, shown_ms)
            text = "1 in the one process that counts the outcomes of the fleet."
            Gauge("kunlun_feedback_consumer", text, registry=registry).set_function(lambda: float(consumer.is_owner))
            await stack.enter_async_context(in_background(consumer.run(), "feedback consumer"))
        if config.feedback != "off":
            reader = FigureReader(store, shown_ms)
            references = artifact.manifest.score_reference
            registry.register(OnlineNECollector(lambda: reader.figures, tasks, artifact.manifest.version, references))
            await stack.enter_async_context(in_background(reader.run(), "online NE"))
        yield


async def run_feedback(config: ServerConfig, ready: Callable[[str], None]) -> None:
    """Until SIGTERM or SIGINT; calls `ready` with the address of /metrics. Raises as `serving.server.serve` does."""
    stop = asyncio.Event()
    artifact = open_artifact(artifact_path(config))
    with stopped_by_signals(stop):
        async with contextlib.AsyncExitStack() as stack:
            options = RedisOptions(replicas=config.store_replicas, outcomes_kept=config.outcomes_kept)
            store = await open_store(config.store, artifact.schema, options=options)
            stack.push_async_callback(store.close)
            registry = CollectorRegistry()
            metrics_address = serve_metrics(config, registry, stack)
            await stack.enter_async_context(feedback(config, artifact, store, registry))
            _LOG.info("counting outcomes in %s, metrics on %s", store.public_url, metrics_address or "no port")
            ready(metrics_address)
            await stop.wait()
