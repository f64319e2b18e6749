"""The serving process: opens its parts in order, serves, and closes them in reverse.

Owns the life cycle. Starting: artifact, engine, store, core, listeners (health NOT_SERVING), warm-up,
then ready. Stopping (SIGTERM or SIGINT, during warm-up, too; a second one ends the process at once): health NOT_SERVING,
no new calls, calls in flight finish, the core drains, the store closes. Imports no torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import grpc.aio

from kunlun.v1 import events_pb2_grpc, features_pb2_grpc, feedback_pb2_grpc, ranker_pb2_grpc
from model.artifact import Artifact, open_artifact
from serving.config import ServerConfig, artifact_path, available_cpus, random_receipt_keys, receipt_keys
from serving.core.frontier import load_frontier
from serving.core.ranker import Ranker
from serving.engines.base import Engine
from serving.engines.cache import default_cache
from serving.engines.open import open_engine
from serving.engines.tensorrt.open import gpu_slots, resolve_precision
from serving.feedback.receipt import ReceiptSigner
from serving.feedback_process import feedback
from serving.ingest.ingestion import Ingestion
from serving.ingest.redis_stream import RedisStreamSource
from serving.lifecycle import in_background, serve_metrics, stopped_by_signals, unless
from serving.metrics.serving_metrics import ServingMetrics
from serving.metrics.store_stats import StoreStatsCollector
from serving.protocol.event_messages import EventMessages
from serving.protocol.events_service import EventsService
from serving.protocol.features_service import FeaturesService
from serving.protocol.feedback_service import FeedbackService
from serving.protocol.guard import Guard
from serving.protocol.outcome_messages import OutcomeMessages
from serving.protocol.rank_messages import RankMessages
from serving.protocol.ranker_service import RankerService
from serving.store.open import open_store
from serving.store.redis_store import RedisOptions, RedisStore
from serving.store.store_changes import StoreChanges
from serving.training_log.served_writer import ServedLog
from serving.transport import Health, bind, open_grpc_server
from serving.tuning.calibrate_slots import best_split
from serving.tuning.engine_work import engine_work

SERVED_LOG_FLUSH_S = 2.0
"""How long a server that stops waits for its served log."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Addresses:
    """Where a running server listens (`metrics` is empty when off), and the URL of its store, without credentials."""

    grpc: str
    metrics: str
    store: str
    model: str
    version: str


async def serve(config: ServerConfig, ready: Callable[[Addresses], None]) -> None:
    """Serve until SIGTERM or SIGINT; calls `ready` once warm. Raises `ConfigError`, `ArtifactError`, `StoreUnavailable`."""
    stop = asyncio.Event()
    with stopped_by_signals(stop):
        async with contextlib.AsyncExitStack() as stack:
            addresses = await unless(stop, stack.enter_async_context(running_server(config)))
            if addresses is not None:
                ready(addresses)
                await stop.wait()
            _LOG.info("stopping")
    _LOG.info("stopped")


