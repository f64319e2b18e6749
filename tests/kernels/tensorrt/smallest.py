"""Sizes of the smallest kernels that are shipped: those of the preset `tiny`."""

HEADS, WIDTH, N_KV = 2, 16, 8
