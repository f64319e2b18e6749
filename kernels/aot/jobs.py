"""What is compiled: every shipped variant for every GPU as machine code, and once as text for all other GPUs.

Text runs on GPUs that nobody compiled for, so its tiles are those of the supported GPU with the least shared memory. Where they
are the tiles of `PTX_SM` anyway, one compilation gives both.
"""

from __future__ import annotations

from collections.abc import Sequence

from kernels.aot import catalogue
from kernels.aot.compiler import Job
from kernels.aot.targets import PTX_SM, PTX_TILES_SM, TARGETS, target


def selected_jobs(sms: Sequence[int] = (), only: Sequence[str] = ()) -> list[Job]:
    """Jobs of these SMs (default: all) for variants whose name contains one of `only`; raises `ValueError` on none.

    Text comes with `PTX_SM`.
    """
    jobs: list[Job] = []
    for sm in sms or [t.sm for t in TARGETS]:
        smallest = {v.name: v for v in catalogue.variants(PTX_TILES_SM)} if target(sm).sm == PTX_SM else {}
        for variant in catalogue.variants(sm):
            if only and not any(part in variant.name for part in only):
                continue
            text = smallest.get(variant.name)
            jobs.append(Job(variant, sm, text=text == variant))
            if text is not None and text != variant:
                jobs.append(Job(text, sm, cubin=False, text=True))
    if not jobs:
        raise ValueError(f"--only {' '.join(only)}: no variant has such a name")
    return jobs
