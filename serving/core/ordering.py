"""From probabilities to an ordered list: the value expression, the popularity prior, the sanity check."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from model.artifact import Artifact
from model.schema import Schema
from model.value_expression import ValueExpression


class Ordering:
    """Orders candidates by the schema's value expression, ties by input position."""

    def __init__(self, schema: Schema) -> None:
        self._expression = ValueExpression.parse(schema.value)
        self._tasks = [t.name for t in schema.tasks]
        self._columns = sorted(self._expression.names & set(schema.request_columns))

    def order(
        self, probabilities: NDArray[np.float32], columns: Mapping[str, NDArray[np.float64]], top_k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """`columns`: all that the value expression reads, which the protocol has made sure of.

        Positions of the best `top_k` (0: all), best first, and the values of all candidates [C].

        A value that is no number (a logarithm of a negative bid, say) ranks last.
        """
        named = {f"p_{task}": probabilities[:, i].astype(np.float64) for i, task in enumerate(self._tasks)}
        named |= {name: columns[name] for name in self._columns}
        lowest = np.finfo(np.float64).min
        values = np.broadcast_to(self._expression.evaluate(named), (len(probabilities),))
        if not np.isfinite(values).all():
            values = np.nan_to_num(values, nan=lowest, neginf=lowest)
        order = np.argsort(-values, kind="stable")
        return (order[:top_k] if top_k else order), values


class PopularityPrior:
    """The last rung: smoothed rates per item, no model."""

    def __init__(self, artifact: Artifact) -> None:
        prior = artifact.prior
        self._keys, self._rates, self._default = prior["keys"], prior["rates"], prior["default"]

    def probabilities(self, keys: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rates [C, tasks]; items never shown in training get the base rate."""
        if not len(self._keys):
            return np.tile(self._default, (len(keys), 1)).astype(np.float32)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        known = (self._keys[at] == keys)[:, None]
        return np.where(known, self._rates[at], self._default).astype(np.float32)


def are_sane(probabilities: NDArray[np.float32]) -> bool:
    """True when every probability is a number in [0, 1]: nothing else may leave the server."""
    return bool(np.all((probabilities >= 0) & (probabilities <= 1)))
