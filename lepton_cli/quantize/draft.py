"""A draft of a quantized model, as fast as the real one but not as good: for models that are only timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import onnx_ir as ir

from lepton_cli.cache import Cache
from lepton_cli.data.dataset import First
from lepton_cli.progress import Silent
from lepton_cli.quantize import dynamic, fp16, static
from lepton_cli.quantize.spec import ConvertFp16, QuantizeDynamic, QuantizeStatic
from lepton_cli.step import Context

#: Samples that drafts are calibrated with.
_FEW = 4


def drafter(
    precision: Literal["auto", "float", "int8", "dynamic", "fp16"], context: Context
) -> Callable[[ir.Model], ir.Model] | None:
    """What makes a draft of a model in this precision; `None` for float (`auto`: nothing else is known)."""
    if precision in ("auto", "float"):
        return None
    few = First(context.check, _FEW)
    quick = dataclasses.replace(context, calibration=few, check=few, cache=Cache(None), progress=Silent(), draft=True)
    if precision == "dynamic":
        plain = QuantizeDynamic(step="quantize.dynamic")
        return lambda model: dynamic.quantize(model, plain, dataclasses.replace(quick, calibration=None)).model
    if precision == "fp16":
        half = ConvertFp16(repair=False)
        return lambda model: fp16.convert(model, half, dataclasses.replace(quick, calibration=None)).model
    nearest = QuantizeStatic(
        step="quantize.static",
        calibration="minmax",
        equalise=False,
        bias_correction=False,
        rounding="nearest",
        speed_guard=False,
        fidelity_guard=False,
    )
    return lambda model: static.quantize(model, nearest, quick).model
