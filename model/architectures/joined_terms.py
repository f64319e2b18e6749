"""FLOPs of `model.architectures.joined`. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from model.architectures.terms import linear


def joined_linear(requests: int, candidates: int, request_width: int, candidate_width: int, outputs: int) -> float:
    """`JoinedLinear`: the request's part once per request."""
    return linear(requests, request_width, outputs) + linear(candidates, candidate_width, outputs)


def joined_network(
    requests: int, candidates: int, request_width: int, candidate_width: int, hidden: Sequence[int], tasks: int
) -> float:
    """`JoinedNetwork`."""
    flops = joined_linear(requests, candidates, request_width, candidate_width, hidden[0])
    for inputs, outputs in zip(hidden, (*hidden[1:], tasks), strict=True):
        flops += linear(candidates, inputs, outputs)
    return flops
