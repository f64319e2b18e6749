"""The PFFN block backward for q: one program per Q tile, all heads; dK and dV come from `gdpa_backward_kv` with NORMS.

Nothing of the forward is stored but three numbers per row (LayerNorm mean and rstd, RMSNorm rrms). With
r = out − q the RMSNorm output, c = mean(dout · r) over all heads and x the RMSNorm input:

    dx = rrms · (dout − r · c)                                        (also dq̂ of the inner residual)
    dq̂ = dx + s_in s_out · (Act′(S) ⊙ (dx Vᵀ)) K
    dq  = rstd · (dq̂ − mean(dq̂) − q̂ · mean(dq̂ · q̂)) + dout

`out − q` loses digits where |q| ≫ |r| = 1, but r enters only as r · c and in the mean c over the token's
H · d_h values; |c| is about |dout| / √(H d_h), so an error e of r moves dx by about 2 e |dout| / √(H d_h).
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gdpa.triton_backward import normed_query, through_rms_norm
from kernels.gdpa.triton_parts import LAYOUT, SCALARS, attend_backward, block_range, load_rows, row_range, store_rows, work_unit
from kernels.triton_activations import INTERPRETED


@triton.jit(do_not_specialize=SCALARS, do_not_specialize_on_alignment=LAYOUT)
def pffn_backward_q(
    q, k, v, out, dout, dq, mean, rstd, rrms, coupling, tiles, q_offsets, q_lengths, k_offsets, kv_index,
    scale_in, scale_out, units_per_sample,
    HEADS: tl.constexpr, HEAD_WIDTH: tl.constexpr, N_KV: tl.constexpr, CODES: tl.constexpr, PER_HEAD: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dq [rows, HEADS, HEAD_WIDTH]; writes `coupling` f32 [rows], the c above, for the K/V kernel; grid (units,)."""
    HARDWARE: tl.constexpr = (k.dtype.element_ty != tl.float32) and not INTERPRETED
    ONE_TILE: tl.constexpr = (N_KV > 0) and (N_KV <= BLOCK_N)
    WIDTH: tl.constexpr = HEADS * HEAD_WIDTH
    sample, first = work_unit(tiles, tl.program_id(0), units_per_sample, BLOCK_M)
    if sample >= 0:
        start, length = row_range(q_offsets, q_lengths, sample)
        if first < length:
            k_start, n_kv = block_range(k_offsets, kv_index, sample, N_KV)
            rows = first + tl.arange(0, BLOCK_M)
            inside = rows < length
            base = start * WIDTH
            k_base = k + k_start * WIDTH
            v_base = v + k_start * WIDTH
            couple = tl.zeros([BLOCK_M], tl.float32)
            for head in tl.range(HEADS, num_stages=1):
                raw = load_rows(q + base, rows, length, head, HEADS, HEAD_WIDTH, BLOCK_D).to(tl.float32)
                y = load_rows(out + base, rows, length, head, HEADS, HEAD_WIDTH, BLOCK_D).to(tl.float32)
                dy = load_rows(dout + base, rows, length, head, HEADS, HEAD_WIDTH, BLOCK_D).to(tl.float32)
                couple += tl.sum(dy * (y - raw), 1)
            couple = couple / WIDTH
            tl.store(coupling + start + rows, couple, mask=inside)
            mu = tl.load(mean + start + rows, mask=inside, other=0.0)
            inverse_std = tl.load(rstd + start + rows, mask=inside, other=0.0)
            inverse_rms = tl.load(rrms + start + rows, mask=inside, other=0.0)
            total = tl.zeros([BLOCK_M], tl.float32)
            along = tl.zeros([BLOCK_M], tl.float32)
            for head in range(HEADS):
                raw = load_rows(q + base, rows, length, head, HEADS, HEAD_WIDTH, BLOCK_D)
                y = load_rows(out + base, rows, length, head, HEADS, HEAD_WIDTH, BLOCK_D)
                dy = load_rows(dout + base, rows, length, head, HEADS, HEAD_WIDTH, BLOCK_D)
                dx = through_rms_norm(dy, y, raw, inverse_rms, couple)
                normed = normed_query(raw, mu, inverse_std, HEAD_WIDTH, BLOCK_D)
                d_normed = (scale_in * scale_out) * attend_backward(
                    normed.to(k.dtype.element_ty), dx.to(k.dtype.element_ty), rows, k_base, v_base, n_kv, head, scale_in, 0,
                    HEADS, HEAD_WIDTH, CODES, PER_HEAD, False, ONE_TILE, BLOCK_M, BLOCK_N, BLOCK_D, HARDWARE,
                ) + dx  # fmt: skip
                total += tl.sum(d_normed, 1)
                along += tl.sum(d_normed * normed, 1)
                store_rows(dq + base, rows, length, head, d_normed, HEADS, HEAD_WIDTH, BLOCK_D)
            total = total / WIDTH
            along = along / WIDTH
            tl.debug_barrier()  # dq̂ is read back below, perhaps by another thread than stored it
            for head in tl.range(HEADS, num_stages=1):
                raw = load_rows(q + base, rows, length, head, HEADS, HEAD_WIDTH, BLOCK_D)
                dy = load_rows(dout + base, rows, length, head, HEADS, HEAD_WIDTH, BLOCK_D).to(tl.float32)
                d_normed = load_rows(dq + base, rows, length, head, HEADS, HEAD_WIDTH, BLOCK_D).to(tl.float32)
                normed = normed_query(raw, mu, inverse_std, HEAD_WIDTH, BLOCK_D)
                x = inverse_std[:, None] * (d_normed - total[:, None] - normed * along[:, None]) + dy
                store_rows(dq + base, rows, length, head, x, HEADS, HEAD_WIDTH, BLOCK_D)
