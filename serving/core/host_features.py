"""Records → graph inputs on the host: encode, gather embedding rows, stack rows into padded batches.

Called by the reader and the ranker (per request, on the event loop) and by the slots (stacking, in
their threads). Everything is vectorised over candidates and events. What an item's record becomes
depends on nothing else, so it is kept beside the record, in one row (`ItemRows`): a cached item is
not encoded again. Padding candidates point to request 0, and the graphs mask what lies beyond a
history's length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.affinity import AffinityRecord
from model.artifact import Artifact
from model.features import gather
from model.records import Records, feature_dtype
from model.signature import REQUEST_INDEX, GraphSignature, encode_user_signature, score_candidates_signature
from model.tensor_spec import CANDIDATES, history_size

Rows = dict[str, NDArray[Any]]
ItemRows = NDArray[np.void]
"""Items as cached: the record (`RECORD`), whether the model has a row of its own for it (`IS_KNOWN`), its graph inputs without
affinities, and where the schema has these, the numbers of its table rows (`TABLE_ROWS`)."""

RECORD, IS_KNOWN, TABLE_ROWS = "record", "is_known", "table_rows"


@dataclass(frozen=True)
class ScoreInputs:
    """Host tensors of one request: `context` [1, …], `items` [C, …] (not dense); `unknown_items` have no row of their own."""

    context: Rows
    items: Rows
    unknown_items: int


class HostFeatures:
    """Builds inputs of both graphs of one artifact."""

    def __init__(self, artifact: Artifact) -> None:
        self.encoder = artifact.encoder
        self.tables = {name: np.asarray(table) for name, table in artifact.tables.items()}  # plain views index faster
        self.schema, self.layout = artifact.schema, artifact.encoder.layout
        self.encode_signature = encode_user_signature(artifact.schema, artifact.config)
        self.score_signature = score_candidates_signature(artifact.schema, artifact.config)
        self.states = tuple(spec.name for spec in self.encode_signature.outputs)
        inputs = [s for s in self.score_signature.inputs if s.shape[0] == CANDIDATES and s.name != REQUEST_INDEX]
        self._item_inputs = [spec.name for spec in inputs]
        item = self.layout.item
        self._has_affinities = bool(artifact.schema.affinities)
        widths = {"item_rows": item.embedded_width, "item_dense": len(item.dense) - len(item.affinities)}
        own: list[tuple[str, str, tuple[int, ...]]] = [(s.name, s.dtype, (widths[s.name],)) for s in inputs]
        if self._has_affinities:
            own.append((TABLE_ROWS, "int32", (item.index_width,)))
        self.item_dtype = np.dtype([(RECORD, feature_dtype(artifact.schema.item_features)), (IS_KNOWN, np.int32), *own])

    def is_known_user(self, user_key: int) -> bool:
        """True when the model has a row for this user id (or the schema embeds none)."""
        table = self.schema.user_id_table
        return table is None or bool(self.encoder.lookup(table, np.array([user_key], np.int64))[0])

    def user_inputs(
        self, user: Records, user_key: int, histories: Mapping[str, Records], newest_ms: int | None, steps: Mapping[str, int]
    ) -> Rows:
        """`encode_user` tensors of one user [1, …], histories padded to `steps`."""
        counts = np.array([[len(histories[e.name]) for e in self.schema.events]], dtype=np.int64)
        users = self.encoder.encode_users(user, np.array([user_key], np.int64), counts)
        rows: Rows = {"user_rows": gather(self.layout.user, users.rows, self.tables), "user_dense": users.dense}
        for event in self.schema.events:
            name = event.name
            history = self.encoder.encode_histories(event, [histories[name]], [newest_ms], steps[name])
            rows[f"{name}_rows"] = gather(self.layout.events[name], history.events.rows, self.tables)
            rows[f"{name}_dense"], rows[f"{name}_age"] = history.events.dense, history.age_s
            rows[f"{name}_length"] = history.lengths
        return {spec.name: rows[spec.name] for spec in self.encode_signature.inputs}

    def affinity_record(self, histories: Mapping[str, Records]) -> AffinityRecord:
        """What affinities need of the histories that a user's state is made of; belongs to that state."""
        return self.encoder.affinity_record(histories)

    def encode_items(self, keys: NDArray[np.int64], records: Records) -> ItemRows:
        """Rows of items [C], a function of key and record alone."""
        encoded = self.encoder.encode_items(keys, records)
        tensors = {"item_rows": gather(self.layout.item, encoded.rows, self.tables), "item_dense": encoded.dense}
        items = np.empty(len(keys), self.item_dtype)
        items[RECORD], items[IS_KNOWN] = records, encoded.rows[:, 0] != 0
        for name in self._item_inputs:
            items[name] = tensors[name]
        if self._has_affinities:
            items[TABLE_ROWS] = encoded.rows
        return items

    def score_inputs(
        self, items: ItemRows, context: Records, request_ms: int, newest_ms: int | None, record: AffinityRecord
    ) -> ScoreInputs:
        """`score_candidates` tensors of one request, without its state; `newest_ms` and `record` of the histories behind it."""
        newest = np.array([-1 if newest_ms is None else newest_ms], np.int64)
        tensors = {name: items[name] for name in self._item_inputs}
        affinities = []
        if self._has_affinities:
            affinities.append(self.encoder.encode_affinities(items[TABLE_ROWS], record))
            tensors["item_dense"] = np.concatenate([items["item_dense"], affinities[0].items], axis=1)
        contexts = self.encoder.encode_context(context, np.array([request_ms], np.int64), newest, affinities)
        shared = {"context_rows": gather(self.layout.context, contexts.rows, self.tables), "context_dense": contexts.dense}
        return ScoreInputs(
            {k: v for k, v in shared.items() if v.shape[1]},
            tensors,
            int(len(items) - np.count_nonzero(items[IS_KNOWN])),
        )

    def zeros(self, signature: GraphSignature, sizes: Mapping[str, int]) -> Rows:
        """All-zero inputs of a graph, for warm-up and measurements. Histories fill their steps: an engine of jagged rows does
        the work, and takes the bucket, that `sizes` stand for."""
        rows = {
            spec.name: np.zeros([sizes[s] if isinstance(s, str) else s for s in spec.shape], dtype=spec.dtype)
            for spec in signature.inputs
        }
        for event in self.schema.events:
            if (lengths := rows.get(f"{event.name}_length")) is not None:
                lengths[:] = sizes[history_size(event.name)]
        return rows


