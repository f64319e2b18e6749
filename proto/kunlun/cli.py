"""The `kunlun` command: finds its sub-commands by entry point and runs the one asked for.

Each distribution part registers a `Command` under the entry-point group ``kunlun.commands``; this
module imports only the one that is run, so `kunlun rank` needs grpcio and protobuf alone.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import FrameType

from kunlun import __version__

GROUP = "kunlun.commands"
ORDER = ("prepare", "train", "evaluate", "export", "compile", "load", "serve", "rank", "demo")


@dataclass(frozen=True)
class Command:
    """One sub-command: `configure` declares its arguments, `run` does the work and returns the exit status."""

    help: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


class UsageError(Exception):
    """A mistake the user can correct; shown as one line, exit status 2."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    known = {e.name: e for e in entry_points(group=GROUP)}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview(known))
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"kunlun {__version__}")
        return 0
    name = arguments[0]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; commands: {', '.join(_ordered(known))}"
        print(f"kunlun: unknown command {name!r}{hint}", file=sys.stderr)
        return 2
    try:
        command: Command = known[name].load()
    except ModuleNotFoundError as error:
        print(f"kunlun {name}: needs the package {error.name!r}: pip install 'kunlun-serving[{_extra(name)}]'", file=sys.stderr)
        return 2
    parser = argparse.ArgumentParser(prog=f"kunlun {name}", description=command.help)
    command.configure(parser)
    try:
        with ended_by_sigterm():
            return command.run(parser.parse_args(arguments[1:]))
    except UsageError as error:
        print(f"kunlun {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as an exit would, temporary files included, once a library that it is in has returned.

    By a handler of ours, since the kernel spares the first process of a container every signal that it does not handle.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone may have handlers
        yield
        return

    def leave(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _overview(known: dict[str, EntryPoint]) -> str:
    lines = ["usage: kunlun COMMAND [ARGUMENTS]   (kunlun COMMAND --help explains one)", "", "commands:"]
    for name in _ordered(known):
        try:
            text = known[name].load().help
        except ModuleNotFoundError:
            text = f"(install kunlun-serving[{_extra(name)}])"
        lines.append(f"  {name:<10} {text}")
    return "\n".join(lines)


def _ordered(known: dict[str, EntryPoint]) -> list[str]:
    return sorted(known, key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n))


def _extra(name: str) -> str:
    return "train" if name in ("prepare", "train", "evaluate", "export", "demo") else "cpu"


if __name__ == "__main__":
    from kunlun.cli import main as run  # under -m this module is `__main__`, and commands raise `kunlun.cli.UsageError`

    sys.exit(run())
