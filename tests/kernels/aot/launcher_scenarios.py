"""What is done to the launcher library in a process where the recording driver is the driver. No torch here: it starts fast."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from fake_driver import with_driver

from kernels.aot.library import (
    ACTIVATIONS,
    DTYPES,
    GDPAParams,
    KernelError,
    KernelLibrary,
    SeedPoolingParams,
    Status,
    WindowParams,
)

GDPA: dict[str, Any] = {
    "dtype": DTYPES["bf16"], "activation": ACTIVATIONS.index("fast_gelu"), "block": 0, "heads": 2, "head_width": 64, "n_kv": 64,
    "q": 0x10000, "k": 0x20000, "v": 0x30000, "out": 0x40000, "q_offsets": 0x50004, "kv_index": 0x60008,
    "max_length": 1000, "samples": 7, "scale_in": 0.25, "scale_out": 3.0,
}  # fmt: skip
WINDOW: dict[str, Any] = {
    "dtype": DTYPES["bf16"], "heads": 2, "head_width": 64, "q": 0x10000, "k": 0x20000, "v": 0x30000, "out": 0x40000,
    "lse": 0x90004, "offsets": 0x50004, "units": 0x80008, "unit_count": 11, "window": 100, "scale": 0.5,
    "q_row": 384, "q_head": 64, "k_row": 400, "k_head": 80, "v_row": 416, "v_head": 96,
}  # fmt: skip
POOLING: dict[str, Any] = {
    "dtype": DTYPES["f16"], "heads": 2, "head_width": 64, "seeds": 0x10000, "k": 0x20000, "v": 0x30000, "out": 0x40000,
    "offsets": 0x50004, "order": 0x60008, "samples": 7, "n_seeds": 200, "scale": 0.25,
    "k_row": 128, "k_head": 64, "v_row": 256, "v_head": 16,
}  # fmt: skip
STRUCTS = {"gdpa": GDPAParams, "window": WindowParams, "seed_pooling": SeedPoolingParams}
NO_BINARY_FOR_GPU, OUT_OF_MEMORY = 209, 2
PFFN = GDPA | {"dtype": DTYPES["f16"], "block": 1, "eps": 1e-5, "q_lengths": 0x7000C}


def refusal(library: KernelLibrary, **fields: Any) -> tuple[Status, str]:
    with pytest.raises(KernelError) as error:
        library.launch(GDPAParams(**GDPA | fields), 0)
    return error.value.status, str(error.value)


def launched(
    fake: Path, library: Path, sm: int, fields: dict[str, Any], force_ptx: bool = False, struct: str = "gdpa"
) -> dict[str, Any]:
    """Prepares and launches once; what the driver saw, with parameters by their place in the loaded cubin."""
    driver, kernels = with_driver(fake, library, sm)
    kernels.force_ptx(force_ptx)
    params = STRUCTS[struct](**fields)
    kernels.prepare(params)
    assert driver.get("fake_launches") == 0
    image = driver.image(0)
    info = driver.expect_parameters(0) if image[:4] == b"\x7fELF" else None
    kernels.launch(params, 0xABC0)
    last = driver.last()
    raw = bytes(last.parameters)
    return {
        "image": image,
        "modules": driver.get("fake_modules"),
        "grid": tuple(last.grid),
        "block": tuple(last.block),
        "shared": last.shared,
        "dynamic": driver.dynamic_shared(0),
        "stream": last.stream,
        "parameters": [(p.size, raw[p.offset : p.offset + p.size]) for p in info.parameters] if info else [],
        "unit_rows": 0 if isinstance(params, SeedPoolingParams) else kernels.unit_rows(params),
    }


def refused_cubin(fake: Path, library: Path) -> bytes:
    driver, kernels = with_driver(fake, library, 100)
    driver.set("fake_refuse_cubins", NO_BINARY_FOR_GPU)
    for _ in range(3):
        kernels.prepare(GDPAParams(**GDPA))
    assert driver.get("fake_loads") == 2, "the cubin is not offered again, and the text is there"
    kernels.launch(GDPAParams(**GDPA), 0)
    assert driver.get("fake_launches") == 1
    driver.set("fake_context_id", 2)  # where nothing is known to be refused
    kernels.prepare(GDPAParams(**GDPA))
    assert driver.get("fake_loads") == 4
    return driver.image(0)


def short_of_memory(fake: Path, library: Path) -> None:
    """Which says nothing of the image: it is offered again."""
    driver, kernels = with_driver(fake, library, 100)
    driver.set("fake_refuse_cubins", OUT_OF_MEMORY)
    kernels.prepare(GDPAParams(**PFFN))
    assert b".target" in driver.image(0)[:400]
    kernels.prepare(GDPAParams(**PFFN))
    assert driver.get("fake_loads") == 3


def unusable_kernels(fake: Path, library: Path) -> str:
    """No image's kernel is found, and later all are."""
    driver, kernels = with_driver(fake, library)
    driver.set("fake_refuse_functions", 1)
    with pytest.raises(KernelError) as error:
        kernels.prepare(GDPAParams(**PFFN))
    assert driver.get("fake_loads") == driver.get("fake_unloads") > 0
    driver.set("fake_refuse_functions", 0)
    kernels.prepare(GDPAParams(**PFFN))
    kernels.launch(GDPAParams(**PFFN), 0)
    return str(error.value)


