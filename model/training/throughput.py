"""What training achieves: examples per second, padding, and MFU, useful and padded.

FLOPs of a step are three times those of its forward pass (one forward, two backward products per product), by the formulas
that serving is priced with (`model.flops`). *Useful* counts every request's real history lengths, *padded* the lengths
that the batch is padded to, in the form that engines run. Where that form has every history at its cap, or meets the states
of all requests (`exact`, target pooling, baselines that keep events in their state), training runs less than *padded* says.
Both are shares of one peak (`model.training.peak`). Embedding gathers and optimizers do no matrix products: time only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from model.flops import FlopModel
from model.training.batches import Batch

FORWARD_AND_BACKWARD = 3.0
Terms = TypeVar("Terms")
KEPT_TERMS = 1 << 16
"""Combinations of lengths whose terms are remembered at a time."""


@dataclass(frozen=True)
class Work:
    """What a batch, or several, came to."""

    requests: int = 0
    candidates: int = 0
    useful_flops: float = 0.0
    padded_flops: float = 0.0
    events: int = 0
    padded_events: int = 0
    seconds: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def padding(self) -> float:
        """Share of the padded history steps that hold no event."""
        return 1 - self.events / self.padded_events if self.padded_events else 0.0

    def figures(self, peak_flops: float | None) -> dict[str, Any]:
        """For progress and ``metrics.jsonl``; MFU is None without a known peak."""
        seconds = max(self.seconds, 1e-9)

        def mfu(flops: float) -> float | None:
            return None if peak_flops is None else round(flops / seconds / peak_flops, 5)

        return {
            "examples_per_s": round(self.candidates / seconds, 1),
            "requests_per_s": round(self.requests / seconds, 1),
            "mfu": mfu(self.useful_flops),
            "mfu_padded": mfu(self.padded_flops),
            "padding": round(self.padding, 4),
        }


@dataclass
class BatchFlops:
    """Work of batches. Terms of combinations of lengths are remembered, as the same ones come again and again."""

    model: FlopModel
    _encode: dict[tuple[int, ...], float] = field(default_factory=dict)
    _score: dict[tuple[int, ...], tuple[float, float]] = field(default_factory=dict)

    def work(self, batch: Batch) -> Work:
        """Of a batch on the host, but for its seconds."""
        names = list(batch.histories)
        lengths = list(zip(*(batch.histories[name].lengths.tolist() for name in names), strict=True))
        padded = {name: int(batch.histories[name].age_s.shape[1]) for name in names}
        encode = sum(self._encode_flops(names, own) for own in lengths)
        shown = batch.request_index.bincount(minlength=batch.requests).tolist()
        score = sum(self._score_flops(names, own, count) for own, count in zip(lengths, shown, strict=True))
        executed = batch.requests * self.model.encode(padded, executed=True).total
        executed += self.model.score(batch.requests, batch.candidates, executed=True, lengths=padded).total
        return Work(
            requests=batch.requests,
            candidates=batch.candidates,
            useful_flops=FORWARD_AND_BACKWARD * (encode + score),
            padded_flops=FORWARD_AND_BACKWARD * executed,
            events=sum(map(sum, lengths)),
            padded_events=batch.requests * sum(padded.values()),
        )

    def _encode_flops(self, names: list[str], lengths: tuple[int, ...]) -> float:
        found = self._encode.get(lengths)
        if found is None:
            found = self.model.encode(dict(zip(names, lengths, strict=True))).total
            _remember(self._encode, lengths, found)
        return found

    def _score_flops(self, names: list[str], lengths: tuple[int, ...], shown: int) -> float:
        found = self._score.get(lengths)
        if found is None:
            own = dict(zip(names, lengths, strict=True))
            found = self.model.score(1, 0, lengths=own).total, self.model.score(0, 1, lengths=own).total
            _remember(self._score, lengths, found)
        return found[0] + shown * found[1]


def _remember(known: dict[tuple[int, ...], Terms], lengths: tuple[int, ...], terms: Terms) -> None:
    """Keep the terms of `lengths`, and no more than a log of any size can fill memory with."""
    if len(known) >= KEPT_TERMS:
        known.clear()
    known[lengths] = terms
