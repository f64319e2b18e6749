"""The people of one worker: their segments, the histories that the server has of them, and the truth about their clicks.

Every worker has people of its own, under names of its own, so it knows all their events. Histories count what was acknowledged;
a Rank that meets an event in flight may see one more than the truth does. Positions have no effect here: clicks follow the
position-free truth (`model.data.synthetic_world`), which is what the model predicts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kunlun.client import Client, Event
from loadtest.openloop.workload import bounded_pareto
from model.data.synthetic import CART, CLICK, Histories, SimulatedEvent, category_name, item_name
from model.data.synthetic_world import SyntheticConfig, World, interest, position_free
from model.schema import load_schema

HISTORY_MAX, HISTORY_TAIL = 96, 1.2
DAYS_BACK = 5.0
CART_SHARE = 0.25
BATCH = 100

Done = tuple[int, str, int, int]
"""Person, event type, item, time in ms."""


class Population:
    """`directory`: a synthetic log, whose world this is; `prefix`: of the people's names."""

    def __init__(self, directory: Path, people: int, prefix: str, rng: np.random.Generator) -> None:
        about = directory / "dataset.json"
        if not about.is_file():
            raise ValueError(f"world: expected the directory of a log (kunlun prepare), found no {about}")
        source = json.loads(about.read_text(encoding="utf-8"))["source"]
        if source["kind"] != "synthetic":
            raise ValueError(f"world: expected a log of `kunlun prepare --source synthetic`, found {source['kind']!r}")
        self.config = SyntheticConfig(**source["parameters"])
        self._world = World.draw(self.config, np.random.default_rng(self.config.seed))
        self._prefix, self._rng, self._people = prefix, rng, people
        self._segment = rng.integers(0, self.config.segments, people)
        self._histories = Histories(
            SyntheticConfig(**source["parameters"] | {"users": people}), load_schema(directory / "schema.yaml")
        )
        self._numbers = 0

    def name(self, person: int) -> str:
        """Id of a person."""
        return f"{self._prefix}-{person}"

    def introduce(self, client: Client, history_mean: float) -> int:
        """Tell the server everybody's segment and a heavy-tailed past; returns how many events. Raises `KunlunError`."""
        everybody = range(self._people)
        client.put_users([self.name(p) for p in everybody], {"segment": [f"segment-{s}" for s in self._segment]})
        lengths = bounded_pareto(history_mean, HISTORY_MAX, HISTORY_TAIL, self._rng, self._people)
        now_ms, past = int(time.time() * 1e3), list[Done]()
        for person, length in enumerate(lengths.tolist()):
            items = self._rng.choice(self.config.items, length, p=self._world.item_popularity)
            ages = np.sort(self._rng.uniform(0.1, DAYS_BACK, length))[::-1] * 86_400e3
            kinds = np.where(self._rng.random(length) < CART_SHARE, CART, CLICK)
            past += [(person, k, i, now_ms - int(a)) for k, i, a in zip(kinds.tolist(), items.tolist(), ages, strict=True)]
        for start in range(0, len(past), BATCH):
            batch = past[start : start + BATCH]
            sent = self.events(batch)
            client.record_events(sent)
            self.remember(batch, sent)
        return len(past)

    def events(self, done: Sequence[Done]) -> list[Event]:
        """What to send of what people have done."""
        return [
            Event(self.name(person), kind, item_name(item), {"category": self._category(item)}, time_ms=time_ms)
            for person, kind, item, time_ms in done
        ]

    def remember(self, done: Sequence[Done], sent: Sequence[Event]) -> None:
        """That these events have just been acknowledged."""
        now_ms = int(time.time() * 1e3)
        for (person, kind, item, time_ms), event in zip(done, sent, strict=True):
            known = SimulatedEvent(event.event_id, person, kind, item, time_ms, now_ms)
            self._histories.add(known, int(self._world.item_category[item]))

    def probabilities(self, person: int, items: NDArray[np.int64], surface: int, shown: int) -> NDArray[np.float64]:
        """True click probabilities of `items`, as the server could know them now."""
        now_ms = int(time.time() * 1e3)
        clicks, carts = (self._histories.read(kind, person, now_ms) for kind in (CLICK, CART))
        since_s = (now_ms - int(clicks["time_ms"].max())) / 1000 if len(clicks) else 0.0
        wanted = interest(self.config, clicks["category"], carts["category"], since_s)
        static = self._world.static_logits(self.config, items, int(self._segment[person]), surface)
        return position_free(self.config, static + wanted[self._world.item_category[items]], shown)

    def _category(self, item: int) -> str:
        return category_name(int(self._world.item_category[item]))

    def any_item(self) -> int:
        """An item, by popularity."""
        return int(self._rng.choice(self.config.items, p=self._world.item_popularity))
