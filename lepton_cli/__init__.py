"""lepton: compress trained ONNX models and prove what was done to them."""

from lepton_cli.version import __version__

__all__ = ["__version__"]
