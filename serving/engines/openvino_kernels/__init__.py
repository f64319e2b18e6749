"""Kernels inside OpenVINO: the PFFN block as one operation, where the graph form leaves a CPU's units waiting.

`build` compiles the C++ here into a library beside an engine's graphs, `fuse` puts the operation in the place of the
operators it stands for. Both are optional: without a compiler or AVX-512 the engine runs the graph as it is.
"""