def too_much_shared_memory(fake: Path, library: Path, sm: int) -> tuple[int, int]:
    """How many images were loaded, and unloaded, until one was found whose kernel needs less."""
    driver, kernels = with_driver(fake, library, sm)
    driver.set("fake_refuse_shared", 1)
    kernels.prepare(GDPAParams(**PFFN))
    kernels.launch(GDPAParams(**PFFN), 0)
    return driver.get("fake_loads"), driver.get("fake_unloads")


def preparation(fake: Path, library: Path) -> None:
    driver, kernels = with_driver(fake, library)
    params = GDPAParams(**GDPA)
    assert refusal(kernels)[0] is Status.NOT_PREPARED
    kernels.prepare(params)
    kernels.prepare(params)
    assert driver.get("fake_modules") == 1  # once per context
    kernels.launch(params, 0)
    driver.set("fake_context_id", 2)  # another context, perhaps at the same address
    status, message = refusal(kernels)
    assert (status, driver.get("fake_launches")) == (Status.NOT_PREPARED, 1)
    assert "prepare it first, outside the hot path" in message
    kernels.prepare_all()
    assert driver.get("fake_modules") == 1 + 5  # one image of each of the five variants
    kernels.launch(params, 0)
    kernels.launch(GDPAParams(**PFFN), 0)
    driver.set("fake_context", 0)
    status, message = refusal(kernels)
    assert status is Status.NO_CONTEXT
    assert "cudaSetDevice" in message


