"""`kunlun feedback`: count the fleet's outcomes in a process of its own, until SIGTERM."""

from __future__ import annotations

import argparse
from pathlib import Path

from kunlun.cli import Command
from model.config import ConfigError
from serving.cli.process import add_log_level, flags_of, run_until_stopped
from serving.config import ServerConfig, load_config
from serving.store.open import EMBEDDED


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
    add_log_level(parser)


def _run(arguments: argparse.Namespace) -> int:
    from serving.feedback_process import run_feedback

    def ready(metrics: str) -> None:
        print(f"kunlun: feedback consumer, metrics on {metrics}", flush=True)

    return run_until_stopped(arguments, lambda: run_feedback(_config(arguments), ready))


def _config(arguments: argparse.Namespace) -> ServerConfig:
    config = load_config(arguments.config, flags_of(arguments)).model_copy(update={"feedback": "consume"})
    if config.store == EMBEDDED:
        raise ConfigError(f"store: expected the URL of the store that the servers share, found {EMBEDDED!r}")
    return config


command = Command("count outcomes and export online NE, in a process of its own", _configure, _run)
