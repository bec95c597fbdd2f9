"""A draft of a quantized model, as fast as the real one but not as good: for models that are only timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import onnx_ir as ir

from lepton_cli.cache import Cache
from lepton_cli.data.dataset import First
from lepton_cli.progress import Silent
from lepton_cli.quantize import dynamic, fp16, kernels, static, targets
from lepton_cli.quantize.spec import ConvertFp16, QuantizeDynamic, QuantizeStatic
from lepton_cli.step import Context, Options

_Step = TypeVar("_Step", bound=Options)
#: Samples that drafts are calibrated with.
_FEW = 4
#: What of `quantize.static` decides about values alone, and guards, which judge them.
_COARSE: dict[str, object] = {
    "calibration": "minmax",
    "equalise": False,
    "bias_correction": False,
    "rounding": "nearest",
    "speed_guard": False,
    "fidelity_guard": False,
    "accuracy_guard": None,
}


def drafter(
    precision: Literal["auto", "float", "int8", "dynamic", "fp16"], context: Context
) -> Callable[[ir.Model], ir.Model] | None:
    """What makes a draft of a model in this precision; `None` for float (`auto`: nothing else is known)."""
    if precision in ("auto", "float"):
        return None
    if precision == "dynamic":
        plain = QuantizeDynamic()
        return lambda model: dynamic.quantize(model, plain, drafting(plain, context)).model
    if precision == "fp16":
        half = coarse(ConvertFp16())
        return lambda model: fp16.convert(model, half, drafting(half, context)).model
    nearest = coarse(QuantizeStatic())
    return lambda model: static.quantize(model, nearest, drafting(nearest, context)).model


def drafting(options: Options, context: Context) -> Context:
    """What a step that makes a draft may use: a few samples, those to calibrate with only where it cannot do without,
    and nothing that is proved, judged or kept."""
    few = First(context.check, _FEW)
    return dataclasses.replace(
        context,
        calibration=few if options.needs_data else None,
        check=few,
        evaluation=None,
        score=None,
        cache=Cache(None),
        progress=Silent(),
        draft=True,
    )


def coarse(options: _Step) -> _Step:
    """The step with the same kernels, shapes and bytes, and nothing spent on what it rounds to."""
    if isinstance(options, QuantizeStatic):
        return options.model_copy(update=_COARSE)
    return options.model_copy(update={"repair": False}) if isinstance(options, ConvertFp16) else options


def filling(steps: Sequence[Options], written: ir.Model, context: Context) -> kernels.Filling:
    """Where the steps that made `written` would fill blocks of a narrower model."""
    found = [
        kernels.filling(written, targets.resolve(step.target, context.provider))
        for step in steps
        if isinstance(step, QuantizeStatic) and step.prefer != "size"
    ]
    return found[0] if found else kernels.Filling()
