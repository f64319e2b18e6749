"""Configuration of a training run, read from YAML by `kunlun train CONFIG`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from model.architectures.registry import AnyArchitecture
from model.config import ConfigError, StrictModel, describe, load_yaml
from model.data.request_log import RequestLog
from model.data.split import Split, split_requests

Probability = Annotated[float, Field(ge=0, le=1)]


class SplitKind(StrEnum):
    """How requests are held out (see `model.data.split`)."""

    PER_USER_LAST = "per_user_last"
    TIME = "time"
    USER = "user"


class DeviceKind(StrEnum):
    """Where training runs; `auto`: on a CUDA device if there is one."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Precision(StrEnum):
    """Of matrix products in training (see `model.training.device`)."""

    AUTO = "auto"
    F32 = "f32"
    BF16 = "bf16"


class OnNaN(StrEnum):
    """What a step does whose loss or gradients are not finite: end the run, or leave the weights as they are."""

    STOP = "stop"
    SKIP = "skip"


class RefitLength(StrEnum):
    """How long a refit trains: as many steps as the selected model had, or as many passes over its (larger) data."""

    STEPS = "steps"
    PASSES = "passes"


class EmbeddingDecay(StrEnum):
    """When rows of embedding tables decay (see `model.training.rowwise_adagrad`)."""

    PER_STEP = "per_step"
    PER_TOUCH = "per_touch"


class OptimizerConfig(StrictModel):
    """AdamW for dense weights, row-wise Adagrad for embedding rows; a cosine decay after a linear warm-up.

    `table_lr` and `table_decay` override `sparse_lr` and `embedding_decay` of single embedding tables, by name. A decay is
    decoupled from the gradient and relative to the learning rate: per step a weight loses the share lr · decay. Rows of
    embeddings lose it when they are updated: for all steps since their last update at once, at the learning rate of this one
    (`per_step`: by 1 / frequency of the id), or once (`per_touch`).
    `average_decay`: what is evaluated, kept and exported is an exponential moving average of all weights with this decay per
    step; 0.99 to 0.999 suit runs of some hundred to some thousand steps (see `model.training.averaging`).
    """

    dense_lr: Annotated[float, Field(gt=0)] = 1e-3
    sparse_lr: Annotated[float, Field(gt=0)] = 0.04
    table_lr: dict[str, Annotated[float, Field(gt=0)]] = Field(default={})
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    embedding_decay: Annotated[float, Field(ge=0)] = 0.0
    table_decay: dict[str, Annotated[float, Field(ge=0)]] = Field(default={})
    embedding_decay_kind: EmbeddingDecay = EmbeddingDecay.PER_STEP
    average_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    final_lr_share: Probability = 0.05
    clip_norm: Annotated[float, Field(gt=0)] = 1.0


class AugmentConfig(StrictModel):
    """What training hides, so that degraded requests stay calibrated and ids are not memorised.

    Per request: `empty_history`, `truncated_history` (older events), `unknown_position`. `id_dropout`: share of known ids
    replaced by the unknown one, `table_id_dropout` by embedding table. `embedding_dropout`: share of the columns of
    embedded inputs set to 0, `hidden_dropout` of the hidden units that architectures offer to it
    (`model.layers.dropout`); what remains is scaled up.
    """

    empty_history: Probability = 0.05
    truncated_history: Probability = 0.15
    id_dropout: Probability = 0.1
    table_id_dropout: dict[str, Probability] = Field(default={})
    embedding_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    hidden_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    unknown_position: Probability = 0.3


class TrainConfig(StrictModel):
    """A whole run. `model`: a preset, or a mapping with `architecture` or `preset` (see `model.architectures.registry`).

    `negative_rate`: share of the training part's negatives that is trained on. Shown items whose labels are all 0 are kept
    with this probability, all others always; probabilities and figures stay those of the full distribution. On a log
    that was down-sampled before, this is a share of what it holds (see `model.training.negative_sampling`).
    `validation_share`, `test_share`: of the requests (`time`) or users (`user`); `per_user_last` has no use for them.
    `warm_start`: directory of an earlier run whose parameters this one begins with (see `model.training.warm_start`).
    `batch_work`: history events and shown items per batch, in place of `batch_requests`; `sort_batches` batches at a time are
    sorted by history length. `shuffle_requests`: window of the shuffle (see `model.training.plan`). `prefetch`: batches
    made ahead on a thread (0: none).
    `device`, `precision`: where and how it computes; by default on a GPU if there is one (see `model.training.device`).
    `peak_flops`: FLOP/s of the device, in place of the table's or the measured ones (see `model.training.peak`).
    `on_nan`: what becomes of a step that is not finite, with `skip` up to `max_skipped_steps` times in a run
    (see `model.training.alarms`).
    `patience`: evaluations without a better validation NE after which training ends.
    `max_validation_requests`: of a larger validation part, so many, evenly spaced, choose the best step and calibrate.
    `refit_on_validation`: the run's model is trained once more on training and validation part together, as long as the
    best step took (see `model.training.fit_run`).
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "kunlun"
    model: AnyArchitecture = Field(default="small", validate_default=True)
    warm_start: Path | None = None
    split: SplitKind = SplitKind.TIME
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    epochs: Annotated[int, Field(ge=1)] = 1
    batch_requests: Annotated[int, Field(ge=1)] = 64
    batch_work: Annotated[int, Field(ge=1)] | None = None
    sort_batches: Annotated[int, Field(ge=1)] = 32
    shuffle_requests: Annotated[int, Field(ge=1)] = 262_144
    prefetch: Annotated[int, Field(ge=0)] = 2
    negative_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    optimizer: OptimizerConfig = OptimizerConfig()
    augment: AugmentConfig = AugmentConfig()
    position_debias: bool = True
    max_seconds: Annotated[float, Field(gt=0)] | None = None
    patience: Annotated[int, Field(ge=1)] | None = None
    max_validation_requests: Annotated[int, Field(ge=1)] = 100_000
    evaluations_per_epoch: Annotated[int, Field(ge=1)] = 1
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    threads: Annotated[int, Field(ge=0)] = 0
    device: DeviceKind = DeviceKind.AUTO
    precision: Precision = Precision.AUTO
    peak_flops: Annotated[float, Field(gt=0)] | None = None
    on_nan: OnNaN = OnNaN.STOP
    max_skipped_steps: Annotated[int, Field(ge=1)] = 20
    refit_on_validation: bool = False
    refit_length: RefitLength = RefitLength.STEPS


def split_of(config: TrainConfig, log: RequestLog) -> Split:
    """The parts of `log` that a run of `config` trains on and holds out; raises `ConfigError`."""
    return split_requests(log, config.split.value, validation=config.validation_share, test=config.test_share)


def load_train_config(path: str | Path) -> TrainConfig:
    """Read a training configuration; raises `ConfigError`."""
    return load_yaml(TrainConfig, path)


def parse_config(data: dict[str, Any]) -> TrainConfig:
    """A training configuration from plain data; raises `ConfigError`."""
    try:
        return TrainConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(describe(error, TrainConfig, "training configuration")) from error
