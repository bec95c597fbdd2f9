"""Training from the .onnx alone: the graph runs in torch, and only its weights are written back."""