@contextlib.asynccontextmanager
async def running_server(config: ServerConfig) -> AsyncIterator[Addresses]:
    """A warm server while the block runs; leaves nothing behind, whatever fails."""
    began = time.monotonic()
    keys = receipt_keys(config)
    if keys is None:
        keys = random_receipt_keys()
        _LOG.warning("no receipt key: receipts will be rejected by other replicas and after a restart")
    async with contextlib.AsyncExitStack() as stack:
        artifact = open_artifact(artifact_path(config))
        config = _with_calibrated_slots(config, artifact)
        schema, manifest = artifact.schema, artifact.manifest
        engine = _open_engine(config, artifact)
        stack.callback(engine.close)
        frontier = load_frontier(engine.entry, artifact.digest)
        if config.host_cpus:
            _pin(config.host_cpus)
        options = RedisOptions(
            history_ttl_s=config.history_ttl_s,
            replicas=config.store_replicas,
            max_served=config.served_log_entries,
            outcomes_kept=config.outcomes_kept,
            outcomes_counted=config.feedback != "off",
        )
        store = await open_store(config.store, schema, data_dir=config.data_dir, data_sync=config.data_sync, options=options)
        stack.push_async_callback(store.close)

        metrics = ServingMetrics()
        metrics.add_collector(StoreStatsCollector(store.stats))
        metrics.serves(
            manifest.model, manifest.version, engine.name, engine.precision, engine.device_peak_flops, config.slot_count
        )
        ranker = Ranker(artifact, engine, store, config.core_options, metrics, frontier)
        stack.push_async_callback(ranker.close)
        changes = StoreChanges(store, ranker)
        metrics.warms_up(lambda: ranker.cold_shapes)
        metrics.tracks_features(lambda: changes.is_live)
        await stack.enter_async_context(in_background(changes.run(), "tracking of the store"))
        signer = ReceiptSigner(*keys, max_age_s=config.attribution_window_s)
        await stack.enter_async_context(feedback(config, artifact, store, metrics.registry))
        served_log = await _served_log(config, artifact, store, metrics, stack)

        guard = Guard(config.max_message_bytes, metrics)
        guard.refusal, guard.refused = ranker.refusal, metrics.refused
        server = open_grpc_server(config, guard)
        rank_messages = RankMessages(schema, manifest.model, manifest.version)
        event_messages = EventMessages(schema)
        _add_services(
            server,
            RankerService(ranker, rank_messages, signer, guard, config.default_deadline_ms / 1000, served_log),
            EventsService(ranker, event_messages, metrics),
            FeaturesService(store, ranker, schema),
            FeedbackService(store, OutcomeMessages(signer), metrics),
        )
        health = Health(server)
        await health.starting()
        metrics_address = serve_metrics(config, metrics.registry, stack)
        address = bind(server, config)
        stack.push_async_callback(ranker.drain)
        await server.start()
        stack.push_async_callback(_stop_accepting, server, health, guard, config)

        await ranker.start()
        if config.ingest is not None:
            source = RedisStreamSource(config.ingest.url or store.url, config.ingest.stream, config.ingest.group)
            ingestion = Ingestion(source, event_messages, ranker, metrics)
            await stack.enter_async_context(in_background(ingestion.run(), "ingestion"))
        gc.collect()
        gc.freeze()
        guard.ready = True
        await health.serving()
        _LOG.info(
            "serving %s %s on %s with %s (%s, %d slots) after %.1f s",
            *(manifest.model, manifest.version, address, engine.name, engine.precision),
            *(config.slot_count, time.monotonic() - began),
        )
        yield Addresses(address, metrics_address, store.public_url, manifest.model, manifest.version)


def _add_services(
    server: grpc.aio.Server,
    ranker: RankerService,
    events: EventsService,
    features: FeaturesService,
    feedback: FeedbackService,
) -> None:
    ranker_pb2_grpc.add_RankerServicer_to_server(ranker, server)  # type: ignore[no-untyped-call]
    events_pb2_grpc.add_EventsServicer_to_server(events, server)  # type: ignore[no-untyped-call]
    features_pb2_grpc.add_FeaturesServicer_to_server(features, server)  # type: ignore[no-untyped-call]
    feedback_pb2_grpc.add_FeedbackServicer_to_server(feedback, server)  # type: ignore[no-untyped-call]


async def _stop_accepting(server: grpc.aio.Server, health: Health, guard: Guard, config: ServerConfig) -> None:
    await health.stopping()
    if guard.ready:  # before, no balancer has sent a call
        await asyncio.sleep(config.shutdown_delay_s)
    await server.stop(config.shutdown_grace_s)


def _pin(cpus: Sequence[int]) -> None:
    """Every thread that exists now, and those they will start, on these CPUs; engine slots move to theirs later.

    After the engine library has been loaded: it takes the CPUs it finds then for all there are.
    """
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), cpus)


def _with_calibrated_slots(config: ServerConfig, artifact: Artifact) -> ServerConfig:
    """With slots that fill the GPUs, or the split of the CPUs that `kunlun calibrate` found fastest, where it is left open."""
    if config.engine == "tensorrt":
        return config if config.slots else config.model_copy(update={"slots": gpu_slots()})
    if config.slots or config.threads_per_slot:
        return config
    cache = config.engine_cache or default_cache(artifact)
    split = best_split(cache, artifact, precision=config.precision, cpus=available_cpus())
    return config if split is None else config.model_copy(update={"slots": split.slots, "threads_per_slot": split.threads})


def _open_engine(config: ServerConfig, artifact: Artifact) -> Engine:
    return open_engine(
        artifact,
        engine=config.engine,
        cache=config.engine_cache or default_cache(artifact),
        precision=config.precision,
        threads_per_slot=config.slot_threads,
        slots=config.slot_count,
        fused_block=config.fused_block,
        work=engine_work(artifact, config.core, resolve_precision(config.precision)) if config.engine == "tensorrt" else None,
        backup=config.backup_engine,
    )


async def _served_log(
    config: ServerConfig, artifact: Artifact, store: RedisStore, metrics: ServingMetrics, stack: contextlib.AsyncExitStack
) -> ServedLog | None:
    """The writer of the served log, flushed when the stack unwinds; None when it is off."""
    if not config.served_log_rate:
        return None
    log = ServedLog(store, artifact.schema, config.served_log_rate, metrics)
    await stack.enter_async_context(in_background(log.run(), "served log"))
    stack.push_async_callback(log.flush, SERVED_LOG_FLUSH_S)
    return log
