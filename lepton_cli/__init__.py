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
    from lepton_cli.data.spec import TrainingSpec as TrainingSpec
    from lepton_cli.errors import LeptonError as LeptonError
    from lepton_cli.library import Applied as Applied
    from lepton_cli.library import Result as Result
    from lepton_cli.library import apply as apply
    from lepton_cli.library import bench as bench
    from lepton_cli.library import compress as compress
    from lepton_cli.library import evaluate as evaluate
    from lepton_cli.measure.spec import AccuracySpec as AccuracySpec
    from lepton_cli.progress import Progress as Progress
    from lepton_cli.recipe.schema import Recipe as Recipe
    from lepton_cli.steps import *  # noqa: F403
    from lepton_cli.version import __version__ as __version__

#: Public name -> the module below the package that holds it; the imports above say the same to type checkers. Besides
#: these, the options of every step in `steps.py` are public.
_PUBLIC = {
    "AccuracySpec": "measure.spec",
    "Applied": "library",
    "Arrays": "data.memory",
    "DataSpec": "data.spec",
    "LeptonError": "errors",
    "Progress": "progress",
    "Recipe": "recipe.schema",
    "Result": "library",
    "TrainingSpec": "data.spec",
    "__version__": "version",
    "apply": "library",
    "bench": "library",
    "compress": "library",
    "evaluate": "library",
}


def __getattr__(name: str) -> object:
    if name == "__all__":
        return __dir__()
    module = _PUBLIC.get(name)
    # Python asks for modules here too, while they load: they begin small, and the options of steps do not.
    if module is None and name[:1].isupper() and name in _step_names():
        module = "steps"
    if module is None:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def _step_names() -> list[str]:
    return list(import_module(f"{__name__}.steps").__all__)


def __dir__() -> list[str]:
    return sorted([*_PUBLIC, *_step_names()])
