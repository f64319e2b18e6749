"""Compiles variants without a GPU, two processes at a time, through Triton's own cache (keyed by source, options and tools).

Line information is left out: it would carry the builder's paths into the library and make builds differ by folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from kernels.aot.cubin import Cubin, read_cubin
from kernels.aot.sass import MachineCode, read_machine_code
from kernels.aot.targets import PTX_SM, PTX_VERSION
from kernels.aot.variant import Variant

PROCESSES = 2


@dataclass(frozen=True)
class Job:
    """A variant for one SM, and what of it is shipped: machine code for that SM, or text for others, or both.

    Text is that of `PTX_SM`, in the version `PTX_VERSION`.
    """

    variant: Variant
    sm: int
    cubin: bool = True
    text: bool = False


@dataclass(frozen=True)
class Compiled:
    """The result: the cubin, the PTX it came from, and how to launch it.

    `threads` and `shared_bytes` are the launch's; `tensor_memory_columns` is sm_100's, of 512. `hidden_parameters` counts the
    pointers that Triton appends to the kernel's own arguments (scratch memory, which these kernels must not need).
    """

    job: Job
    image: bytes
    ptx: str
    info: Cubin
    threads: int
    shared_bytes: int
    tensor_memory_columns: int
    hidden_parameters: int
    code: MachineCode


def compile_variant(job: Job) -> Compiled:
    """Compiles one job in this process. Raises `ValueError` if the kernel asks for what the launcher does not provide."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    variant = job.variant
    function = variant.function()
    if list(variant.signature) != list(function.arg_names):
        raise ValueError(f"variant {variant.name}: signature {list(variant.signature)}, kernel {list(function.arg_names)}")
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(variant.signature) if name in variant.aligned}
    source = ASTSource(fn=function, signature=dict(variant.signature), constexprs=dict(variant.constants), attrs=attributes)
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    if job.sm == PTX_SM:
        options["ptx_version"] = PTX_VERSION
    kernel = triton.compile(source, target=GPUTarget("cuda", job.sm, 32), options=options)
    meta = kernel.metadata
    for scratch in ("global_scratch_size", "profile_scratch_size"):
        if getattr(meta, scratch, 0):
            raise ValueError(f"variant {variant.name}: {scratch} is {getattr(meta, scratch)}; the launcher allocates nothing")
    if getattr(meta, "launch_cooperative_grid", False) or getattr(meta, "launch_pdl", False):
        raise ValueError(f"variant {variant.name}: cooperative and programmatic dependent launches are not supported")
    image: bytes = kernel.asm["cubin"]
    info = read_cubin(image)
    compiled = Compiled(
        job=job,
        image=image,
        ptx=kernel.asm["ptx"],
        info=info,
        threads=32 * meta.num_warps,
        shared_bytes=meta.shared,
        tensor_memory_columns=meta.tmem_size or 0,
        hidden_parameters=len(info.parameters) - len(variant.c_types()),
        code=read_machine_code(image),
    )
    _check_parameters(compiled)
    return compiled


def compile_all(jobs: Sequence[Job], cache: Path, processes: int = PROCESSES) -> Iterator[Compiled]:
    """Compiles every job in worker processes, yielding results as they finish. `cache` is created when absent."""
    with worker_pool(cache, processes) as pool:
        pending = [pool.submit(compile_variant, job) for job in jobs]
        for done in as_completed(pending):
            yield done.result()


def worker_pool(cache: Path, processes: int = PROCESSES) -> ProcessPoolExecutor:
    """Processes that may call `compile_variant`; each has its own Triton, never in interpret mode."""
    cache.mkdir(parents=True, exist_ok=True)
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_enter, initargs=(str(cache),))


def _enter(cache: str) -> None:
    """Before Triton is imported in a worker: its cache, no paths in the output, and never the interpreter."""
    os.environ["TRITON_CACHE_DIR"] = cache
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
    os.environ.pop("TRITON_INTERPRET", None)


def _check_parameters(compiled: Compiled) -> None:
    """The cubin's own parameter layout must be that of the C++ types passed, plus 8-byte hidden pointers."""
    variant, found = compiled.job.variant, compiled.info.parameters
    sizes = {"int32_t": 4, "uint32_t": 4, "float": 4}
    kinds = [(name, sizes.get(kind, 8)) for name, kind in variant.c_types().items()]
    kinds += [(f"hidden pointer {i}", 8) for i in range(compiled.hidden_parameters)]
    for (name, size), parameter in zip(kinds, found, strict=True):
        if size != parameter.size:
            raise ValueError(
                f"variant {variant.name} sm_{compiled.job.sm}: {name} takes {parameter.size} bytes in the cubin, "
                f"{size} in the launcher"
            )
