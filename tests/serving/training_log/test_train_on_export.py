"""From what was served to the next model: string ids, export, warm start."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from kunlun.cli import UsageError
from model.cli.train import command
from model.data.canonical import write_log
from model.data.request_log import RequestLog, load_request_log
from model.data.split import split_requests
from model.data.synthetic import generate
from model.data.synthetic_world import SyntheticConfig
from model.features import FeatureEncoder
from model.training.batches import BatchMaker
from model.training.fit_features import fit_features
from model.training.forward import PositionBias
from model.training.predict import predict_logits
from model.training.run import TrainingRun
from model.training.warm_start import WarmStart
from serving.feedback.outcome import encode_outcome
from serving.feedback.receipt import ReceiptSigner, ServedList
from serving.training_log.join import ExportOptions, TrainingLog
from serving.training_log.served_log import ServedEntry, ServedLogFormat

CONFIG = "name: {name}\nmodel: tiny\nepochs: 1\nbatch_requests: 40\nthreads: 1\n"
SIGNER = ReceiptSigner({0: b"k" * 32}, 0)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic log of 400 requests, whose ids are strings."""
    torch.set_num_threads(1)
    directory = Path(tmp_path_factory.mktemp("original")) / "log"
    generate(SyntheticConfig(requests=400, users=60), directory)
    return directory


def served_again(log: RequestLog, requests: Sequence[int]) -> TrainingLog:
    """The training log of a server that showed exactly these requests of `log`."""
    written = ServedLogFormat(log.schema)
    training_log = TrainingLog(log.schema, ExportOptions(window_ms=1_000, now_ms=2**50))
    entries = []
    for number in requests:
        row, user = log.shown(number), int(log.user_index[number])
        items, at_ms = log.item_index[row], int(log.time_ms[number])
        predictions = np.full((len(items), 1), 0.5, np.float32)
        served = ServedList(log.request_ids[number], at_ms, "1", "", 1, log.item_keys[items], predictions, ("click",))
        receipt = SIGNER.sign(served)
        entry = ServedEntry(
            *(receipt[-16:], served.request_id, log.user_ids[user], "1", at_ms, at_ms, 1, True),
            *(log.contexts[number : number + 1], log.users[user : user + 1], served.item_keys, log.items[items]),
            *({}, log.histories(number)),
        )
        entries.append(written.encode(entry))
        labels = [(int(place), 0) for place in np.flatnonzero(log.labels[row, 0])]
        training_log.add_outcome(encode_outcome(receipt, list(range(len(items))), labels, at_ms))
    for at in np.random.default_rng(0).permutation(len(entries)):
        entry = training_log.read_entry(entries[at])
        assert entry is not None
        training_log.add(entry)
    return training_log


