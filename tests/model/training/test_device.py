"""Devices and precisions: what the configuration means on a machine, and that every choice trains and resumes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.config import ConfigError
from model.training.config import DeviceKind, OptimizerConfig, Precision, TrainConfig
from model.training.device import Compute
from model.training.run import TrainingRun
from tests.model.training.conftest import Losses

CONFIG = TrainConfig(model="tiny", batch_requests=40, threads=1, optimizer=OptimizerConfig(dense_lr=3e-3, warmup_steps=2))
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_auto_is_float32_on_a_cpu() -> None:
    compute = Compute.resolve(DeviceKind.CPU, Precision.AUTO)
    assert compute == Compute(torch.device("cpu"), Precision.F32)
    assert compute.name == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_named() -> None:
    assert Compute.resolve(DeviceKind.AUTO, Precision.AUTO).device.type == "cpu"
    with pytest.raises(ConfigError, match=r"device: expected a CUDA device .* found none; use `device: cpu` or `auto`"):
        Compute.resolve(DeviceKind.CUDA, Precision.AUTO)


def test_bf16_trains_close_to_f32_with_f32_weights_and_resumes_exactly(losses: Losses, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"precision": Precision.BF16})
    whole = losses(tmp_path / "whole", config)
    assert losses(tmp_path / "cut", config, stop_after=4) + losses(tmp_path / "cut", config) == whole
    exact = losses(tmp_path / "f32", CONFIG)
    assert whole != exact
    assert whole == pytest.approx(exact, abs=0.02)
    model = TrainingRun.open(tmp_path / "whole").load_model()
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@needs_gpu
@pytest.mark.parametrize("precision", [Precision.F32, Precision.BF16])
def test_a_gpu_trains_as_a_cpu_does_and_its_run_continues_on_either(
    losses: Losses, tmp_path: Path, precision: Precision
) -> None:
    config = CONFIG.model_copy(
        update={"precision": precision, "augment": CONFIG.augment.model_copy(update={"id_dropout": 0.0})}
    )
    on_cpu = losses(tmp_path / "cpu", config.model_copy(update={"device": DeviceKind.CPU}))
    on_gpu = losses(tmp_path / "gpu", config, stop_after=4)
    assert on_gpu == pytest.approx(on_cpu[:4], abs=0.02)
    assert losses(tmp_path / "gpu", config) == pytest.approx(on_cpu[4:], abs=0.05)
    assert TrainingRun.open(tmp_path / "gpu").result["calibration"].keys() == {"click"}
