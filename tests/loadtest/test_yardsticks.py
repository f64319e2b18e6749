"""The pieces of the baselines table: one-hot columns, features of histories, the log that a model reads, and the summary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loadtest.checks.baselines import CONFIG, ModelSettings, Row, Settings, adapted, summary
from loadtest.checks.training_throughput import comparable, flat
from loadtest.yardsticks.boosted_trees import PRIOR, HistoryFeatures
from loadtest.yardsticks.one_hot import one_hot
from model.architectures.registry import merged
from model.config import load_yaml
from model.data.request_log import RequestLog, load_request_log
from model.data.split import split_requests
from model.data.synthetic import generate
from model.data.synthetic_world import SyntheticConfig
from model.features import FeatureEncoder
from model.training.batches import BatchMaker
from model.training.config import parse_config
from model.training.fit_features import fit_features


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> RequestLog:
    directory = Path(tmp_path_factory.mktemp("log")) / "log"
    generate(SyntheticConfig(requests=120), directory, lambda _: None)
    return load_request_log(directory)


def maker_of(log: RequestLog) -> BatchMaker:
    return BatchMaker(log, FeatureEncoder(log.schema, fit_features(log, split_requests(log, "time").train)))


def test_every_setting_of_the_table_is_a_training_configuration() -> None:
    settings = load_yaml(Settings, CONFIG)
    names = {parse_config(merged(settings.common, m.train)).model.architecture for m in settings.models.values()}
    assert names == {"logistic_regression", "din", "dcn_v2", "wukong", "interformer", "hstu", "kunlun"}


def test_one_hot_rows_hold_one_per_slot_and_the_numbers(log: RequestLog) -> None:
    log = adapted(log, ModelSettings(train={}, user_ids=True))
    maker, requests = maker_of(log), np.array([3, 50])
    batch, layout, sizes = maker.batch(requests), maker.encoder.layout, maker.encoder.table_rows()
    found = one_hot(maker, requests).toarray()
    user, item = layout.user, layout.item
    assert user.slots[0].feature == "user_id"
    start = len(user.dense)
    expected = np.zeros((batch.candidates, sizes[user.slots[0].table]))
    expected[np.arange(batch.candidates), batch.users.rows.numpy()[batch.request_index, 0]] = 1
    np.testing.assert_array_equal(found[:, start : start + expected.shape[1]], expected)
    np.testing.assert_allclose(found[:, :start], batch.users.dense.numpy()[batch.request_index])
    slots = len(user.slots) + len(layout.context.slots) + len(item.slots)
    numbers = len(user.dense) + len(layout.context.dense) + len(item.dense)
    assert found.shape[1] == numbers + sum(sizes[s.table] for g in (user, layout.context, item) for s in g.slots)
    assert np.all((found != 0).sum(1) <= slots + numbers)


def test_trees_read_what_the_user_did_with_the_same_item_before_the_request(log: RequestLog) -> None:
    events = [e.name for e in log.schema.events]
    features = HistoryFeatures(log, events[0], events[-1], 0.1)
    request = int(np.argmax(log.history_lengths(np.arange(len(log))).sum(1)))
    histories = log.histories(request)
    found = features.of(np.array([request]))
    at = features.numbers.shape[1]
    clicked, viewed = histories[events[0]], histories[events[-1]]
    rate = (len(clicked) + PRIOR * 0.1) / (max(len(clicked), len(viewed)) + PRIOR)
    np.testing.assert_allclose(found[:, at], rate)
    keys = log.item_keys[log.item_index[log.shown(request)]]
    np.testing.assert_array_equal(found[:, at + 2], [(clicked["item"] == key).any() for key in keys])
    np.testing.assert_array_equal(found[:, at + 3], [(viewed["item"] == key).any() for key in keys])


def test_trees_read_nothing_that_grows_with_the_length_of_a_history(log: RequestLog) -> None:
    events = [e.name for e in log.schema.events]
    features, requests = HistoryFeatures(log, events[0], events[-1], 0.1), np.arange(len(log))
    rows, at = features.of(requests), features.numbers.shape[1]
    past = np.delete(rows[:, at:], 1, axis=1)  # seconds since the last event aside
    assert log.history_lengths(requests).max() > 10
    assert np.all((past >= 0) & (past <= 1 + 1e-9))


def test_a_flat_batch_is_the_same_examples_without_sharing(log: RequestLog) -> None:
    batch = maker_of(comparable(log, 8, 6)).batch(np.array([5, 60, 61]))
    alone = flat(batch)
    assert alone.requests == alone.candidates == batch.candidates
    for event, history in batch.histories.items():
        np.testing.assert_array_equal(alone.histories[event].lengths, history.lengths[batch.request_index])


def test_the_summary_keeps_seeds_apart_from_users() -> None:
    def row(seed: int, ne: float) -> Row:
        figures = {"ne": {"value": ne, "low": ne - 0.1, "high": ne + 0.1}, "auc": {"value": 0.8, "low": 0.7, "high": 0.9}}
        return Row("din", seed, figures, validation_ne=ne, train_examples_per_s=100.0 * (seed + 1), flops_per_example=7.0)

    found = summary([row(1, 0.9), row(0, 0.8)])["din"]
    assert found["ne"] == pytest.approx(0.85)
    assert found["ne_interval"] == pytest.approx([0.7, 0.9])
    assert (found["ne_seeds"], found["seeds"]) == ([0.8, 0.9], 2)
    assert found["train_examples_per_s"] == 150
