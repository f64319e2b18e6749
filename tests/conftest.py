"""Shared fixtures. Every random test draws from a printed seed."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import settings

SEED = int(os.environ.get("KUNLUN_TEST_SEED", "20261123"))

settings.register_profile("repeatable", derandomize=True)  # the same examples in every run
settings.register_profile("random", print_blob=True)  # make fuzz
settings.load_profile("repeatable")


def pytest_report_header() -> str:
    return f"kunlun: seed {SEED} (set KUNLUN_TEST_SEED to change it)"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first; slow ones keep their order at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded generator, fresh for every test."""
    return np.random.default_rng(SEED)
