"""A user's own metric: `file.py:function`, called with outputs, labels and inputs. Runs only with --allow-code."""

from __future__ import annotations

import importlib.util
import inspect
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_cli.errors import MeasurementError, RecipeError
from lepton_cli.runtime import Values

#: Of outputs, labels and, where it takes them, inputs.
Function = Callable[..., Any]


class Hook:
    """A loaded function. Its result is either one value per sample or one number for everything it was given."""

    def __init__(self, reference: str, function: Function, file: Path, *, takes_inputs: bool = False) -> None:
        self.reference, self._function, self._file = reference, function, file
        self.takes_inputs = takes_inputs

    def __call__(self, outputs: Values, labels: Values, inputs: Values, samples: int) -> NDArray[np.float64] | float:
        """Per-sample values of shape (samples,), or a number. Raises MeasurementError naming the hook and its line."""
        given = (dict(outputs), dict(labels), dict(inputs)) if self.takes_inputs else (dict(outputs), dict(labels))
        try:
            result = np.asarray(self._function(*given), dtype=np.float64)
        except Exception as error:
            raise self._failed(f"raised {type(error).__name__}: {error}", _line(error, self._file)) from error
        if not np.isfinite(result).all():
            raise self._failed("returned a value that is not finite")
        if result.size == 1 and (result.ndim == 0 or samples != 1):
            return float(result.reshape(()))
        if result.shape[:1] == (samples,) and result.size == samples:
            return result.reshape(samples)
        raise self._failed(
            f"returned shape {result.shape}: expected one number, or one value for each of {samples} samples"
        )

    def _failed(self, what: str, line: int | None = None) -> MeasurementError:
        where = f"{self._file}:{line}" if line else str(self._file)
        return MeasurementError("measure.hook", f"the metric `{self.reference}` {what}", where=where)


def load(reference: str | None, base: Path, allow_code: bool, option: Sequence[str | int] = ()) -> Hook:
    """The function named by `file.py:function`, relative to `base`. Raises RecipeError when it cannot be used."""
    file_name, separator, function_name = (reference or "").rpartition(":")
    if not separator or not file_name or not function_name:
        raise RecipeError("recipe.hook", "`metric: python` needs `function: file.py:function`", option=option)
    if not allow_code:
        raise RecipeError(
            "recipe.code-not-allowed",
            f"`{reference}` would run Python code of the recipe",
            hint="if you trust it: --allow-code",
            option=option,
        )
    file = (base / file_name).resolve()
    if not file.is_file():
        raise RecipeError("recipe.hook", f"there is no file {file}", option=option)
    spec = importlib.util.spec_from_file_location(f"lepton_hook_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise RecipeError("recipe.hook", f"{file} is not a Python file", option=option)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        where = f"{file}:{_line(error, file)}"
        raise MeasurementError(
            "measure.hook", f"{file.name} raised {type(error).__name__}: {error}", where=where
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [name for name in vars(module) if callable(getattr(module, name)) and not name.startswith("_")]
        raise RecipeError(
            "recipe.hook",
            f"{file.name} has no function `{function_name}`",
            cause=f"it has {', '.join(known)}" if known else None,
            option=option,
        )
    return Hook(str(reference), function, file, takes_inputs=_takes_inputs(function, f"`{reference}`", option))


def _takes_inputs(function: Function, named: str, option: Sequence[str | int]) -> bool:
    """Whether a function wants the inputs too: where it cannot be called without, or has a parameter of that name.

    Raises RecipeError for one that takes neither two nor three arguments.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # of some functions written in C
        return False
    two, three = (_binds(signature, count) for count in (2, 3))
    if not (two or three):
        raise RecipeError(
            "recipe.hook",
            f"{named} cannot be called with (outputs, labels, inputs) or (outputs, labels)",
            cause=f"it is written {function.__name__}{signature}",
            option=option,
        )
    return three and (not two or "inputs" in signature.parameters)


def _binds(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _line(error: BaseException, file: Path) -> int | None:
    """The last line of the user's file on the way to the error."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    if isinstance(error, SyntaxError) and not lines:
        return error.lineno
    return lines[-1] if lines else None
