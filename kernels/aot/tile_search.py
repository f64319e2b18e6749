"""Finds the exceptions of `tiles.json`: where tuned tiles spill or do not fit, the first candidate that holds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

from kernels.aot import catalogue, tiles
from kernels.aot.compiler import PROCESSES, Compiled, Job, compile_variant, worker_pool
from kernels.aot.report import problems
from kernels.aot.targets import TARGETS
from kernels.aot.tiles import Shipped
from kernels.variants import Blocks


def classes() -> dict[str, list[Shipped]]:
    """Class → the variants that must all compile with its tiles."""
    found: dict[str, list[Shipped]] = {}
    for v in catalogue.everything():
        found.setdefault(tiles.tile_class(v), []).append(v)
    return found


def search(sms: Sequence[int], cache: Path, progress: Callable[[str], None]) -> dict[str, dict[str, Blocks]]:
    """Class → SM → tile sizes, where they differ from the tuned ones; `progress` sees one line per class and SM.

    Raises `RuntimeError` when no candidate of some class fits.
    """
    members = classes()
    missing: list[str] = []
    lock = threading.Lock()
    found: dict[str, dict[str, Blocks]] = {name: {} for name in members}
    with worker_pool(cache) as pool, ThreadPoolExecutor(PROCESSES) as threads:

        def one(name: str, sm: int) -> None:
            chosen = _first(pool, members[name], sm)
            with lock:
                progress(f"{name} sm_{sm}: {chosen or 'none fits'}")
                if chosen is None:
                    missing.append(f"{name} on sm_{sm}")
                elif chosen != tiles.tuned(members[name][0]):
                    found[name][str(sm)] = chosen

        pending = [threads.submit(one, name, sm) for sm in sms for name in members]
        for done in pending:
            done.result()
    if missing:
        raise RuntimeError(f"no candidate of kernels.aot.tiles fits: {', '.join(missing)}; add smaller ones")
    return found


def _first(pool: ProcessPoolExecutor, members: list[Shipped], sm: int) -> Blocks | None:
    """The tuned tiles, else the present exception, else the first candidate that holds for every member of a class."""
    tuned, *others = tiles.candidates(members[0])
    for tile in dict.fromkeys((tuned, tiles.blocks(members[0], sm), *others)):
        if all(_holds(pool, Job(catalogue.variant(v, tile), sm)) for v in members):
            return tile
    return None


def _holds(pool: ProcessPoolExecutor, job: Job) -> bool:
    compiled: Compiled = pool.submit(compile_variant, job).result()
    return not problems(compiled)


def every_sm() -> list[int]:
    return [t.sm for t in TARGETS]
