"""The Features service: records of items and users put in the store while the server runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kunlun.v1 import features_pb2, features_pb2_grpc
from model.records import Records
from model.schema import Schema
from serving.core.errors import InvalidField
from serving.protocol.columns import ColumnReader, item_keys
from serving.protocol.limits import MAX_RECORDS, MAX_USER_ID, check_text


class StoresFeatures(Protocol):
    """The part of the store this service calls."""

    async def put_items(self, keys: NDArray[np.int64], records: Records) -> None:
        """Store item feature records."""
        ...

    async def put_users(self, user_ids: list[str], records: Records) -> None:
        """Store user feature records."""
        ...


class HearsOfFeatures(Protocol):
    """The part of the core that keeps features."""

    def items_changed(self, keys: NDArray[np.int64] | None) -> None:
        """Item features of `keys` have changed in the store."""
        ...

    def users_stored(self, user_ids: Sequence[str]) -> None:
        """Features of these users have been stored."""
        ...


class FeaturesService(features_pb2_grpc.FeaturesServicer):
    """Answers `kunlun.v1.Features`."""

    def __init__(self, store: StoresFeatures, core: HearsOfFeatures, schema: Schema) -> None:
        self._store, self._core, self._schema = store, core, schema
        self._items = ColumnReader(schema, schema.item_features, "an item feature")
        self._users = ColumnReader(schema, schema.user, "a user feature")

    async def PutItems(  # noqa: N802  the name is the API's
        self, message: features_pb2.PutItemsRequest, context: Any
    ) -> features_pb2.PutItemsResponse:
        """Store whole item records."""
        keys = item_keys("items", message.items, self._schema, MAX_RECORDS)
        await self._store.put_items(keys, self._items.records("features", message.features, len(keys)))
        self._core.items_changed(keys)  # the store's own word comes a moment later
        return features_pb2.PutItemsResponse(stored=len(keys))

    async def PutUsers(  # noqa: N802  the name is the API's
        self, message: features_pb2.PutUsersRequest, context: Any
    ) -> features_pb2.PutUsersResponse:
        """Store whole user records."""
        users = list(message.user_ids)
        if not 0 < len(users) <= MAX_RECORDS:
            raise InvalidField("user_ids", f"1 to {MAX_RECORDS} user(s)", f"{len(users)}")
        for at, user in enumerate(users):
            check_text(f"user_ids[{at}]", user, MAX_USER_ID)
        if len(set(users)) < len(users):
            raise InvalidField("user_ids", "distinct users", f"{len(users) - len(set(users))} repeated")
        await self._store.put_users(users, self._users.records("features", message.features, len(users)))
        self._core.users_stored(users)
        return features_pb2.PutUsersResponse(stored=len(users))
