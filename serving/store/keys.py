"""Names of the store's keys. All keys of one user carry the same hash tag, so a Cluster keeps them on one node.

Feature records begin with a prefix of their own: replicas listen to what is written there (`store_changes`).

``<prefix>:{<user>}:h:<event>:<layout>``  history: fixed-width records in arrival order
``<prefix>:{<user>}:v``                   history version: events ever stored for this user
``<prefix>:{<user>}:d:<layouts>``         8-byte hashes of these histories' newest event ids (deduplication window)
``<prefix>:u:<layout>:{<user>}``          user feature record
``<prefix>:i:<layout>:<item key>``        item feature record
``<prefix>:{feedback}:…``                 outcomes and what is made of them (`serving.store.feedback_state`)
``<prefix>:{<user>}:s``                   sorted set: ids of the user's entries in the served log, by time in ms
``<prefix>:served``                       the served log: stream of what Ranks were answered from
``<prefix>:forgotten``                    sorted set: users (their hashes) who were deleted, by time in ms
``<prefix>:layouts``                      every ``h:…``, ``d:…`` and ``u:…`` ever used, for deletion

`<user>` is a 128-bit hash of the user id: ids may hold any character, braces included, and raw ids
stay out of key listings. `<layout>` is the version of the record (`model.records.record_version`).
"""

from __future__ import annotations

import xxhash

from model.records import event_dtype, feature_dtype, record_version
from model.schema import Schema


class StoreKeys:
    """Builds keys for one schema."""

    def __init__(self, schema: Schema, prefix: str = "kunlun") -> None:
        self.prefix = prefix
        self.feedback, self.forgotten = f"{prefix}:{{feedback}}:", f"{prefix}:forgotten"
        self.outcomes = f"{self.feedback}outcomes"
        self.served = f"{prefix}:served"
        self._histories = {
            e.name: f"h:{e.name}:{record_version(event_dtype(e), e.attributes, schema.hash, schema.item.id_type)}"
            for e in schema.events
        }
        self._user = f"u:{record_version(feature_dtype(schema.user), schema.user, schema.hash)}"
        self.users = f"{prefix}:{self._user}:"
        self._window = f"d:{xxhash.xxh3_64_hexdigest(' '.join(sorted(self._histories.values())).encode())[:8]}"
        self.layouts = f"{prefix}:layouts"
        self.own_layouts = (*self._histories.values(), self._user, self._window)
        items = record_version(feature_dtype(schema.item_features), schema.item_features, schema.hash, schema.item.id_type)
        self.items = f"{prefix}:i:{items}:"

    def tag(self, user_id: str) -> str:
        """The common beginning of a user's keys, but of the features'."""
        return f"{self.prefix}:{{{user_hash(user_id)}}}:"

    def history(self, tag: str, event: str) -> str:
        return tag + self._histories[event]

    def window(self, tag: str) -> str:
        """The deduplication window: another schema's histories have another, since they hold other events."""
        return tag + self._window

    def user(self, user_id: str) -> str:
        return f"{self.users}{{{user_hash(user_id)}}}"

    def of_layout(self, user_id: str, layout: str) -> str:
        """A user's key by one of the names in `layouts`."""
        return f"{self.prefix}:{layout}:{{{user_hash(user_id)}}}" if layout.startswith("u:") else self.tag(user_id) + layout

    def item(self, key: int) -> str:
        return f"{self.items}{key}"


def user_hash(user_id: str) -> str:
    """What stands for a user in the store: 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(user_id.encode())


def version_key(tag: str) -> str:
    """The history version counter."""
    return tag + "v"


def served_key(tag: str) -> str:
    """Where a user's entries are in the served log."""
    return tag + "s"


def event_id_hash(event_id: str) -> bytes:
    """8-byte identity of an event inside the deduplication window."""
    return xxhash.xxh64_digest(event_id.encode())
