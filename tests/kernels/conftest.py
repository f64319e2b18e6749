"""Triton kernels run in Triton's interpreter on CPU tensors here; on a machine with a GPU they run on it instead.

The interpreter must be chosen before Triton is imported. It is not left in the environment: processes that tests start
(compiling kernels ahead of time, say) choose for themselves.
"""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    import triton
    import triton.language

    triton.knobs.runtime.interpret = True
    del os.environ["TRITON_INTERPRET"]
