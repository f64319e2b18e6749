"""The priority of an unparsed message: what protobuf would say, and nothing worse than False for other bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kunlun.v1 import ranker_pb2, types_pb2
from serving.protocol.raw_priority import asks_high_priority


@given(
    st.integers(0, 2**31 - 1) | st.sampled_from(types_pb2.Priority.values()),
    st.lists(st.text(max_size=300), max_size=20),
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
)
def test_it_says_what_protobuf_says(priority: int, keys: list[str], time_ms: int, twice: bool) -> None:
    message = ranker_pb2.RankRequest(
        user_id="u" * 200, candidates=types_pb2.ItemIds(keys=keys), time_ms=time_ms, top_k=300, priority=priority
    )
    data = message.SerializeToString()
    if twice:
        data += ranker_pb2.RankRequest(priority=types_pb2.PRIORITY_LOW).SerializeToString()
    assert asks_high_priority(data) == (ranker_pb2.RankRequest.FromString(data).priority == types_pb2.PRIORITY_HIGH)


@given(st.binary(max_size=200))
def test_any_bytes_are_answered(data: bytes) -> None:
    assert asks_high_priority(data) in (True, False)


def test_a_truncated_message_has_normal_priority() -> None:
    data = ranker_pb2.RankRequest(user_id="ann", priority=types_pb2.PRIORITY_HIGH).SerializeToString()
    assert asks_high_priority(data)
    assert not asks_high_priority(data[:-1])
