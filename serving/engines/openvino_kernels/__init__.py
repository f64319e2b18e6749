"""Kernels inside OpenVINO: the PFFN block as one operation, where the graph form leaves a CPU's units waiting.

`build` compiles the C++ here into a library beside an engine's graphs, `fuse` puts the operation in the place of the
operators it stands for. An option (`kunlun compile --fused-block`), for what it gains see `python -m loadtest.cpu_graph`.
"""
