"""What commands share that run until they are stopped: log level, log format, and errors in one sentence."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from kunlun.cli import UsageError
from model.artifact import ArtifactError
from model.config import ConfigError
from serving.config import ServerConfig
from serving.core.errors import StoreUnavailable
from serving.core.slots import is_busy_beside
from serving.engines.base import DeviceError


def add_log_level(parser: argparse.ArgumentParser) -> None:
    """The option `--log-level`."""
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info", help="default: info")


def flags_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments that are keys of `ServerConfig`."""
    return {key: getattr(arguments, key) for key in ServerConfig.model_fields if hasattr(arguments, key)}


def run_until_stopped(arguments: argparse.Namespace, work: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Run `work()` on uvloop and log to standard error; what the user can mend becomes a `UsageError`."""
    import uvloop

    text = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=arguments.log_level.upper(), stream=sys.stderr, format=text)
    mistake: Exception | None = None
    try:
        uvloop.run(work())
    except (ConfigError, ArtifactError, DeviceError, StoreUnavailable) as error:
        mistake = error
    if is_busy_beside():
        _end_now(mistake)
    if mistake is not None:
        raise UsageError(str(mistake)) from mistake
    return 0


def _end_now(mistake: Exception | None) -> None:
    """Everything is closed; only a shape is still being compiled, for nobody. Libraries are not unloaded under it."""
    if mistake is not None:
        print(f"kunlun: {mistake}", file=sys.stderr)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if mistake is None else 2)
