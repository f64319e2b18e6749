"""Kernels compiled ahead of time: cubins for every supported SM inside one C library that needs no toolkit at run time."""