@pytest.fixture(scope="module")
def exported(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last 300 requests of the synthetic log, served and exported."""
    log = load_request_log(original)
    served = served_again(log, range(100, len(log)))
    directory = Path(tmp_path_factory.mktemp("exported")) / "log"
    write_log(directory, log.schema, served.tables(), {})
    assert served.report.exported == 300
    return directory


def train(config: Path, *given: str) -> int:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return command.run(parser.parse_args([str(config), "--json", *given]))


@pytest.fixture(scope="module")
def first(original: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    """A run on the synthetic log."""
    directory = Path(tmp_path_factory.mktemp("first"))
    (directory / "config.yaml").write_text(CONFIG.format(name="first"))
    assert train(directory / "config.yaml", "--data", str(original), "--output", str(directory / "run")) == 0
    return TrainingRun.open(directory / "run")


def test_a_served_log_of_string_ids_gives_the_same_rows_and_vocabularies(original: Path, exported: Path) -> None:
    before, after = load_request_log(original).subset(np.arange(100, 400)), load_request_log(exported)
    assert after.request_ids == before.request_ids
    for name in ("time_ms", "contexts", "labels", "positions", "offsets"):
        assert getattr(after, name).tobytes() == getattr(before, name).tobytes(), name
    assert after.item_keys[after.item_index].tolist() == before.item_keys[before.item_index].tolist()
    assert after.items[after.item_index].tobytes() == before.items[before.item_index].tobytes()
    for number in range(len(after)):
        for event, history in before.histories(number).items():
            assert after.histories(number)[event].tobytes() == history.tobytes()
    fitted = [fit_features(log, np.arange(300)) for log in (before, after)]
    seen = {int(key) for log in (after,) for events in log.events.values() for key in events.records["item"]}
    assert set(fitted[1].vocabularies["item"].tolist()) <= set(fitted[0].vocabularies["item"].tolist())
    assert seen <= set(fitted[1].vocabularies["item"].tolist())
    encoder = FeatureEncoder(before.schema, fitted[0])
    requests = np.arange(0, 300, 7)
    batches = [BatchMaker(log, encoder).batch(requests) for log in (before, after)]
    for group in ("users", "contexts", "items"):
        a, b = (getattr(batch, group) for batch in batches)
        assert torch.equal(a.rows, b.rows)
        assert torch.equal(a.dense, b.dense)


def test_a_warm_start_predicts_what_the_earlier_run_did(original: Path, first: TrainingRun) -> None:
    log = load_request_log(original)
    requests = np.arange(0, len(log), 5)
    warm = WarmStart.open(first.path, log.schema)
    few = fit_features(log, np.arange(40))
    stats = warm.stats(few)
    assert stats.moments == first.encoder.stats.moments
    assert set(first.encoder.stats.vocabularies["item"].tolist()) <= set(stats.vocabularies["item"].tolist())
    encoder = FeatureEncoder(log.schema, stats)
    run = TrainingRun(first.path, first.config, log.schema, encoder)
    model, bias = run.new_model(), PositionBias(1)
    warm.fill(model, bias, encoder)
    before = predict_logits(first.load_model(), BatchMaker(log, first.encoder), requests, calibrated=False)
    after = predict_logits(model, BatchMaker(log, encoder), requests, calibrated=False)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-6)
    assert torch.equal(bias.table, first.load("best")[1]["position"]["table"])


def test_new_ids_begin_as_unknown_and_known_ones_keep_their_rows(original: Path, first: TrainingRun) -> None:
    log = load_request_log(original)
    warm = WarmStart.open(first.path, log.schema)
    own = first.encoder.stats.vocabularies["item"]
    fitted = fit_features(log, np.arange(40))
    new = np.array([own[0] + 1, own[-1] - 1])
    stats = warm.stats(
        type(fitted)(fitted.moments, fitted.boundaries, {**fitted.vocabularies, "item": np.union1d(own[5:9], new)})
    )
    encoder = FeatureEncoder(log.schema, stats)
    model = TrainingRun(first.path, first.config, log.schema, encoder).new_model()
    bias = PositionBias(1)
    warm.fill(model, bias, encoder)
    before, after = first.load_model().tables.weight("item"), model.tables.weight("item")
    keys = np.concatenate([own, new])
    rows, expected = encoder.lookup("item", keys), first.encoder.lookup("item", keys)
    assert np.count_nonzero(rows) == len(keys)
    assert expected[-2:].tolist() == [0, 0]
    assert torch.equal(after[rows.astype(np.int64)], before[expected.astype(np.int64)])


def test_training_goes_on_from_a_checkpoint_on_what_was_served(
    exported: Path, first: TrainingRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    log = load_request_log(exported)
    losses = {}
    for name, more in (("cold", ""), ("warm", f"warm_start: {first.path}\n")):
        config.write_text(CONFIG.format(name=name) + more)
        assert train(config, "--data", str(exported), "--output", str(tmp_path / name)) == 0
        run = TrainingRun.open(tmp_path / name)
        assert run.result["steps"] > 0
        losses[name] = run.result["best"]["validation_ne"]
    assert losses["warm"] < losses["cold"], "400 requests more than none"
    assert len(split_requests(log, "time").train) == 240
    assert train(config, "--data", str(exported), "--output", str(tmp_path / "warm"), "--resume") == 0
    capsys.readouterr()


def test_what_does_not_fit_is_refused_by_name(exported: Path, first: TrainingRun, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    given = ("--data", str(exported), "--output", str(tmp_path / "run"))
    config.write_text(CONFIG.format(name="x").replace("tiny", "small") + f"warm_start: {first.path}\n")
    with pytest.raises(
        UsageError, match=r"warm_start: .*run: .*: expected .*shape \[.*\], found .*; train from the start instead"
    ):
        train(config, *given)
    config.write_text(CONFIG.format(name="x") + f"warm_start: {tmp_path / 'absent'}\n")
    with pytest.raises(UsageError, match="absent: not a training run"):
        train(config, *given)
    config.write_text(CONFIG.format(name="x") + f"warm_start: {tmp_path / 'run'}\n")
    with pytest.raises(UsageError, match="warm_start: expected another directory than --output"):
        train(config, *given)
    other = load_request_log(exported).schema.model_copy(update={"hash": first.schema.hash.model_copy(update={"seed": 1})})
    with pytest.raises(ValueError, match=r"hash of ids: expected .*seed=1, found .*seed=0"):
        WarmStart.open(first.path, other)
