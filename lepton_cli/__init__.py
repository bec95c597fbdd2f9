"""lepton: compress trained ONNX models and prove what was done to them."""

__version__ = "0.1.0"
