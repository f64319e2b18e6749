"""Encode on write: nobody twice at once, nothing asked for is lost, and a failure ends nothing."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

import pytest

from serving.core.write_encoder import CONCURRENT, WriteEncoder


class Encoding:
    """Encodes that end when the gate opens; counts them and how many ran together."""

    def __init__(self, fails: frozenset[str] = frozenset()) -> None:
        self.gate, self.fails = asyncio.Event(), fails
        self.done: Counter[str] = Counter()
        self.running: Counter[str] = Counter()
        self.together: Counter[str] = Counter()
        self.most = 0

    async def __call__(self, user_id: str) -> None:
        self.running[user_id] += 1
        self.together[user_id] = max(self.together[user_id], self.running[user_id])
        self.most = max(self.most, self.running.total())
        await self.gate.wait()
        self.running[user_id] -= 1
        if user_id in self.fails:
            raise RuntimeError("no store")
        self.done[user_id] += 1


def test_a_user_written_during_the_encode_is_encoded_again_afterwards() -> None:
    async def main() -> None:
        encoding = Encoding()
        encoder = WriteEncoder(encoding)
        for user in ("ann", "bob"):
            encoder.request(user)
        while encoding.running.total() < 2:
            await asyncio.sleep(0)
        for _ in range(5):
            encoder.request("ann")
            await asyncio.sleep(0)
        encoding.gate.set()
        await encoder.settle()
        assert encoding.done == {"ann": 2, "bob": 1}
        assert encoding.together["ann"] == 1

    asyncio.run(main())


def test_many_users_share_a_few_workers() -> None:
    async def main() -> None:
        encoding = Encoding()
        encoder = WriteEncoder(encoding)
        for n in range(50):
            encoder.request(str(n))
        await asyncio.sleep(0)
        encoding.gate.set()
        await encoder.settle()
        assert (encoding.done.total(), encoding.most) == (50, CONCURRENT)

    asyncio.run(main())


def test_a_failed_encode_is_logged_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        users = [str(n) for n in range(3 * CONCURRENT)]
        encoding = Encoding(fails=frozenset(users[:CONCURRENT]))
        encoder = WriteEncoder(encoding)
        encoding.gate.set()
        for user in users:
            encoder.request(user)
        await encoder.settle()
        assert set(encoding.done) == set(users[CONCURRENT:])

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert len([r for r in caplog.records if "encoding after a write failed" in r.message]) == CONCURRENT
