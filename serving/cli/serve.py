"""`kunlun serve`: run a server until SIGTERM. Flags override the configuration file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path

from kunlun.cli import Command
from serving.cli.process import add_log_level, flags_of, run_until_stopped
from serving.config import ServerConfig, load_config

OFF = "off"


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="YAML file with the keys of ServerConfig; flags win over it")
    parser.add_argument("--repository", help="model repository, as written by `kunlun export`")
    parser.add_argument("--model", help="model name (default: the only one)")
    parser.add_argument("--version", help="version (default: the newest)")
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="gRPC port; 0: any free port (default: 50051)")
    parser.add_argument(
        "--metrics-port", type=_port_or_off, help="HTTP port of /metrics; 0: any free port; off (default: 9464)"
    )
    parser.add_argument("--front-end", choices=("grpcio", "native"), help="gRPC implementation (default: grpcio)")
    parser.add_argument("--store", help="embedded, or a redis://, rediss:// or unix:// URL (default: embedded)")
    parser.add_argument("--data-dir", help="where the embedded store keeps its data (default: nowhere)")
    parser.add_argument("--served-log-rate", type=float, help="share of Ranks kept for `kunlun log export` (default: 0)")
    parser.add_argument("--engine", choices=("openvino", "tensorrt"), help="engine (default: openvino)")
    parser.add_argument("--engine-cache", help="engine cache (default: .engines in the repository)")
    parser.add_argument("--precision", choices=("auto", "f32", "f16", "bf16"), help="engine precision (default: auto)")
    fused = "the engine of `kunlun compile --fused-block` (default: no)"
    parser.add_argument("--fused-block", action=argparse.BooleanOptionalAction, help=fused)
    parser.add_argument("--slots", type=int, help="engine slots; 0: as calibrated, or filling the CPUs (default: 0)")
    parser.add_argument("--threads-per-slot", type=int, help="threads of one slot; 0: as calibrated, or one (default: 0)")
    parser.add_argument("--default-deadline-ms", type=int, help="budget of calls without a deadline (default: 1000)")
    parser.add_argument("--max-message-bytes", type=int, help="largest request (default: 4 MiB)")
    parser.add_argument("--max-connection-age-s", type=float, help="ask clients to reconnect after this long; 0: never")
    parser.add_argument("--shutdown-grace-s", type=float, help="time for calls in flight when stopping (default: 10)")
    text = "who counts outcomes: a replica, this one among them; others (`kunlun feedback`); nobody (default: consume)"
    parser.add_argument("--feedback", choices=("consume", "report", "off"), help=text)
    parser.add_argument("--attribution-window-s", type=float, help="how long after serving an outcome counts (default: 7 days)")
    parser.add_argument("--receipt-key-file", help="file with the receipt key (else $KUNLUN_RECEIPT_KEY)")
    parser.add_argument("--tls-certificate", help="PEM certificate chain of the server")
    parser.add_argument("--tls-key", help="PEM private key of the server")
    parser.add_argument("--tls-client-ca", help="PEM certificates that must have signed a client's certificate (mutual TLS)")
    parser.add_argument("--ready-file", type=Path, help="write a JSON object with address, metrics, store, pid here")
    add_log_level(parser)


def _run(arguments: argparse.Namespace) -> int:
    from serving.server import Addresses, serve

    ready_file: Path | None = arguments.ready_file

    def ready(addresses: Addresses) -> None:
        print(f"kunlun: {addresses.model} {addresses.version} on {addresses.grpc}", flush=True)
        if ready_file is not None:
            facts = dataclasses.asdict(addresses) | {"address": addresses.grpc, "pid": os.getpid()}
            aside = ready_file.with_name(f".{ready_file.name}.{os.getpid()}")
            aside.write_text(json.dumps(facts), encoding="utf-8")
            aside.replace(ready_file)

    return run_until_stopped(arguments, lambda: serve(_config(arguments), ready))


def _config(arguments: argparse.Namespace) -> ServerConfig:
    flags = flags_of(arguments)
    if arguments.metrics_port == OFF:
        flags.pop("metrics_port")
    tls = {key: value for key in ("certificate", "key", "client_ca") if (value := getattr(arguments, f"tls_{key}")) is not None}
    config = load_config(arguments.config, flags | ({"tls": tls} if tls else {}))
    return config.model_copy(update={"metrics_port": None}) if arguments.metrics_port == OFF else config


def _port_or_off(text: str) -> int | str:
    return OFF if text == OFF else int(text)


command = Command("serve a model over gRPC until SIGTERM", _configure, _run)
