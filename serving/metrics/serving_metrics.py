"""Everything the server counts, on a Prometheus registry of its own.

Implements the observers of the core (`serving.core.observer`) and of the protocol. Every series that
can be named in advance exists at 0 before traffic. Called on the event loop; a scrape reads from its
own thread. Cost: about a microsecond per observation, a dozen per Rank; nothing per candidate.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.registry import Collector

from serving.core.errors import ReceiptRejected
from serving.core.types import RankResult, Rung
from serving.metrics.demand_window import DemandWindow
from serving.metrics.engine_window import WINDOW_S, EngineWindow

M = TypeVar("M", Counter, Histogram)
STAGE_BUCKETS = tuple(0.0005 * math.sqrt(2) ** step for step in range(27))  # 0.5 ms … 4.1 s
UNHEALTHY_S = 60.0
_LOG = logging.getLogger(__name__)
STAGES = ("total", "store", "queue", "encode", "score")
METHODS = ("Rank", "RankStream", "RecordEvents", "ForgetUser", "PutItems", "PutUsers", "ReportOutcomes")
CODES = (
    "OK",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "RESOURCE_EXHAUSTED",
    "DEADLINE_EXCEEDED",
    "UNAVAILABLE",
    "INTERNAL",
    "CANCELLED",
)
REFUSALS = ("overloaded", "deadline", "unready", "invalid")
STORE_OUTCOMES = ("ok", "failed", "skipped")
SERVED_LOG_OUTCOMES = ("stored", "dropped", "skipped")
RECEIPT_REASONS = ("forged", "truncated", "expired", "unknown_key", "format")


class ServingMetrics:
    """Owns the registry and all metrics of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.window, self.demand = EngineWindow(), DemandWindow()
        self._bound: dict[tuple[int, tuple[str, ...]], Any] = {}

        self._calls = Counter("kunlun_calls", "Finished calls.", ("method", "code"), registry=registry)
        self._call_seconds = Histogram(
            "kunlun_call_seconds", "Time in the server per call.", ("method",), buckets=STAGE_BUCKETS, registry=registry
        )
        self._stages = Histogram(
            "kunlun_rank_stage_seconds",
            "Time of an answered Rank by stage: total, store read, wait for an engine slot, encode, score.",
            ("stage",),
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self._rungs = Counter("kunlun_rank_rungs", "Answered Ranks by degradation.", ("rung",), registry=registry)
        self._refused = Counter("kunlun_rank_refused", "Ranks refused by the core.", ("reason",), registry=registry)
        self._insane = Counter(
            "kunlun_rank_insane_scores", "Ranks whose scores were no probabilities, answered by the prior.", registry=registry
        )
        self._insane_until = -math.inf
        Gauge(
            "kunlun_model_healthy",
            f"0: scores that were no probabilities, within the last {UNHEALTHY_S:.0f} s.",
            registry=registry,
        ).set_function(lambda: float(time.monotonic() >= self._insane_until))
        self._candidates = Counter("kunlun_rank_returned_items", "Items returned by Rank.", registry=registry)
        self._unknown_items = Counter(
            "kunlun_rank_unknown_items", "Candidates scored with the out-of-vocabulary row.", registry=registry
        )
        self._unknown_users = Counter("kunlun_rank_unknown_users", "Ranks for users unknown to the model.", registry=registry)

        graph = ("graph",)
        self._batches = Counter("kunlun_engine_batches", "Engine calls.", ("graph", "reason"), registry=registry)
        self._rows = Counter("kunlun_engine_rows", "Rows asked for.", graph, registry=registry)
        self._padded_rows = Counter("kunlun_engine_padded_rows", "Rows run, padding included.", graph, registry=registry)
        self._useful = Counter("kunlun_engine_useful_flops", "Matrix-product FLOPs on real tokens.", graph, registry=registry)
        self._executed = Counter("kunlun_engine_executed_flops", "Same with padding, as executed.", graph, registry=registry)
        self._busy = Counter(
            "kunlun_engine_busy_seconds", "Time inside the engine, summed over slots.", graph, registry=registry
        )
        self._engine_cpu = Counter(
            "kunlun_engine_cpu_seconds", "CPU time of the slots' own threads inside the engine.", graph, registry=registry
        )
        self._wasted = Counter(
            "kunlun_wasted_engine_seconds",
            "Part of the busy time that began after its caller had gone or its deadline had passed.",
            graph,
            registry=registry,
        )
        self._peak = Gauge(
            "kunlun_device_peak_flops",
            "Matrix-product peak of one engine slot at the served precision, FLOP/s.",
            registry=registry,
        )
        self._slots = Gauge("kunlun_engine_slots", "Engine slots.", registry=registry)
        self._model_info = Gauge(
            "kunlun_model_info", "1 for the served model.", ("model", "version", "engine", "precision"), registry=registry
        )

        self._queue_depth = Gauge(
            "kunlun_queue_depth",
            "Encodes and scores waiting for an engine slot; background encodes are not counted.",
            registry=registry,
        )
        self._states = Counter("kunlun_user_state_lookups", "User-state cache lookups.", ("outcome",), registry=registry)
        self._state_bytes = Gauge("kunlun_user_state_bytes", "Bytes of cached user states.", registry=registry)
        self._item_lookups = Counter(
            "kunlun_item_cache_lookups",
            "Candidates looked up in the near cache of item features.",
            ("outcome",),
            registry=registry,
        )
        self._user_lookups = Counter(
            "kunlun_user_cache_lookups", "Lookups in the near cache of user features.", ("outcome",), registry=registry
        )
        self._missing = Counter(
            "kunlun_missing_features",
            "Records read from the store that lacked a feature when they were made into model inputs.",
            ("group", "feature"),
            registry=registry,
        )
        self._store_reads = Counter("kunlun_store_reads", "Store reads by outcome.", ("outcome",), registry=registry)
        self._store_seconds = Histogram(
            "kunlun_store_read_seconds", "Time of a store read.", buckets=STAGE_BUCKETS, registry=registry
        )

        self._events = Counter("kunlun_events", "Events acknowledged.", ("outcome",), registry=registry)
        self._ingest_rejected = Counter(
            "kunlun_ingest_rejected", "Entries of the event stream that cannot be stored, set aside.", registry=registry
        )
        self._ingest_lag = Gauge("kunlun_ingest_lag", "Entries of the event stream that are not stored yet.", registry=registry)
        self._outcomes = Counter("kunlun_outcomes", "Outcomes stored.", registry=registry)
        self._served_log = Counter(
            "kunlun_served_log", "Ranks sampled for the served log, by what became of them.", ("outcome",), registry=registry
        )
        self._receipts = Counter("kunlun_receipts_rejected", "Receipts rejected.", ("reason",), registry=registry)
        self._window_gauges()
        self._create_series()

    def warms_up(self, cold_shapes: Callable[[], int]) -> None:
        """`cold_shapes`: tensor shapes that no slot has run yet."""
        text = "Tensor shapes that engine slots have not run yet; they are warmed up in the background."
        Gauge("kunlun_engine_cold_shapes", text, registry=self.registry).set_function(lambda: float(cold_shapes()))

    def tracks_features(self, is_live: Callable[[], bool]) -> None:
        """`is_live`: whether changes of features in the store are heard of."""
        text = "1 while changes of features in the store are heard of; else near caches age by their time to live alone."
        Gauge("kunlun_feature_tracking", text, registry=self.registry).set_function(lambda: float(is_live()))

    def _window_gauges(self) -> None:
        for name, text, read in (
            (
                "kunlun_mfu_busy",
                f"Useful FLOPs / (engine busy seconds x peak of one slot), last {WINDOW_S} s.",
                self.window.mfu_busy,
            ),
            (
                "kunlun_mfu_wall",
                f"Useful FLOPs / (elapsed seconds x slots x peak of one slot), last {WINDOW_S} s.",
                self.window.mfu_wall,
            ),
            ("kunlun_padding_waste", f"1 - useful / executed FLOPs, last {WINDOW_S} s.", self.window.padding_waste),
            (
                "kunlun_predicted_utilisation",
                f"Work that Ranks asked for / what engine slots and event loop can do, last {WINDOW_S} s; above 1: overloaded.",
                self.demand.utilisation,
            ),
        ):
            Gauge(name, text, registry=self.registry).set_function(read)

    def _create_series(self) -> None:
        for metric, labels in _known_series(self):
            for label in labels:
                metric.labels(*label)

    def add_collector(self, collector: Collector) -> None:
        """Collect this as well at every scrape."""
        self.registry.register(collector)

    def serves(self, model: str, version: str, engine: str, precision: str, peak_flops: float, slots: int) -> None:
        """What is served, and on what; `peak_flops` is per slot."""
        self._model_info.labels(model, version, engine, precision).set(1)
        self._peak.set(peak_flops)
        self._slots.set(slots)
        self.window.peak_flops, self.window.slots = peak_flops, slots
        self.demand.slots = slots

    def _child(self, metric: M, *labels: str) -> M:
        """The series of `labels`, looked up in one dictionary instead of behind the metric's lock."""
        bound = self._bound.get((id(metric), labels))
        if bound is None:
            bound = self._bound[id(metric), labels] = metric.labels(*labels)
        return bound

    # Observer of the core.

    def ranked(self, result: RankResult, total_s: float) -> None:
        """One answered Rank."""
        times = result.times
        for stage, seconds in zip(STAGES, (total_s, times.store_s, times.queue_s, times.encode_s, times.score_s), strict=True):
            self._child(self._stages, stage).observe(seconds)
        self._child(self._rungs, result.rung.name.lower()).inc()
        self._candidates.inc(len(result.order))
        self._unknown_items.inc(result.unknown_items)
        self._unknown_users.inc(result.unknown_user)

    def refused(self, reason: str) -> None:
        """One Rank the core refused."""
        self._refused.labels(reason).inc()
        if reason == "overloaded":
            self.demand.refused()

    def demanded(self, engine_s: float, host_s: float) -> None:
        """One Rank that was read."""
        self.demand.read(engine_s, host_s)

    def batch(
        self,
        graph: str,
        rows: int,
        padded_rows: int,
        useful_flops: float,
        executed_flops: float,
        seconds: float,
        cpu_seconds: float,
        reason: str,
    ) -> None:
        """One finished engine call."""
        self._child(self._batches, graph, reason).inc()
        self._child(self._rows, graph).inc(rows)
        self._child(self._padded_rows, graph).inc(padded_rows)
        self._child(self._useful, graph).inc(useful_flops)
        self._child(self._executed, graph).inc(executed_flops)
        self._child(self._busy, graph).inc(seconds)
        self._child(self._engine_cpu, graph).inc(cpu_seconds)
        self.window.add(useful_flops, executed_flops, seconds)

    def insane_scores(self) -> None:
        """One Rank whose scores were no probabilities: the version is unhealthy for a while."""
        self._insane.inc()
        now = time.monotonic()
        if now >= self._insane_until:
            _LOG.error("the model's scores are no probabilities; it is reported as unhealthy, the prior answers instead")
        self._insane_until = now + UNHEALTHY_S

    def wasted(self, graph: str, seconds: float) -> None:
        """Engine time nobody could use."""
        self._wasted.labels(graph).inc(seconds)

    def queue_depth(self, depth: int) -> None:
        """Encodes and scores waiting."""
        self._queue_depth.set(depth)

    def user_state(self, hit: bool) -> None:
        """One cache lookup."""
        self._child(self._states, "hit" if hit else "miss").inc()

    def user_state_bytes(self, total: int) -> None:
        """Bytes cached now."""
        self._state_bytes.set(total)

    def item_cache(self, hits: int, misses: int) -> None:
        """Candidates of one request."""
        self._child(self._item_lookups, "hit").inc(hits)
        self._child(self._item_lookups, "miss").inc(misses)

    def user_features(self, hit: bool) -> None:
        """One lookup."""
        self._child(self._user_lookups, "hit" if hit else "miss").inc()

    def missing_feature(self, group: str, feature: str, count: int) -> None:
        """Records without this feature."""
        self._missing.labels(group, feature).inc(count)

    def store_read(self, seconds: float, outcome: str) -> None:
        """One read of the store."""
        self._child(self._store_reads, outcome).inc()
        self._store_seconds.observe(seconds)

    # Observers of the protocol.

    def called(self, method: str, code: str, seconds: float) -> None:
        """One finished call."""
        self._child(self._calls, method, code).inc()
        self._child(self._call_seconds, method).observe(seconds)

    def rejected(self, error: Exception) -> None:
        """A call that ended with an error of the table."""
        if isinstance(error, ReceiptRejected):
            self._receipts.labels(error.reason).inc()

    def events(self, stored: int, duplicates: int) -> None:
        """One acknowledged batch of events."""
        self._events.labels("stored").inc(stored)
        self._events.labels("duplicate").inc(duplicates)

    def rejected_entries(self, count: int) -> None:
        """Entries of the event stream that were set aside."""
        self._ingest_rejected.inc(count)

    def ingest_lag(self, entries: int) -> None:
        """Entries of the event stream that wait."""
        self._ingest_lag.set(entries)

    def outcomes(self, stored: int) -> None:
        """One acknowledged batch of outcomes."""
        self._outcomes.inc(stored)

    def served_log(self, outcome: str, count: int) -> None:
        """Sampled Ranks that were stored, dropped or skipped."""
        self._served_log.labels(outcome).inc(count)


def _known_series(m: ServingMetrics) -> Iterable[tuple[Counter | Histogram, list[tuple[str, ...]]]]:
    """Label values that can be named before traffic."""
    graphs: list[tuple[str, ...]] = [("encode_user",), ("score_candidates",)]
    yield m._calls, [(method, code) for method in METHODS for code in CODES]
    yield m._call_seconds, [(method,) for method in METHODS]
    yield m._stages, [(stage,) for stage in STAGES]
    yield m._rungs, [(rung.name.lower(),) for rung in Rung]
    yield m._refused, [(reason,) for reason in REFUSALS]
    yield m._store_reads, [(outcome,) for outcome in STORE_OUTCOMES]
    yield m._states, [("hit",), ("miss",)]
    yield m._item_lookups, [("hit",), ("miss",)]
    yield m._events, [("stored",), ("duplicate",)]
    yield m._receipts, [(reason,) for reason in RECEIPT_REASONS]
    yield m._served_log, [(outcome,) for outcome in SERVED_LOG_OUTCOMES]
    for metric in (m._rows, m._padded_rows, m._useful, m._executed, m._busy, m._engine_cpu, m._wasted):
        yield metric, graphs
