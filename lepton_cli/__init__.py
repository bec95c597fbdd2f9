"""lepton: compress trained ONNX models and prove what was done to them.

    import lepton_cli as lepton

    result = lepton.compress("model.onnx", "recipe.yaml")

Importing this loads nothing; a name loads what it needs when it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lepton_cli.data.memory import Arrays as Arrays
    from lepton_cli.data.spec import DataSpec as DataSpec
    from lepton_cli.errors import LeptonError as LeptonError
    from lepton_cli.graph.spec import Fuse as Fuse
    from lepton_cli.graph.spec import Simplify as Simplify
    from lepton_cli.library import Applied as Applied
    from lepton_cli.library import Result as Result
    from lepton_cli.library import apply as apply
    from lepton_cli.library import bench as bench
    from lepton_cli.library import compress as compress
    from lepton_cli.library import evaluate as evaluate
    from lepton_cli.measure.spec import AccuracySpec as AccuracySpec
    from lepton_cli.progress import Progress as Progress
    from lepton_cli.prune.spec import PruneChannels as PruneChannels
    from lepton_cli.prune.spec import PruneWeights as PruneWeights
    from lepton_cli.quantize.spec import ConvertFp16 as ConvertFp16
    from lepton_cli.quantize.spec import QuantizeDynamic as QuantizeDynamic
    from lepton_cli.quantize.spec import QuantizeStatic as QuantizeStatic
    from lepton_cli.quantize.spec import QuantizeWeights as QuantizeWeights
    from lepton_cli.recipe.schema import Recipe as Recipe
    from lepton_cli.version import __version__ as __version__

#: Public name -> the module below the package that holds it; the imports above say the same to type checkers.
_PUBLIC = {
    "AccuracySpec": "measure.spec",
    "Applied": "library",
    "Arrays": "data.memory",
    "ConvertFp16": "quantize.spec",
    "DataSpec": "data.spec",
    "Fuse": "graph.spec",
    "LeptonError": "errors",
    "Progress": "progress",
    "PruneChannels": "prune.spec",
    "PruneWeights": "prune.spec",
    "QuantizeDynamic": "quantize.spec",
    "QuantizeStatic": "quantize.spec",
    "QuantizeWeights": "quantize.spec",
    "Recipe": "recipe.schema",
    "Result": "library",
    "Simplify": "graph.spec",
    "__version__": "version",
    "apply": "library",
    "bench": "library",
    "compress": "library",
    "evaluate": "library",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    value = getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
