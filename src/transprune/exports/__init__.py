"""What runtimes read: ONNX, exported programs, and loading a student without pickle."""
