"""Synthetic request log with a known click probability: simulates users in time order and writes a canonical log.

Users arrive in sessions (Zipf activity), see random candidates in random order, click with the true
probability (`model.data.synthetic_world`) and sometimes add to the cart. Events arrive a little after
they happen, some late and out of order. What drives a user's interest is the history that had
*arrived*, selected by `model.history` like everywhere else: so the truth is a function of what a model
can see, and the Bayes NE can be reached. Deterministic by seed. Cost: about 0.2 ms per request, bounds included.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.config import PRESETS
from model.data.canonical import LogFile, write_log
from model.data.synthetic_bounds import Observations, Observed, bayes_figures
from model.data.synthetic_world import SyntheticConfig, World, interest, position_logits, sigmoid
from model.history import read_window, select_history
from model.schema import Schema, load_schema

START_MS = 1_767_225_600_000  # 2026-01-01 UTC
_EVENT = np.dtype([("category", "<i8"), ("time_ms", "<i8"), ("arrival_ms", "<i8")])
CLICK, CART = "click", "cart"


@dataclass(frozen=True)
class SimulatedEvent:
    """One event of a user (numbers of user and item); it happens at `time_ms` and is known from `arrival_ms` on."""

    event_id: str
    user: int
    type: str
    item: int
    time_ms: int
    arrival_ms: int


class Histories:
    """Every user's events by type in arrival order, appended to as the simulation goes on."""

    def __init__(self, config: SyntheticConfig, schema: Schema) -> None:
        self._arrivals: dict[str, list[list[tuple[int, int, int]]]] = {
            e.name: [[] for _ in range(config.users)] for e in schema.events
        }
        self._caps = {e.name: e.cap for e in schema.events}

    def add(self, event: SimulatedEvent, category: int) -> None:
        rows = self._arrivals[event.type][event.user]
        bisect.insort(rows, (category, event.time_ms, event.arrival_ms), key=lambda row: row[2])

    def read(self, kind: str, user: int, now_ms: int) -> NDArray[np.void]:
        """What a server would have read at `now_ms`, oldest first."""
        rows, cap = self._arrivals[kind][user], self._caps[kind]
        arrived = bisect.bisect_left(rows, now_ms, key=lambda row: row[2])  # as `arrived_before`: strictly before
        window = np.array(rows[max(0, arrived - read_window(cap)) : arrived], dtype=_EVENT)
        return select_history(window, cap)


