"""`kunlun forget`: delete everything that a server's store holds of a user."""

from __future__ import annotations

import argparse
import json
import sys

from kunlun.cli import Command
from kunlun.client import Client, KunlunError


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", default="127.0.0.1:50051", metavar="HOST:PORT", help="default: 127.0.0.1:50051")
    parser.add_argument("--user", required=True, help="user id")
    parser.add_argument("--timeout-s", type=float, default=5.0, help="deadline (default: 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run(arguments: argparse.Namespace) -> int:
    with Client(arguments.server, timeout_s=arguments.timeout_s) as client:
        try:
            deleted = client.forget_user(arguments.user)
        except KunlunError as error:
            print(f"kunlun forget: {error}", file=sys.stderr)
            return 1
    if arguments.json:
        print(json.dumps({"user": arguments.user, "deleted": deleted}))
    else:
        print(f"{arguments.user}: everything stored has been deleted" if deleted else f"{arguments.user}: nothing was stored")
    return 0


command = Command("delete everything stored of a user", _configure, _run)
