"""The near cache of user features."""

from __future__ import annotations

import numpy as np
import pytest

from serving.core import user_features
from serving.core.user_features import UserFeatureCache
from serving.store.keys import user_hash

DTYPE = np.dtype([("age", "<f4")])


def aged(years: float) -> np.ndarray:
    return np.array([(years,)], DTYPE)


def test_features_and_their_absence_are_remembered() -> None:
    now = [0.0]
    cache = UserFeatureCache(DTYPE, 1 << 16, 10.0, clock=lambda: now[0])
    assert cache.lookup("ann") is None
    assert not cache.last_known("ann").is_stored
    assert cache.insert("ann", aged(33.0), cache.mark()).record["age"] == 33.0
    assert not cache.insert("bob", None, cache.mark()).is_stored
    ann, bob = cache.lookup("ann"), cache.lookup("bob")
    assert ann is not None
    assert ann.is_stored
    assert ann.record["age"].tolist() == [33.0]
    assert bob is not None
    assert not bob.is_stored
    assert np.isnan(bob.record["age"]).all()
    now[0] = 10.0
    assert cache.lookup("ann") is None
    assert cache.last_known("ann").record["age"].tolist() == [33.0]


def test_what_has_changed_since_it_was_read_is_not_remembered() -> None:
    cache = UserFeatureCache(DTYPE, 1 << 16, 10.0)
    mark = cache.mark()
    cache.forget({user_hash("ann")})
    cache.insert("ann", aged(33.0), mark)
    cache.insert("bob", aged(44.0), mark)
    assert cache.lookup("ann") is None
    assert cache.lookup("bob") is not None
    cache.forget(set())
    assert cache.lookup("bob") is not None
    cache.doubt()
    assert cache.lookup("bob") is None
    assert cache.last_known("bob").is_stored
    cache.forget(None)
    assert not cache.last_known("bob").is_stored


def test_users_whose_keys_collide_do_not_get_each_others_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_features, "user_hash", lambda user: "00" * 8 + user_hash(user)[:16])
    cache = UserFeatureCache(DTYPE, 1 << 16, 10.0)
    cache.insert("ann", aged(33.0), cache.mark())
    assert cache.lookup("bob") is None
    assert not cache.last_known("bob").is_stored
    cache.insert("bob", aged(44.0), cache.mark())
    assert cache.lookup("ann") is None
    found = cache.lookup("bob")
    assert found is not None
    assert found.record["age"].tolist() == [44.0]
