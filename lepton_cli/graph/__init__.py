"""The graph: loading, saving, checking and rewriting ONNX models. The only place that knows the IR on disk."""
