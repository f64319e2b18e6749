"""Names and shapes of the tensors that enter and leave the two graphs.

The contract between exporter, engines and scheduler: nobody spells a tensor name anywhere else.
Symbolic sizes: `U` users (states to encode), `T_<event>` padded history length, `N_<event>` jagged history rows, `R` requests,
`C` candidates.

``encode_user``       user_rows, user_dense, per event type <e>_rows, <e>_dense, <e>_age, <e>_length
                      → the state tensors that the architecture declares (Kunlun: state_0 … state_{L-1})
                      in the jagged form, of architectures that have one, rows of all users lie one after the other, N_<e>
                      of them, and int32 <e>_offsets [U + 1] stand for the lengths; the state is the same
``score_candidates``  the state tensors, context_rows, context_dense, item_rows, item_dense, request_index
                      → logits, probabilities

Inputs of width 0 do not exist. All tensors are float32 except `<e>_length` and `request_index` (int64), and state tensors
which the architecture declares as int64.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.architectures.base import ArchitectureConfig
from model.features import FeatureLayout
from model.schema import Schema
from model.tensor_spec import CANDIDATES, OFFSETS, REQUESTS, USERS, TensorSpec, history_size, row_count

ENCODE_USER, SCORE_CANDIDATES = "encode_user", "score_candidates"
JAGGED_ENCODE = "encode_user_jagged"
"""The file of `encode_user` on jagged rows; the graph's name and its weights' are those of the padded form."""
REQUEST_INDEX = "request_index"
LOGITS, PROBABILITIES = "logits", "probabilities"


@dataclass(frozen=True)
class GraphSignature:
    """Inputs and outputs of one graph, in order."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def encode_user_signature(schema: Schema, config: ArchitectureConfig) -> GraphSignature:
    """Signature of the `encode_user` graph."""
    layout = FeatureLayout(schema)
    inputs = [
        TensorSpec("user_rows", "float32", (USERS, layout.user.embedded_width)),
        TensorSpec("user_dense", "float32", (USERS, len(layout.user.dense))),
    ]
    for event in schema.events:
        group, steps = layout.events[event.name], history_size(event.name)
        inputs += [
            TensorSpec(f"{event.name}_rows", "float32", (USERS, steps, group.embedded_width)),
            TensorSpec(f"{event.name}_dense", "float32", (USERS, steps, len(group.dense))),
            TensorSpec(f"{event.name}_age", "float32", (USERS, steps)),
            TensorSpec(f"{event.name}_length", "int64", (USERS,)),
        ]
    return GraphSignature(ENCODE_USER, _existing(inputs), config.state_specs(schema, USERS))


def jagged_encode_signature(schema: Schema, config: ArchitectureConfig) -> GraphSignature | None:
    """Signature of `encode_user` on jagged rows; None where the architecture runs on padded ones only."""
    if not config.has_jagged_form:
        return None
    padded = {spec.name: spec for spec in encode_user_signature(schema, config).inputs}
    inputs = [padded[name] for name in ("user_rows", "user_dense") if name in padded]
    for event in schema.events:
        rows = row_count(event.name)
        parts = [padded[name] for part in ("rows", "dense", "age") if (name := f"{event.name}_{part}") in padded]
        inputs += [TensorSpec(spec.name, spec.dtype, (rows, *spec.shape[2:])) for spec in parts]
        inputs.append(TensorSpec(f"{event.name}_offsets", "int32", (OFFSETS,)))
    return GraphSignature(ENCODE_USER, tuple(inputs), config.state_specs(schema, USERS))


def score_candidates_signature(schema: Schema, config: ArchitectureConfig) -> GraphSignature:
    """Signature of the `score_candidates` graph."""
    layout = FeatureLayout(schema)
    inputs = [
        *config.state_specs(schema, REQUESTS),
        TensorSpec("context_rows", "float32", (REQUESTS, layout.context.embedded_width)),
        TensorSpec("context_dense", "float32", (REQUESTS, len(layout.context.dense))),
        TensorSpec("item_rows", "float32", (CANDIDATES, layout.item.embedded_width)),
        TensorSpec("item_dense", "float32", (CANDIDATES, len(layout.item.dense))),
        TensorSpec(REQUEST_INDEX, "int64", (CANDIDATES,)),
    ]
    tasks = len(schema.tasks)
    outputs = (
        TensorSpec(LOGITS, "float32", (CANDIDATES, tasks)),
        TensorSpec(PROBABILITIES, "float32", (CANDIDATES, tasks)),
    )
    return GraphSignature(SCORE_CANDIDATES, _existing(inputs), outputs)


def _existing(specs: list[TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple(spec for spec in specs if spec.shape[-1] != 0)
