"""The parts of the PFFN block's backward that need no K/V: one program per few whole rows, all heads side by side."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gdpa.triton_parts import LAYOUT


@triton.jit
def whole_rows(x, row, live, WIDTH: tl.constexpr, BLOCK_W: tl.constexpr):
    """Rows of x [rows, WIDTH] as f32 [R, BLOCK_W]; zero for rows that are not live and columns beyond WIDTH."""
    column = tl.arange(0, BLOCK_W)
    mask = live[:, None] & (column < WIDTH)[None, :]
    return tl.load(x + row[:, None] * WIDTH + column[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=LAYOUT)
def row_coupling(q, out, dout, rrms, coupling, rows, WIDTH: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr):
    """coupling f32 [rows] = mean(dout · r) over all heads, r = out − q. Padding rows are those with rrms = 0."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    live = tl.load(rrms + row, mask=row < rows, other=0.0) > 0.0
    r = whole_rows(out, row, live, WIDTH, BLOCK_W) - whole_rows(q, row, live, WIDTH, BLOCK_W)
    dy = whole_rows(dout, row, live, WIDTH, BLOCK_W)
    tl.store(coupling + row, tl.sum(dy * r, 1) / WIDTH, mask=live)


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=LAYOUT)
def layer_norm_backward(q, dout, dq, mean, rstd, rrms, rows, WIDTH: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr):
    """dq holds dq̂ and becomes rstd · (dq̂ − mean(dq̂) − q̂ · mean(dq̂ · q̂)) + dout; 0 in padding rows."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    live = tl.load(rrms + row, mask=row < rows, other=0.0) > 0.0
    mu = tl.load(mean + row, mask=live, other=0.0)
    inverse_std = tl.load(rstd + row, mask=live, other=0.0)
    column = tl.arange(0, BLOCK_W)
    normed = (whole_rows(q, row, live, WIDTH, BLOCK_W) - mu[:, None]) * inverse_std[:, None]
    normed = tl.where((column < WIDTH)[None, :], normed, 0.0)
    d_normed = whole_rows(dq, row, live, WIDTH, BLOCK_W)
    total = tl.sum(d_normed, 1) / WIDTH
    along = tl.sum(d_normed * normed, 1) / WIDTH
    x = inverse_std[:, None] * (d_normed - total[:, None] - normed * along[:, None])
    x = x + whole_rows(dout, row, live, WIDTH, BLOCK_W)
    mask = (row < rows)[:, None] & (column < WIDTH)[None, :]
    tl.store(dq + row[:, None] * WIDTH + column[None, :], x.to(dq.dtype.element_ty), mask=mask)
