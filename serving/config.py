"""Everything a server can be told: one frozen `ServerConfig` from YAML, command-line flags and secrets.

The only module of the server that reads configuration files and the environment. Flags win over the
file. Secrets (the receipt key, TLS keys, a store's URL with a password) come from files or the environment,
never from flags.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from model.artifact import list_versions
from model.config import ConfigError, StrictModel, describe
from serving.core.options import CoreOptions

RECEIPT_KEY_VARIABLE = "KUNLUN_RECEIPT_KEY"
STORE_VARIABLE = "KUNLUN_STORE"
MIN_KEY_BYTES = 16
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
Port = Annotated[int, Field(ge=0, le=65_535)]


class TlsConfig(StrictModel):
    """PEM files. With `client_ca`, callers must present a certificate that it signed (mutual TLS)."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


class IngestConfig(StrictModel):
    """Events from a Redis Stream besides the RPC: its key, the consumer group, and where it is (empty: in the store)."""

    stream: Annotated[str, Field(min_length=1)]
    group: Annotated[str, Field(min_length=1)] = "kunlun"
    url: str = ""


class ServerConfig(StrictModel):
    """One serving process.

    What is served: `repository` of artifacts, `model` (empty: the only one), `version` (empty: the
    newest by name, numbers in it compared as numbers), `engine`, `engine_cache` (default: `.engines` in
    the repository), `precision` (`auto`: bf16 where the CPU has it), `fused_block` (the engine of `kunlun compile
    --fused-block`), `backup_engine` (the CPU engine takes over what a failing GPU leaves; compile it, too), `slots` (0: two for
    every GPU, or as many as fill the CPUs), `threads_per_slot` (0: one; both 0: what `kunlun
    calibrate` found fastest on as many CPUs, if it ran), `host_cpus` that everything but the engine slots is pinned
    to (empty: none; `core.slot_cpus` pins the slots).

    Where: `host` and `port` (0: any free port, printed), `metrics_port` (0: any; null: off), `tls`. `front_end`:
    `grpcio`, or `native`, whose HTTP/2 runs in Rust outside the GIL (cheaper calls; neither TLS nor
    `max_connection_age_s`, and `max_concurrent_calls` is not enforced; needs the extra `native`).

    Ingestion: `ingest` reads events from a stream, too (none: only the RPC brings events).

    State: `store` (`embedded`, or the URL of a Redis or Valkey, see `serving.store.nodes.open_nodes`; the environment's
    KUNLUN_STORE where neither flag nor file names one), `store_replicas` that must have an event before it is acknowledged
    (0: the primary alone), `history_ttl_s` after a user's last event (0: for ever), `data_dir` of the embedded store (none: its
    data ends with the process) and its `data_sync` (`always`: an event is on the disk before it is acknowledged; `everysec`: a
    crash of the machine, not of the process, may lose a second),
    `attribution_window_s` for outcomes.

    Feedback: of the replicas with `feedback: consume` one at a time counts the outcomes of all and exports online NE, as those
    with `report` do, which leave the counting to others (`kunlun feedback` does nothing else). `off`: nobody in the fleet
    counts; outcomes are for the training log alone. `outcomes_kept`: how many stay in the store once they are counted (each a
    receipt: 1.7 kB for 100 items). Gauges are over `online_window_s`.

    Training log: `served_log_rate` is the share of Ranks (by a hash of their request id; 0: none) whose features are kept in
    the store for `kunlun log export`, the newest `served_log_entries` of them.

    Limits: `default_deadline_ms` for calls without one, `max_message_bytes` of a request,
    `max_concurrent_calls`, `max_connection_age_s` (0: for ever) after which clients are asked to
    reconnect, so that balancers rebalance.

    Stopping: `shutdown_delay_s` between "not ready" and refusing new calls, `shutdown_grace_s` for
    calls in flight. `receipt_key_file`: one key per line as `ID:KEY` or a single bare key; the first
    signs, all verify. Without it the environment's KUNLUN_RECEIPT_KEY is used. `core`: see `CoreOptions`
    (its `slots` follows from `slots` here).
    """

    repository: Path
    model: str = ""
    version: str = ""
    engine: Literal["openvino", "tensorrt"] = "openvino"
    engine_cache: Path | None = None
    precision: Literal["auto", "f32", "f16", "bf16"] = "auto"
    fused_block: bool = False
    backup_engine: bool = True
    slots: Annotated[int, Field(ge=0, le=1024)] = 0
    threads_per_slot: Annotated[int, Field(ge=0, le=1024)] = 0
    host_cpus: tuple[Annotated[int, Field(ge=0)], ...] = ()

    host: str = "127.0.0.1"
    port: Port = 50_051
    metrics_port: Port | None = 9464
    tls: TlsConfig | None = None
    front_end: Literal["grpcio", "native"] = "grpcio"

    store: str = "embedded"
    store_replicas: Annotated[int, Field(ge=0)] = 0
    history_ttl_s: Annotated[int, Field(ge=0)] = 0
    data_dir: Path | None = None
    data_sync: Literal["always", "everysec"] = "everysec"
    ingest: IngestConfig | None = None
    attribution_window_s: Annotated[float, Field(gt=0)] = 7 * 86_400.0
    feedback: Literal["consume", "report", "off"] = "consume"
    outcomes_kept: Annotated[int, Field(ge=1)] = 1_000_000
    online_window_s: Annotated[float, Field(ge=60)] = 3600.0
    served_log_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    served_log_entries: Annotated[int, Field(ge=1)] = 1_000_000

    default_deadline_ms: Annotated[int, Field(ge=1)] = 1000
    max_message_bytes: Annotated[int, Field(ge=1024)] = 4 << 20
    max_concurrent_calls: Annotated[int, Field(ge=1)] = 4096
    max_connection_age_s: Annotated[float, Field(ge=0)] = 0.0

    shutdown_delay_s: Annotated[float, Field(ge=0)] = 0.0
    shutdown_grace_s: Annotated[float, Field(ge=0)] = 10.0
    receipt_key_file: Path | None = None
    core: CoreOptions = CoreOptions()

    @property
    def core_options(self) -> CoreOptions:
        """`core` with the number of slots filled in."""
        return self.core.model_copy(update={"slots": self.slot_count})

    @property
    def slot_threads(self) -> int:
        """Threads of one slot."""
        return self.threads_per_slot or 1

    @property
    def slot_count(self) -> int:
        """Slots, filled in from the CPUs this process may use."""
        return self.slots or max(1, available_cpus() // self.slot_threads)


def available_cpus(quota: Path = CGROUP_QUOTA) -> int:
    """Whole CPUs this process may use: its affinity, and in a container also the CPU time it is given."""
    cpus = len(os.sched_getaffinity(0))
    try:
        limit, period = quota.read_text(encoding="ascii").split()
        return cpus if limit == "max" else max(1, min(cpus, int(limit) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        return cpus  # no control groups of version 2, or no limit at this level


def load_config(path: Path | None, flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> ServerConfig:
    """The file (if any) with `flags` laid over it (None: not given); raises `ConfigError`."""
    source = str(path) if path is not None else "kunlun serve"
    data: Any = {}
    if path is not None:
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: not valid YAML: {error}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{path}: expected a mapping of keys, found {type(data).__name__}")
    default = {"store": environment[STORE_VARIABLE]} if environment.get(STORE_VARIABLE) else {}
    try:
        return ServerConfig.model_validate(default | data | {key: value for key, value in flags.items() if value is not None})
    except ValidationError as error:
        raise ConfigError(describe(error, ServerConfig, source)) from error


def artifact_path(config: ServerConfig) -> Path:
    """The version directory to serve; raises `ConfigError` naming what the repository holds."""
    if not config.repository.is_dir():
        raise ConfigError(f"repository: expected a directory of artifacts, found {str(config.repository)!r}")
    models = {name: sorted(found, key=_natural) for name, found in list_versions(config.repository).items() if found}
    if not models:
        raise ConfigError(f"repository: expected at least one exported model in {config.repository}, found none")
    if not config.model and len(models) > 1:
        raise ConfigError(f"model: {config.repository} holds {', '.join(models)}; say which to serve")
    name = config.model or next(iter(models))
    if name not in models:
        raise ConfigError(f"model: expected one of {', '.join(models)}, found {name!r}")
    version = config.version or models[name][-1]
    if version not in models[name]:
        raise ConfigError(f"version: expected one of {', '.join(models[name])}, found {version!r}")
    return config.repository / name / version


def _natural(version: str) -> tuple[list[str | int], str]:
    """Sort key under which `10` follows `9`."""
    parts = re.split(r"([0-9]+)", version)  # every second part is a number
    return [int(part) if at % 2 else part for at, part in enumerate(parts)], version


def receipt_keys(config: ServerConfig, environment: Mapping[str, str] = os.environ) -> tuple[dict[int, bytes], int] | None:
    """Receipt keys by id, and the id that signs; None when none is configured. Raises `ConfigError`."""
    if config.receipt_key_file is not None:
        source = str(config.receipt_key_file)
        try:
            text = config.receipt_key_file.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"receipt_key_file: {source} cannot be read: {error.strerror}") from error
    elif RECEIPT_KEY_VARIABLE in environment:
        source, text = RECEIPT_KEY_VARIABLE, environment[RECEIPT_KEY_VARIABLE]
    else:
        return None
    keys: dict[int, bytes] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        head, colon, tail = line.partition(":")
        identity, key = (int(head), tail) if colon and head.isdecimal() else (0, line)
        if identity > 255 or identity in keys or len(key.encode()) < MIN_KEY_BYTES:
            raise ConfigError(
                f"{source}: expected lines ID:KEY with distinct ids of 0 to 255 and keys of at least {MIN_KEY_BYTES} bytes, "
                f"found id {identity} with {len(key.encode())} bytes"
            )
        keys[identity] = key.encode()
    if not keys:
        raise ConfigError(f"{source}: expected a receipt key, found nothing")
    return keys, next(iter(keys))


def random_receipt_keys() -> tuple[dict[int, bytes], int]:
    """A key of this process alone: its receipts are rejected by other replicas and after a restart."""
    return {0: secrets.token_bytes(32)}, 0
