"""The TensorRT engine for NVIDIA GPUs: typed graphs, work buckets, build, and sessions. TensorRT and CUDA come when needed."""
