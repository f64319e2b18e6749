"""Speed of variants side by side: training steps in torch, and both graphs in OpenVINO, in turn within one process.

All variants take turns in every round, so a neighbour on the machine slows all of them alike; medians over rounds are
compared as ratios to the default within one call. One thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch

from loadtest.ablations.trained import TrainedModel
from model.cli.console import progress_bar
from model.data.request_log import RequestLog
from model.data.split import split_requests
from model.ranker import KunlunRanker
from model.signature import ENCODE_USER, SCORE_CANDIDATES
from model.tensor_spec import CANDIDATES as CANDIDATE_ROWS
from model.tensor_spec import REQUESTS, USERS, history_size
from model.training.batches import Batch, BatchMaker
from model.training.forward import masked_bce, raw_logits
from model.training.run import TrainingRun
from serving.core.host_features import HostFeatures
from serving.engines.cache import default_cache
from serving.engines.open import open_engine

CANDIDATES = 100
WARM_UP = 3


def training_speeds(models: Mapping[str, TrainedModel], log: RequestLog, rounds: int, requests: int = 64) -> dict[str, float]:
    """Examples/s of forward and backward over one batch of `requests` requests, by name."""
    calls: dict[str, Callable[[], object]] = {}
    torch.set_num_threads(1)
    batch_of = np.random.default_rng(0).permutation(split_requests(log, "time").train)[:requests]
    examples = 0
    for name, model in models.items():
        run = TrainingRun.open(model.run)
        batch = BatchMaker(log, run.encoder).batch(np.sort(batch_of))
        calls[name] = partial(_train_once, run.load_model().train(), batch)
        examples = batch.candidates
    return {name: examples / seconds for name, seconds in _medians(calls, rounds, "training steps").items()}


def serving_speeds(models: Mapping[str, TrainedModel], precision: str, rounds: int) -> dict[str, dict[str, float]]:
    """By name: engine calls/s of one user encoded (histories at their caps) and of `CANDIDATES` scored, and of both."""
    encode: dict[str, Callable[[], object]] = {}
    score: dict[str, Callable[[], object]] = {}
    for name, model in models.items():
        artifact = model.artifact
        engine = open_engine(artifact, cache=default_cache(artifact), precision=precision, threads_per_slot=1, slots=1)
        session, host = engine.open_session(), HostFeatures(artifact)
        caps = {history_size(e.name): e.cap for e in artifact.schema.events}
        users = host.zeros(host.encode_signature, {USERS: 1, **caps})
        candidates = host.zeros(host.score_signature, {REQUESTS: 1, CANDIDATE_ROWS: CANDIDATES})
        encode[name] = partial(session.run, ENCODE_USER, users)
        score[name] = partial(session.run, SCORE_CANDIDATES, candidates)
    encoding, scoring = _medians(encode, rounds, "encode_user"), _medians(score, rounds, "score_candidates")
    return {
        name: {
            "encode_per_s": 1 / encoding[name],
            "score_per_s": 1 / scoring[name],
            "requests_per_s": 1 / (encoding[name] + scoring[name]),
        }
        for name in models
    }


def _train_once(ranker: KunlunRanker, batch: Batch) -> None:
    ranker.zero_grad(set_to_none=True)
    loss = masked_bce(raw_logits(ranker, batch), batch.labels, torch.ones(batch.labels.shape[1]))
    torch.autograd.backward(loss)


def _medians(calls: Mapping[str, Callable[[], object]], rounds: int, doing: str) -> dict[str, float]:
    """Median seconds of every call, all in turn in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with progress_bar(False) as bar:
        task = bar.add_task(doing, total=rounds, note="")
        for number in range(-WARM_UP, rounds):
            for name, call in calls.items():
                began = time.perf_counter()
                call()
                if number >= 0:
                    seconds[name].append(time.perf_counter() - began)
            bar.update(task, completed=max(0, number + 1))
    return {name: float(np.median(times)) for name, times in seconds.items()}
