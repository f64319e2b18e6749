"""Every acceptance test of the model has an id, A1 … A19; `pytest -k a17` finds those of one. What each promises:"""

from __future__ import annotations

import re
from pathlib import Path

PROMISES = {
    1: "GDPA equals a two-layer network generated per sample",
    2: "gradients of q, k, v and gain, for each activation and for the fused kernels",
    3: "`raw` reduces to Q(KᵀV), ReLU commutes with the scale",
    4: "jagged equals padded with a mask, forward and backward",
    5: "masked positions get no gradient",
    6: "a score depends on neither batch mates nor padding nor order",
    7: "the block equals its composition; norms span all heads",
    8: "a window as wide as the row is full attention; pair counts",
    9: "nothing leaks between packed samples",
    10: "SumKron is a sum of Kronecker products, with the published parameter count",
    11: "pooling ignores order; an empty history gives zeros",
    12: "FM(X) is X(XᵀY), and no n × n tensor exists",
    13: "skipped parts do not exist, summaries are reused, every parameter learns",
    14: "FLOP formulas equal a counted run",
    15: "NE of the base rate is 1; NE gain is relative log-loss gain",
    16: "user_split: a candidate touches neither the state nor another's score",
    17: "exact: another candidate changes the sequence from layer 0 on",
    18: "shifting all positions leaves scores unchanged",
    19: "cheaper forms of GELU stay within their bounds on observed scores",
}


def test_every_acceptance_test_exists() -> None:
    found: dict[int, set[str]] = {}
    for file in Path(__file__).parents[1].rglob("test_*.py"):
        for name in re.findall(r"^def (test_a\d+_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE):
            for number in re.match(r"test((?:_a\d+)+)_", name)[1].split("_a")[1:]:
                found.setdefault(int(number), set()).add(f"{file.name}::{name}")
    assert sorted(found) == sorted(PROMISES), "an id without a test, or a test without a promise"
