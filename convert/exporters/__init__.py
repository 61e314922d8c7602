"""Other exporters: each makes a float32 ONNX graph of architectures that no family here knows."""
