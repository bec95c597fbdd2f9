"""Whether a step that stores or computes in fewer bits bought anything by it: a model that is smaller or faster."""

from __future__ import annotations

import onnx_ir as ir

from lepton_cli.model import io
from lepton_cli.quantize.targets import resolve, runs_here
from lepton_cli.step import Context, Lossy, Options, Outcome


def no_gain(before: ir.Model, outcome: Outcome, options: Options, context: Context) -> str | None:
    """Why the model before the step is the better one, in words; `None` where the step gained what it should.

    Of a machine that is not this one no speed is known, so that nothing is said. A step that is for speed and did not
    measure it must make nothing larger. Where the step knows what is preferred, only that counts; in balance one gain
    must outweigh the loss in the other: bytes times seconds get less.
    """
    if not isinstance(options, Lossy) or not options.least_gain or not outcome.changed:
        return None
    prefer = getattr(options, "prefer", "balance")
    target = resolve(getattr(options, "target", "auto"), context.provider)
    if options.for_machine and prefer != "size" and runs_here(target) is not None:
        return None
    first, last = _bytes(before, outcome.model)
    smaller = 1 - last / first
    unknown = options.for_machine and outcome.speedup is None and prefer != "size"
    faster = outcome.speedup is not None and outcome.speedup >= 1 + options.least_gain
    worse = prefer == "balance" and outcome.speedup is not None and last / first >= outcome.speedup
    if (smaller >= options.least_gain and prefer != "speed" and not worse) or (unknown and smaller > 0):
        return None
    if prefer != "size" and faster and not worse:
        return None
    told = f"{abs(smaller):.1%} {'smaller' if smaller > 0 else 'larger'}"
    told = told if abs(smaller) >= 0.0005 else "as large as before"
    told += "" if outcome.speedup is None else f", {outcome.speedup:.2f}x as fast"
    wanted = "" if unknown else f": less than the {options.least_gain:.0%} that a loss should buy"
    if worse and (faster or smaller >= options.least_gain):
        wanted = ": one does not outweigh the other (`prefer: speed` or `prefer: size` counts one alone)"
    return f"its result is {told}{wanted}"


def _bytes(*models: ir.Model) -> list[int]:
    """Sizes of the files; of large models that of their weights, beside which the rest is nothing."""
    large = any(io.weight_bytes(model) > io.STREAMED_ABOVE for model in models)
    return [io.weight_bytes(model) if large else len(io.to_bytes(model)) for model in models]
