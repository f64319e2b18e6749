"""`kunlun.v1.Outcome` → bytes for the store's outcome stream, receipts verified. Called by the Feedback service."""

from __future__ import annotations

import time

from kunlun.v1 import feedback_pb2
from serving.core.errors import InvalidField, ReceiptRejected
from serving.feedback.outcome import check_positions, encode_outcome
from serving.feedback.receipt import ReceiptSigner
from serving.protocol.limits import MAX_OUTCOMES, unknown


class OutcomeMessages:
    """Converts outcomes of lists that were served with receipts of `signer`."""

    def __init__(self, signer: ReceiptSigner) -> None:
        self._signer = signer

    def outcomes(self, message: feedback_pb2.ReportOutcomesRequest) -> list[bytes]:
        """Verify and encode a batch; raises `ReceiptRejected` or `InvalidField` naming the outcome's position."""
        if not 0 < len(message.outcomes) <= MAX_OUTCOMES:
            raise InvalidField("outcomes", f"1 to {MAX_OUTCOMES} outcomes per call", f"{len(message.outcomes)}")
        now_ms = time.time_ns() // 1_000_000
        return [self._outcome(f"outcomes[{at}]", outcome, now_ms) for at, outcome in enumerate(message.outcomes)]

    def _outcome(self, field: str, outcome: feedback_pb2.Outcome, now_ms: int) -> bytes:
        try:
            served = self._signer.open(outcome.receipt, now_ms)
        except ReceiptRejected as error:
            raise ReceiptRejected(f"{field}.receipt", error.expected, error.found, error.reason) from error
        if not outcome.shown and not outcome.labels:
            raise InvalidField(field, "shown positions, labels, or both", "neither")
        if len(outcome.shown) > len(served):
            raise InvalidField(f"{field}.shown", f"at most {len(served)} positions", f"{len(outcome.shown)}")
        check_positions(f"{field}.shown", outcome.shown, served)
        labels: dict[tuple[int, int], None] = {}  # a label said twice in one outcome is one label
        for at, label in enumerate(outcome.labels):
            if label.task not in served.tasks:
                raise unknown(f"{field}.labels[{at}].task", "a task", label.task, served.tasks)
            if label.position >= len(served):
                raise InvalidField(f"{field}.labels[{at}].position", f"a position below {len(served)}", str(label.position))
            labels[label.position, served.tasks.index(label.task)] = None
        return encode_outcome(outcome.receipt, outcome.shown, tuple(labels), now_ms)
