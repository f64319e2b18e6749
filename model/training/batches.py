"""Request-grouped batches: the user side once per request, the candidate side once per shown item.

Histories, users, contexts and items are encoded by the `FeatureEncoder` that the server uses, from
the same records, so a training example is what serving would have built at that moment. Training
alone hides things (`AugmentConfig`): whole or older parts of histories, and shown positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.data.request_log import RequestLog
from model.features import Affinities, Encoded, FeatureEncoder
from model.history import newest_event_ms
from model.records import TIME_MS
from model.training.config import AugmentConfig

MAX_POSITION = 512


@dataclass(frozen=True)
class EncodedTensors:
    """`Encoded` as tensors: rows int [..., index_width], dense float32 [..., ·]."""

    rows: Tensor
    dense: Tensor


@dataclass(frozen=True)
class HistoryTensors:
    """One event type: events [R, T, ·], age_s [R, T], lengths [R]."""

    events: EncodedTensors
    age_s: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Batch:
    """R requests and their C shown items."""

    users: EncodedTensors  # [R, ·]
    histories: dict[str, HistoryTensors]
    contexts: EncodedTensors  # [R, ·]
    items: EncodedTensors  # [C, ·]
    request_index: Tensor  # int64 [C]
    positions: Tensor  # int64 [C]; 0: unknown, else position + 1
    labels: Tensor  # float32 [C, tasks]; NaN: unknown

    @property
    def requests(self) -> int:
        return len(self.users.rows)

    @property
    def candidates(self) -> int:
        return len(self.request_index)

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`; copies from `pinned` memory to a GPU are queued behind its work, the host does not wait."""
        return self if device.type == "cpu" else self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self, device: torch.device) -> Batch:
        """The batch in host memory that `device` copies from by itself."""
        return self if device.type == "cpu" else self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Batch:
        def encoded(group: EncodedTensors) -> EncodedTensors:
            return EncodedTensors(change(group.rows), change(group.dense))

        histories = {
            event: HistoryTensors(encoded(h.events), change(h.age_s), change(h.lengths)) for event, h in self.histories.items()
        }
        return Batch(
            encoded(self.users),
            histories,
            encoded(self.contexts),
            encoded(self.items),
            change(self.request_index),
            change(self.positions),
            change(self.labels),
        )


class BatchMaker:
    """Builds batches from a request log; items are encoded once."""

    def __init__(self, log: RequestLog, encoder: FeatureEncoder) -> None:
        self.log, self.encoder = log, encoder
        self.items = encoder.encode_items(log.item_keys, log.items)

    def batch(
        self,
        requests: NDArray[np.int64],
        augment: AugmentConfig | None = None,
        rng: np.random.Generator | None = None,
        kept: NDArray[np.bool_] | None = None,
    ) -> Batch:
        """The batch of the given request numbers; `augment`, `rng` and `kept` [C] (of all shown items) in training only."""
        log, encoder = self.log, self.encoder
        histories = [log.histories(int(r)) for r in requests]
        if augment is not None and rng is not None:
            histories = [_hide(h, augment, rng) for h in histories]
        newest = [newest_event_ms(list(h.values())) for h in histories]
        newest_ms = np.array([-1 if n is None else n for n in newest], dtype=np.int64)
        counts = np.array([[len(h[e.name]) for e in log.schema.events] for h in histories], dtype=np.int64)
        users = log.user_index[requests]
        encoded = {}
        for event in log.schema.events:
            own = [h[event.name] for h in histories]
            length = max(1, max(map(len, own)))
            h = encoder.encode_histories(event, own, newest, length)
            encoded[event.name] = HistoryTensors(_tensors(h.events), torch.from_numpy(h.age_s), torch.from_numpy(h.lengths))
        shown = log.rows_of(requests)
        request_index = np.repeat(np.arange(len(requests)), log.offsets[requests + 1] - log.offsets[requests])
        if kept is not None:
            shown, request_index = shown[kept[shown]], request_index[kept[shown]]
        item = log.item_index[shown]
        items, affinities = self._items(item, request_index, histories)
        positions = np.clip(log.positions[shown].astype(np.int64) + 1, 0, MAX_POSITION)
        if augment is not None and rng is not None:
            hidden = (rng.random(len(requests)) < augment.unknown_position)[request_index]
            positions = np.where(hidden, 0, positions)
        return Batch(
            users=_tensors(encoder.encode_users(log.users[users], log.user_keys[users], counts)),
            histories=encoded,
            contexts=_tensors(encoder.encode_context(log.contexts[requests], log.time_ms[requests], newest_ms, affinities)),
            items=_tensors(items),
            request_index=torch.from_numpy(request_index),
            positions=torch.from_numpy(positions),
            labels=torch.from_numpy(log.labels[shown]),
        )

    def _items(
        self, item: NDArray[np.int64], request_index: NDArray[np.int64], histories: list[dict[str, NDArray[np.void]]]
    ) -> tuple[Encoded, list[Affinities]]:
        """Encoded candidates [C], and the affinities per request."""
        rows, dense = self.items.rows[item], self.items.dense[item]
        if not self.log.schema.affinities:
            return Encoded(rows, dense), []
        bounds = np.searchsorted(request_index, np.arange(len(histories) + 1))
        affinities = [
            self.encoder.encode_affinities(rows[start:end], self.encoder.affinity_record(h))
            for h, start, end in zip(histories, bounds[:-1], bounds[1:], strict=True)
        ]
        return Encoded(rows, np.concatenate([dense, np.concatenate([a.items for a in affinities])], axis=1)), affinities


def _hide(
    histories: dict[str, NDArray[np.void]], augment: AugmentConfig, rng: np.random.Generator
) -> dict[str, NDArray[np.void]]:
    """Empty all histories of one request, or forget all before one time: impressions go together with their clicks."""
    draw = rng.random()
    if draw < augment.empty_history:
        return {e: h[:0] for e, h in histories.items()}
    if draw < augment.empty_history + augment.truncated_history:
        times = np.sort(np.concatenate([h[TIME_MS] for h in histories.values()]))
        first = len(times) - int(len(times) * rng.random())
        if first == len(times):
            return {e: h[:0] for e, h in histories.items()}
        return {e: h[np.searchsorted(h[TIME_MS], times[first]) :] for e, h in histories.items()}
    return histories


def _tensors(encoded: Encoded) -> EncodedTensors:
    return EncodedTensors(torch.from_numpy(encoded.rows), torch.from_numpy(encoded.dense))
