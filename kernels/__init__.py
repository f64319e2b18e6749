"""Kernels: GDPA and its neighbours. One dispatcher (`kernels.dispatch`) in front of interchangeable forms."""
