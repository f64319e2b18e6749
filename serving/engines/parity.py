"""The golden batch through an engine: does it compute what the torch twin computed at export?

Run by `kunlun compile` before an engine is published, and by tests. Cost: one run of each graph.
"""

from __future__ import annotations

import numpy as np

from model.artifact import Artifact
from model.signature import (
    ENCODE_USER,
    PROBABILITIES,
    SCORE_CANDIDATES,
    encode_user_signature,
    score_candidates_signature,
)
from serving.engines.base import Session
from serving.engines.cache import ParityFigures

GATES = {"f32": (1e-5, 1e-5), "f16": (1e-3, 5e-3), "bf16": (5e-3, 3e-2)}
"""Largest |Δ probability|, and largest |Δ state| relative to the state's largest value, by precision.

bf16 carries 8 bits, so a state is off by a percent of its largest value; what counts is what is served:
the probabilities here, and the NE change on the scoreboard (S13)."""


def check_parity(session: Session, precision: str, artifact: Artifact) -> ParityFigures:
    """Compare a session with the twin's outputs of the golden batch."""
    golden = artifact.golden()
    encode = encode_user_signature(artifact.schema, artifact.config)
    score = score_candidates_signature(artifact.schema, artifact.config)
    states = session.run(ENCODE_USER, {s.name: golden[f"{ENCODE_USER}/{s.name}"] for s in encode.inputs})
    # As served: on the states that this engine has made.
    inputs = {s.name: golden[f"{SCORE_CANDIDATES}/{s.name}"] for s in score.inputs}
    scores = session.run(SCORE_CANDIDATES, inputs | states)
    state_errors = []
    for spec in encode.outputs:
        expected = golden[f"{ENCODE_USER}/{spec.name}"]
        state_errors.append(float(np.abs(states[spec.name] - expected).max()) / max(float(np.abs(expected).max()), 1e-12))
    probability_error = np.abs(scores[PROBABILITIES] - golden[f"{SCORE_CANDIDATES}/{PROBABILITIES}"]).max()
    gate, state_gate = GATES[precision]
    return ParityFigures(
        max_probability_error=float(probability_error),
        max_state_error=float(np.max(state_errors)),
        gate=gate,
        state_gate=state_gate,
    )