def refusals(fake: Path, library: Path) -> None:
    driver, kernels = with_driver(fake, library)
    kernels.prepare_all()
    unset = GDPAParams(**GDPA)
    unset.version = 0
    with pytest.raises(
        KernelError, match=r"params->version is 0x00000000, expected 0x010000\w\w: set it to KUNLUN_GDPA_PARAMS_V1"
    ):
        kernels.launch(unset, 0)
    assert refusal(kernels, q=0x10008)[1].endswith("params->q is 0x10008, expected an address aligned to 16 bytes")
    assert refusal(kernels, q_offsets=0x50002)[1].endswith(
        "params->q_offsets is 0x50002, expected an address aligned to 4 bytes"
    )
    assert refusal(kernels, out=None)[1].endswith("params->out is NULL, expected a device address")
    assert refusal(kernels, samples=-1)[1].endswith("params->samples is -1, expected 0 to 2147483646")
    assert refusal(kernels, dtype=9)[1].endswith("params->dtype is 9, expected 0 to 2")
    assert "expected 0: blocks are dense or jagged" in refusal(kernels, k_offsets=0x80)[1]
    assert "params->k_offsets is NULL" in refusal(kernels, n_kv=0)[1]
    assert "expected its length" in refusal(kernels, units=0x80)[1]
    assert "params->units is NULL" in refusal(kernels, unit_count=5)[1]
    status, message = refusal(kernels, n_kv=96)
    assert status is Status.UNSUPPORTED_VARIANT
    assert "no kernel for these parameters on sm_80; there are: " in message
    assert "n_kv 0, 64" in message
    status, message = refusal(kernels, max_length=2_000_000_000, samples=2_000_000_000)
    assert status is Status.INVALID_ARGUMENT
    assert "split the batch" in message
    for nothing in ({"samples": 0}, {"max_length": 0}):
        kernels.launch(GDPAParams(**GDPA | nothing), 0)
    assert driver.get("fake_launches") == 0
    kernels.launch(GDPAParams(**GDPA | {"units": 0x80, "unit_count": 5, "max_length": 0}), 0)
    assert tuple(driver.last().grid) == (5, 2, 1)


def old_gpu(fake: Path, library: Path) -> tuple[Status, str]:
    _, kernels = with_driver(fake, library, 75)
    with pytest.raises(KernelError) as error:
        kernels.prepare(GDPAParams(**GDPA))
    return error.value.status, str(error.value)


def no_device(fake: Path, library: Path) -> tuple[Status, str]:
    driver, kernels = with_driver(fake, library)
    driver.set("fake_init_result", 100)
    with pytest.raises(KernelError) as error:
        kernels.prepare(GDPAParams(**GDPA))
    return error.value.status, str(error.value)


def threads(fake: Path, library: Path) -> None:
    driver, kernels = with_driver(fake, library)
    failures: list[BaseException] = []
    start = threading.Barrier(8)

    def work() -> None:
        try:
            start.wait()
            for _ in range(200):
                kernels.prepare(GDPAParams(**GDPA))
                kernels.launch(GDPAParams(**GDPA), 0)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert driver.get("fake_modules") == 1


def attention_refusals(fake: Path, library: Path) -> None:
    _, kernels = with_driver(fake, library)
    kernels.prepare_all()
    for struct, fields, name, bad, message in (
        (WindowParams, WINDOW, "k_head", 40, "params->k_head is 40, expected a positive multiple of 16 elements"),
        (WindowParams, WINDOW, "offsets", None, "params->offsets is NULL, expected a device address"),
        (WindowParams, WINDOW, "window", -1, "params->window is -1, expected 0 to 1073741824"),
        (WindowParams, WINDOW, "unit_count", 0, "params->unit_count is 0 beside a work list, expected its length"),
        (WindowParams, WINDOW, "reserved", 1, "params->reserved is 1, expected 0 to 0"),
        (SeedPoolingParams, POOLING, "reserved", 1, "params->reserved is 1, expected 0 to 0"),
        (WindowParams, WINDOW, "heads", 5, "no kernel for these parameters on sm_80"),
        (SeedPoolingParams, POOLING, "v_row", 0, "params->v_row is 0, expected a positive multiple of 16 elements"),
        (SeedPoolingParams, POOLING, "seeds", 0x10004, "params->seeds is 0x10004, expected an address aligned to 16 bytes"),
        (SeedPoolingParams, POOLING, "n_seeds", 0, "params->n_seeds is 0, expected 1 to 2147483647"),
        (SeedPoolingParams, POOLING, "version", 7, "set it to KUNLUN_SEED_POOLING_PARAMS_V1 of this library's header"),
    ):
        params = struct(**(fields | ({"samples": 3, "max_length": 9} if struct is WindowParams else {})))
        setattr(params, name, bad)
        with pytest.raises(KernelError) as error:
            kernels.launch(params, 0)
        assert message in str(error.value)
