"""Networks from and to other libraries: PyTorch, scikit-learn, ONNX. Each is imported only where it is used."""
