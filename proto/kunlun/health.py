"""`kunlun health`: whether a server says that it serves; the probe of containers, with nothing else to install."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import grpc

from kunlun.cli import Command, UsageError
from kunlun.client import Client


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", default="127.0.0.1:50051", metavar="HOST:PORT", help="default: 127.0.0.1:50051")
    parser.add_argument("--timeout-s", type=float, default=3.0, help="deadline (default: 3)")
    parser.add_argument("--tls-ca", type=Path, help="PEM certificates that vouch for the server; turns TLS on")
    parser.add_argument("--tls-certificate", type=Path, help="PEM certificate to present (mutual TLS)")
    parser.add_argument("--tls-key", type=Path, help="its private key")
    parser.add_argument("--tls-name", help="name in the server's certificate (default: the host)")


def _run(arguments: argparse.Namespace) -> int:
    credentials = _credentials(arguments)
    options = {} if arguments.tls_name is None else {"grpc.ssl_target_name_override": arguments.tls_name}
    with Client(arguments.server, timeout_s=arguments.timeout_s, credentials=credentials, options=options) as client:
        if not client.health():
            print(f"kunlun health: {arguments.server} is not serving, or cannot be reached", file=sys.stderr)
            return 1
    print(f"{arguments.server} is serving")
    return 0


def _credentials(arguments: argparse.Namespace) -> grpc.ChannelCredentials | None:
    """TLS as asked for, None without; raises `UsageError`."""
    own = (arguments.tls_certificate, arguments.tls_key)
    if arguments.tls_ca is None:
        if any(own):
            raise UsageError("--tls-ca: expected together with --tls-certificate and --tls-key, found none")
        return None
    if any(own) and not all(own):
        raise UsageError("--tls-certificate and --tls-key: expected both or neither, found one")
    try:
        ca, certificate, key = (path.read_bytes() if path else None for path in (arguments.tls_ca, *own))
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}") from error
    return grpc.ssl_channel_credentials(ca, key, certificate)


command = Command("ask a server whether it serves; status 1 when not", _configure, _run)
