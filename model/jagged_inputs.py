"""Padded inputs of `encode_user` → those of its jagged form. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def jagged_inputs(padded: Mapping[str, NDArray[Any]], events: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Inputs as in `encode_user_signature` → inputs as in `jagged_encode_signature`, without a row to spare."""
    inputs = {name: array for name, array in padded.items() if name in ("user_rows", "user_dense")}
    for event in events:
        lengths, age = padded[f"{event}_length"], padded[f"{event}_age"]
        real = np.arange(age.shape[1])[None, :] < lengths[:, None]
        for name in (f"{event}_rows", f"{event}_dense", f"{event}_age"):
            if name in padded:
                inputs[name] = padded[name][real]
        inputs[f"{event}_offsets"] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return inputs
