"""The peak that training MFU is relative to."""

from __future__ import annotations

import pytest

from model.training import peak
from model.training.config import Precision


def test_a_machine_too_busy_for_the_probe_has_a_peak_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "PROBE_S", 0.0)
    monkeypatch.setattr(peak, "PROBE_WIDTH", 64)
    assert 0.0 < peak.measured_peak(Precision.F32) < float("inf")


def test_gpus_are_known_by_name_and_precision() -> None:
    name, bf16, f32 = peak.DATASHEET[0]
    assert peak.datasheet_peak(f"NVIDIA {name} 80GB", Precision.BF16) == bf16
    assert peak.datasheet_peak(f"NVIDIA {name} 80GB", Precision.F32) == f32
    assert peak.datasheet_peak("a GPU of tomorrow", Precision.BF16) is None