def stack_users(users: Sequence[Rows], padded: int) -> Rows:
    """Tensors of several users of one level → a batch of `padded` rows."""
    if len(users) == padded == 1:
        return users[0]
    return {name: _padded([rows[name] for rows in users], padded) for name in users[0]}


def stack_requests(
    states: Sequence[Rows],
    contexts: Sequence[Rows],
    items: Sequence[Rows],
    padded_requests: int,
    padded_candidates: int,
) -> Rows:
    """Per request its state [1, …], context [1, …] and items [C_i, …] → one padded `score_candidates` batch."""
    batch = {name: _padded([rows[name] for rows in states], padded_requests) for name in states[0]}
    batch |= {name: _padded([rows[name] for rows in contexts], padded_requests) for name in contexts[0]}
    batch |= {name: _padded([rows[name] for rows in items], padded_candidates) for name in items[0]}
    index = np.zeros(padded_candidates, dtype=np.int64)
    counts = [len(next(iter(rows.values()))) for rows in items]
    index[: sum(counts)] = np.repeat(np.arange(len(counts)), counts)
    batch[REQUEST_INDEX] = index
    return batch


def _padded(parts: Sequence[NDArray[Any]], rows: int) -> NDArray[Any]:
    """Parts one below the other, zero rows after them; dense, which item tensors are not (they are columns of `ItemRows`)."""
    if len(parts) == 1 and len(parts[0]) == rows:
        return np.ascontiguousarray(parts[0])
    out = np.empty((rows, *parts[0].shape[1:]), dtype=parts[0].dtype)
    at = 0
    for part in parts:
        out[at : at + len(part)] = part
        at += len(part)
    out[at:] = 0
    return out
