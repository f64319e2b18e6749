"""The operators in TensorRT: ONNX nodes, the plugin library that runs them, and what checks both without a GPU."""
