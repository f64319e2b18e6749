"""Names of the store's keys. All keys of one user carry the same hash tag, so a Cluster keeps them on one node.

``<prefix>:{<user>}:h:<event>:<layout>``  history: fixed-width records in arrival order
``<prefix>:{<user>}:v``                   history version: events ever stored for this user
``<prefix>:{<user>}:d``                   8-byte hashes of the newest event ids (deduplication window)
``<prefix>:{<user>}:u:<layout>``          user feature record
``<prefix>:i:<layout>:<item key>``        item feature record
``<prefix>:outcomes``                     stream of reported outcomes
``<prefix>:layouts``                      every ``h:<event>:<layout>`` and ``u:<layout>`` ever used, for deletion

`<user>` is a 128-bit hash of the user id: ids may hold any character, braces included, and raw ids
stay out of key listings. `<layout>` is the version of the record's dtype.
"""

from __future__ import annotations

import xxhash

from model.records import dtype_version, event_dtype, feature_dtype
from model.schema import Schema


class StoreKeys:
    """Builds keys for one schema."""

    def __init__(self, schema: Schema, prefix: str = "kunlun") -> None:
        self.prefix = prefix
        self.outcomes = f"{prefix}:outcomes"
        self._histories = {e.name: f"h:{e.name}:{dtype_version(event_dtype(e))}" for e in schema.events}
        self._user = f"u:{dtype_version(feature_dtype(schema.user))}"
        self.layouts = f"{prefix}:layouts"
        self.own_layouts = (*self._histories.values(), self._user)
        self.items = f"{prefix}:i:{dtype_version(feature_dtype(schema.item_features))}:"

    def tag(self, user_id: str) -> str:
        """The common beginning of a user's keys."""
        return f"{self.prefix}:{{{xxhash.xxh3_128_hexdigest(user_id.encode())}}}:"

    def history(self, tag: str, event: str) -> str:
        return tag + self._histories[event]

    def user(self, tag: str) -> str:
        return tag + self._user

    def item(self, key: int) -> str:
        return f"{self.items}{key}"


def version_key(tag: str) -> str:
    """The history version counter."""
    return tag + "v"


def window_key(tag: str) -> str:
    """The deduplication window."""
    return tag + "d"


def event_id_hash(event_id: str) -> bytes:
    """8-byte identity of an event inside the deduplication window."""
    return xxhash.xxh64_digest(event_id.encode())
