"""The protocol on a free port, in front of a scorer that needs no model: for protocol and client tests.

Real gRPC, real guard, real receipts, real metrics and a real store (the bundled Valkey); only the
core is a stand-in that scores every (user, item) by a fixed formula. Runs on an event loop in a
thread, so that tests can use the blocking client.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from kunlun.v1 import events_pb2_grpc, features_pb2_grpc, feedback_pb2_grpc, ranker_pb2_grpc
from model.config import parse_yaml
from model.schema import Schema
from model.value_expression import ValueExpression
from serving.config import ServerConfig
from serving.core.types import RankRequest, RankResult, RecordedEvents, Rung, StageTimes, UserEvent
from serving.feedback.receipt import ReceiptSigner
from serving.metrics.serving_metrics import ServingMetrics
from serving.protocol.event_messages import EventMessages
from serving.protocol.events_service import EventsService
from serving.protocol.features_service import FeaturesService
from serving.protocol.feedback_service import FeedbackService
from serving.protocol.guard import Guard
from serving.protocol.outcome_messages import OutcomeMessages
from serving.protocol.rank_messages import RankMessages
from serving.protocol.ranker_service import RankerService
from serving.store.open import open_store
from serving.store.redis_store import RedisStore
from serving.transport import Health, bind, open_grpc_server

T = TypeVar("T")
MODEL, VERSION = "shop", "7"
MAX_MESSAGE_BYTES = 100_000
SCHEMA = """
name: shop
tables: {item: {width: 4}, genre: {width: 4}, place: {width: 4, encoding: {kind: hash, buckets: 50}}}
item: {id_type: string, table: item}
user:
  - {name: country, kind: categorical, table: place}
  - {name: age, kind: numeric}
context:
  - {name: surface, kind: categorical, table: place}
  - {name: page, kind: numeric}
  - {name: hour, kind: numeric, derived: hour_of_day}
item_features:
  - {name: genres, kind: multi, table: genre, max_values: 3}
  - {name: brand, kind: categorical, id_type: int64, table: genre}
  - {name: price, kind: numeric, log1p: true}
request_columns: [bid, margin]
events:
  - {name: click, cap: 8, attributes: [{name: dwell, kind: numeric}]}
  - {name: impression, cap: 8}
tasks: [{name: click}, {name: like}]
value: bid * p_click + p_like
slice: surface
max_candidates: 50
"""


def shop_schema(**changes: object) -> Schema:
    """The schema above, with top-level keys replaced."""
    return Schema.model_validate(parse_yaml(Schema, SCHEMA).model_dump() | changes)


class FixedScorer:
    """Stands in for the core: probabilities depend on the user's and the item's key only. `fail` makes calls raise."""

    def __init__(self, schema: Schema, store: RedisStore) -> None:
        self._schema, self._store = schema, store
        self.fail: list[Exception] = []
        self.requests: list[RankRequest] = []
        self.changed: list[int] = []
        self.hold: asyncio.Event | None = None
        self.entered = threading.Event()

    def probabilities(self, user_key: int, item_keys: np.ndarray) -> np.ndarray:
        """float32 [C, tasks] in (0, 1)."""
        mixed = (item_keys ^ user_key).astype(np.uint64)[:, None] * np.array([3, 5], dtype=np.uint64)
        return ((mixed % np.uint64(997)).astype(np.float32) + 1) / 1000

    async def rank(self, request: RankRequest) -> RankResult:
        self.requests.append(request)
        self.entered.set()
        if self.hold is not None:
            await self.hold.wait()
        if self.fail:
            raise self.fail.pop(0)
        inputs = await self._store.read_rank_inputs(request.user_id, request.candidates.keys[:0], 1.0)
        p = self.probabilities(request.user_key, request.candidates.keys)
        columns = {f"p_{t.name}": p[:, i].astype(np.float64) for i, t in enumerate(self._schema.tasks)}
        values = ValueExpression.parse(self._schema.value).evaluate(columns | dict(request.candidates.columns))
        order = np.argsort(-values, kind="stable")[: request.top_k or len(p)]
        events = sum(len(h) for h in inputs.histories.values())
        return RankResult(
            model=MODEL,
            version=VERSION,
            order=order,
            probabilities=p[order],
            values=values[order],
            rung=Rung.FULL,
            rung_reason="",
            newest_event_age_ms=-1 if not events else 5,
            history_length=events,
            user_state_cached=False,
            unknown_items=1,
            unknown_user=not events,
            times=StageTimes(0.001, 0.002, 0.003, 0.004),
        )

    async def record_events(self, events: Sequence[UserEvent]) -> RecordedEvents:
        return await self._store.record_events(events)

    async def forget_user(self, user_id: str) -> bool:
        return await self._store.delete_user(user_id)

    def items_changed(self, keys: np.ndarray | None) -> None:
        self.changed += [] if keys is None else keys.tolist()

    def users_stored(self, user_ids: Sequence[str]) -> None:
        self.changed += user_ids


class ProtocolServer:
    """A running server; `run` executes a coroutine on its loop."""

    def __init__(self, schema: Schema, loop: asyncio.AbstractEventLoop) -> None:
        self.schema, self.loop = schema, loop
        self.metrics = ServingMetrics()
        self.signer = ReceiptSigner({0: b"k" * 32}, 0)
        self.guard = Guard(MAX_MESSAGE_BYTES, self.metrics)
        self.address = ""

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=20)

    def sample(self, name: str, **labels: str) -> float:
        """The value of a metric, NaN when the series does not exist."""
        value = self.metrics.registry.get_sample_value(name, labels)
        return float("nan") if value is None else value

    async def start(self) -> None:
        self.store = await open_store("embedded", self.schema)
        self.scorer = FixedScorer(self.schema, self.store)
        front_end = os.environ.get("KUNLUN_TEST_FRONT_END", "grpcio")
        config = ServerConfig(repository=Path(), port=0, max_message_bytes=MAX_MESSAGE_BYTES, front_end=front_end)  # type: ignore[arg-type]
        self._server = open_grpc_server(config, self.guard)
        messages = RankMessages(self.schema, MODEL, VERSION)
        ranker_pb2_grpc.add_RankerServicer_to_server(
            RankerService(self.scorer, messages, self.signer, self.guard, default_deadline_s=1.0), self._server
        )
        events_pb2_grpc.add_EventsServicer_to_server(
            EventsService(self.scorer, EventMessages(self.schema), self.metrics), self._server
        )
        features_pb2_grpc.add_FeaturesServicer_to_server(FeaturesService(self.store, self.scorer, self.schema), self._server)
        feedback_pb2_grpc.add_FeedbackServicer_to_server(
            FeedbackService(self.store, OutcomeMessages(self.signer), self.metrics), self._server
        )
        self.health = Health(self._server)
        self.address = bind(self._server, config)
        await self._server.start()
        self.guard.ready = True
        await self.health.serving()

    async def stop(self) -> None:
        await self._server.stop(1.0)
        await self.store.close()


@contextmanager
def protocol_server(schema: Schema | None = None) -> Iterator[ProtocolServer]:
    """Start a server on a free port; everything is gone afterwards."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = ProtocolServer(schema or shop_schema(), loop)
    try:
        server.run(server.start())
        yield server
        server.run(server.stop())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
