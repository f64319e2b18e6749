"""Export: torch twin → portable artifact (ONNX graphs over shared safetensors weights). Needs torch."""
