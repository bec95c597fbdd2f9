"""What else this machine could run the model in, measured where static int8 does not pay."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import onnx_ir as ir

from lepton_cli.errors import LeptonError
from lepton_cli.progress import Silent
from lepton_cli.quantize import dynamic, fp16, speed
from lepton_cli.runtime import Values
from lepton_cli.step import Context, Outcome

#: A gain below this is none: the float model then is the best choice.
WORTH = 1.03


def measure(model: ir.Model, feeds: Values, context: Context) -> dict[str, float]:
    """Speed of each way that is possible, relative to the float model `model`; `float` itself is 1."""
    from lepton_cli.quantize.spec import ConvertFp16, QuantizeDynamic

    # Speed does not depend on the values, so that nothing is tried to make them better.
    quiet = dataclasses.replace(context, progress=Silent(), dry=True)
    made: dict[str, ir.Model] = {"float": model}
    ways: dict[str, Callable[[], Outcome]] = {
        "quantize.dynamic": lambda: dynamic.quantize(model, QuantizeDynamic(step="quantize.dynamic"), quiet),
        "convert.fp16": lambda: fp16.convert(model, ConvertFp16(step="convert.fp16"), quiet),
    }
    for name, way in ways.items():
        try:
            outcome = way()
        except LeptonError:
            continue  # this way is closed to the model
        if outcome.changed:
            made[name] = outcome.model
    gains, _ = speed.compare(list(made.values()), feeds, context)
    return {name: round(gain.typical, 3) for name, gain in zip(made, gains, strict=True)}


def best(speeds: dict[str, float]) -> str:
    """The fastest way in words: `float`, or a step with its gain."""
    name = max(speeds, key=lambda way: speeds[way])
    return f"`{name}` ({speeds[name]}x)" if name != "float" and speeds[name] >= WORTH else "float"
