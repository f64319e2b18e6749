"""`kunlun feedback`: count the fleet's outcomes in a process of its own, until SIGTERM."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from kunlun.cli import Command, UsageError
from model.artifact import ArtifactError
from model.config import ConfigError
from serving.config import ServerConfig, load_config
from serving.core.errors import StoreUnavailable


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="the servers' YAML file; flags win over it")
    parser.add_argument("--repository", help="model repository: its schema names the tasks")
    parser.add_argument("--model", help="model name (default: the only one)")
    parser.add_argument("--version", help="version whose drift from training is exported (default: the newest)")
    parser.add_argument("--store", help="redis://, rediss:// or unix:// URL of the servers' store")
    parser.add_argument("--attribution-window-s", type=float, help="as the servers' (default: 7 days)")
    parser.add_argument("--online-window-s", type=float, help="what the gauges are over (default: an hour)")
    parser.add_argument("--host", help="address of /metrics (default: 127.0.0.1)")
    parser.add_argument("--metrics-port", type=int, help="HTTP port of /metrics; 0: any free port, printed (default: 9464)")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info", help="default: info")


def _run(arguments: argparse.Namespace) -> int:
    import uvloop

    from serving.feedback_process import run_feedback

    logging.basicConfig(
        level=arguments.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    flags = {key: getattr(arguments, key) for key in ServerConfig.model_fields if hasattr(arguments, key)}
    try:
        config = load_config(arguments.config, flags).model_copy(update={"feedback": "consume"})
        if config.store == "embedded":
            raise ConfigError("store: expected the URL of the store that the servers share, found 'embedded'")
        uvloop.run(run_feedback(config, lambda metrics: print(f"kunlun: counting outcomes, metrics on {metrics}", flush=True)))
    except (ConfigError, ArtifactError, StoreUnavailable) as error:
        raise UsageError(str(error)) from error
    return 0


command = Command("count outcomes and export online NE, in a process of its own", _configure, _run)
