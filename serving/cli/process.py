"""What commands share that run until they are stopped: log level, log format, and errors in one sentence."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from kunlun.cli import UsageError
from model.artifact import ArtifactError
from model.config import ConfigError
from serving.config import ServerConfig
from serving.core.errors import StoreUnavailable


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
    try:
        uvloop.run(work())
    except (ConfigError, ArtifactError, StoreUnavailable) as error:
        raise UsageError(str(error)) from error
    return 0
