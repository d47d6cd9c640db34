"""Exports to ONNX and `torch.export`, and loading a student without pickle."""
