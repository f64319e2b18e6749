"""A small synthetic log and a finished tiny run on it, shared by training, export and end-to-end tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.data.request_log import RequestLog, load_request_log
from model.data.synthetic import generate
from model.data.synthetic_world import SyntheticConfig


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> RequestLog:
    """400 synthetic requests."""
    torch.set_num_threads(1)
    directory = Path(tmp_path_factory.mktemp("log")) / "log"
    generate(SyntheticConfig(requests=400), directory, lambda _: None)
    return load_request_log(directory)