def synthetic_schema(history_cap: int | None = None) -> Schema:
    """The schema of the synthetic world; with `history_cap` clicks, and half as many carts, in place of its own caps."""
    schema = load_schema(PRESETS / "synthetic.schema.yaml")
    if history_cap is None:
        return schema
    caps = {CLICK: history_cap, CART: max(1, history_cap // 2)}
    sizes = {name: {"cap": cap, "capacity": max(2 * cap, read_window(cap))} for name, cap in caps.items()}
    events = [e.model_dump() | sizes[e.name] for e in schema.events]
    return Schema.model_validate(schema.model_dump() | {"events": events})


def generate(
    config: SyntheticConfig,
    directory: str | Path,
    progress: Callable[[int], None] = lambda done: None,
    schema: Schema | None = None,
) -> dict[str, Any]:
    """Simulate and write a canonical log; returns what ``dataset.json`` says, the Bayes figures included.

    Users do not influence each other, so with `config.shards` above 1 each share of the users is simulated by its own process
    from random numbers of its own: another log of the same world. It depends on the number of shards, not on the processes.
    The first shard's generator begins where the world's did (NumPy seeds [s, 0] as s); figures of sharded logs rest on it.
    """
    schema = schema or synthetic_schema()
    rng = np.random.default_rng(config.seed)
    world = World.draw(config, rng)
    users, times = _arrivals(config, world, rng)
    if config.shards == 1:
        done = _simulate(config, schema, world, users, times, np.arange(len(users)), rng, progress)
    else:
        done = _in_shards(config, schema, world, users, times, progress)
    progress(config.requests)
    requests = _request_table(done)
    events = done.events
    info = _info(config, users, requests, events) | {"bayes": {CLICK: bayes_figures(config, done.observed)}}
    requests["request_id"] = [f"r{n}" for n in range(len(users))]
    requests["time_ms"] = times.tolist()
    requests["user_id"] = [user_name(u) for u in users]
    tables = _entity_tables(world)
    tables |= {LogFile.REQUESTS: requests, LogFile.EVENTS: _event_table(world, events)}
    write_log(directory, schema, tables, info)
    return info


@dataclass(frozen=True)
class _Simulated:
    """Requests `numbers` [N] with their shown items [C] and what followed, in the order of `numbers`."""

    numbers: NDArray[np.int64]
    surface: NDArray[np.int64]
    items: NDArray[np.int64]
    clicked: NDArray[np.bool_]
    observed: Observed
    events: list[SimulatedEvent]
    event_of: NDArray[np.int64]  # number of the request that each event followed


def _simulate(
    config: SyntheticConfig,
    schema: Schema,
    world: World,
    users: NDArray[np.int64],
    times: NDArray[np.int64],
    numbers: NDArray[np.int64],
    rng: np.random.Generator,
    progress: Callable[[int], None] = lambda done: None,
) -> _Simulated:
    """Simulate the requests `numbers` of all `users` [·] and `times` [·], which are in time order."""
    histories, seen = Histories(config, schema), Observations(config)
    places = {n: position_logits(config, n) for n in range(config.min_shown, config.max_shown + 1)}
    surfaces: list[int] = []
    items: list[NDArray[np.int64]] = []
    clicked: list[NDArray[np.bool_]] = []
    events: list[SimulatedEvent] = []
    event_of: list[int] = []
    for done, number in enumerate(numbers.tolist(), 1):
        user, now_ms = int(users[number]), int(times[number])
        surface, segment = int(rng.integers(config.surfaces)), int(world.user_segment[user])
        shown = rng.choice(config.items, rng.integers(config.min_shown, config.max_shown + 1), False, world.item_popularity)
        clicks, carts = histories.read(CLICK, user, now_ms), histories.read(CART, user, now_ms)
        since_s = (now_ms - int(clicks["time_ms"].max())) / 1000 if len(clicks) else 0.0
        wanted = interest(config, clicks["category"], carts["category"], since_s)
        static = world.static_logits(config, shown, segment, surface)
        category = world.item_category[shown]
        probability = sigmoid(static + wanted[category] + places[len(shown)])
        labels = rng.random(len(shown)) < probability
        seen.add(user, segment, clicks["category"], carts["category"], since_s, wanted, category, static, probability)
        for place in np.flatnonzero(labels).tolist():
            for event in _consequences(config, rng, f"r{number}/{place}", user, int(shown[place]), now_ms):
                histories.add(event, int(world.item_category[event.item]))
                events.append(event)
                event_of.append(number)
        surfaces.append(surface)
        items.append(shown)
        clicked.append(labels)
        if done % 200 == 0:
            progress(done)
    return _Simulated(
        numbers,
        np.array(surfaces, np.int64),
        np.concatenate(items),
        np.concatenate(clicked),
        seen.columns(),
        events,
        np.array(event_of, np.int64),
    )


def _in_shards(
    config: SyntheticConfig,
    schema: Schema,
    world: World,
    users: NDArray[np.int64],
    times: NDArray[np.int64],
    progress: Callable[[int], None],
) -> _Simulated:
    parts, finished = [], 0
    with ProcessPoolExecutor(min(config.shards, os.cpu_count() or 1), mp_context=get_context("spawn")) as pool:
        own = [np.flatnonzero(users % config.shards == shard) for shard in range(config.shards)]
        futures = [
            pool.submit(_simulate, config, schema, world, users, times, numbers, np.random.default_rng([config.seed, shard]))
            for shard, numbers in enumerate(own)
            if len(numbers)
        ]
        for future in futures:
            parts.append(future.result())
            finished += len(parts[-1].numbers)
            progress(finished)
    return _joined(parts)


def _joined(parts: Sequence[_Simulated]) -> _Simulated:
    """All requests in the order of their numbers."""
    numbers = np.concatenate([p.numbers for p in parts])
    order = np.argsort(numbers)
    observed = Observed.joined([p.observed for p in parts])
    rows = observed.rows_of(order)
    event_of = np.concatenate([p.event_of for p in parts])
    by_request = np.argsort(event_of, kind="stable")
    events = [event for p in parts for event in p.events]
    return _Simulated(
        numbers[order],
        np.concatenate([p.surface for p in parts])[order],
        np.concatenate([p.items for p in parts])[rows],
        np.concatenate([p.clicked for p in parts])[rows],
        observed.taken(order),
        [events[e] for e in by_request.tolist()],
        event_of[by_request],
    )


def user_name(user: int) -> str:
    """Id of a user."""
    return f"u{user}"


def item_name(item: int) -> str:
    """Id of an item."""
    return f"i{item}"


def category_name(category: int) -> str:
    """Id of a category."""
    return f"category-{category}"


def _arrivals(config: SyntheticConfig, world: World, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Users and times of the requests, in time order: sessions start at random, requests follow each other within."""
    users, times = np.empty(0, np.int64), np.empty(0, np.int64)
    while len(users) < config.requests:
        count = 1 + int((config.requests - len(users)) / config.session_requests)
        lengths = rng.geometric(1 / config.session_requests, count)
        starts = rng.uniform(0, config.days * 86_400, count)
        gaps = rng.exponential(config.request_gap_s, lengths.sum()) + 1
        first = np.cumsum(lengths) - lengths
        elapsed = np.cumsum(gaps)
        elapsed -= np.repeat(elapsed[first], lengths)
        users = np.append(users, np.repeat(rng.choice(config.users, count, p=world.user_activity), lengths))
        times = np.append(times, START_MS + ((np.repeat(starts, lengths) + elapsed) * 1000).astype(np.int64))
    users, times = users[: config.requests], times[: config.requests]
    order = np.argsort(times, kind="stable")
    return users[order], times[order]


def _consequences(
    config: SyntheticConfig, rng: np.random.Generator, click_id: str, user: int, item: int, now_ms: int
) -> list[SimulatedEvent]:
    """A click some seconds after the request, and sometimes a cart after it; each arrives after its own delay."""
    clicked_ms = now_ms + 1_000 + int(rng.exponential(8_000))
    events = [SimulatedEvent(click_id, user, CLICK, item, clicked_ms, clicked_ms + _delay_ms(config, rng))]
    if rng.random() < config.cart_share:
        cart_ms = clicked_ms + 1_000 + int(rng.exponential(10_000))
        events.append(SimulatedEvent(f"{click_id}/cart", user, CART, item, cart_ms, cart_ms + _delay_ms(config, rng)))
    return events


def _delay_ms(config: SyntheticConfig, rng: np.random.Generator) -> int:
    mean_s = config.late_mean_s if rng.random() < config.late_share else 0.2
    return int(rng.exponential(1_000 * mean_s))


def _request_table(done: _Simulated) -> dict[str, list[Any]]:
    names = np.array([item_name(i) for i in range(int(done.items.max()) + 1)], dtype=object)
    lengths = done.observed.lengths
    ends = np.cumsum(lengths)[:-1]
    return {
        "surface": [f"surface-{s}" for s in done.surface.tolist()],
        "items": [shown.tolist() for shown in np.split(names[done.items], ends)],
        "positions": [np.arange(n, dtype=np.int32) for n in lengths.tolist()],
        "label_click": np.split(done.clicked.astype(np.uint8), ends),
        "truth_click": np.split(done.observed.truth.astype(np.float32), ends),
    }


def _entity_tables(world: World) -> dict[LogFile, dict[str, Any]]:
    items = {
        "item_id": [item_name(i) for i in range(len(world.item_price))],
        "category": [category_name(c) for c in world.item_category],
        "price": world.item_price.astype(np.float32),
    }
    segments = [f"segment-{s}" for s in world.user_segment]
    return {LogFile.ITEMS: items, LogFile.USERS: {"user_id": [user_name(u) for u in range(len(segments))], "segment": segments}}


def _event_table(world: World, events: list[SimulatedEvent]) -> dict[str, list[Any]]:
    categories = [category_name(world.item_category[e.item]) for e in events]
    table: dict[str, list[Any]] = {
        "event_id": [e.event_id for e in events],
        "user_id": [user_name(e.user) for e in events],
        "type": [e.type for e in events],
        "item_id": [item_name(e.item) for e in events],
        "time_ms": [e.time_ms for e in events],
        "arrival_ms": [e.arrival_ms for e in events],
    }
    for kind in (CLICK, CART):
        table[f"{kind}.category"] = [c if e.type == kind else None for c, e in zip(categories, events, strict=True)]
    return table


def _info(
    config: SyntheticConfig, users: NDArray[np.int64], requests: dict[str, list[Any]], events: list[SimulatedEvent]
) -> dict[str, Any]:
    return {
        "source": {"kind": "synthetic", "parameters": asdict(config)},
        "counts": {
            "requests": len(users),
            "impressions": sum(map(len, requests["items"])),
            "users": len(np.unique(users)),
            "items": config.items,
            "events": {kind: sum(e.type == kind for e in events) for kind in (CLICK, CART)},
            "positives": {CLICK: int(sum(label.sum() for label in requests["label_click"]))},
        },
        "rejected": {},
        "notes": {},
    }
