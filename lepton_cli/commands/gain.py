"""Whether a step that changes results bought anything by it: a model that is smaller or faster than its input."""

from __future__ import annotations

import onnx_ir as ir

from lepton_cli.graph import cost
from lepton_cli.measure import weights
from lepton_cli.model import io
from lepton_cli.quantize.targets import resolve, runs_here
from lepton_cli.step import Context, Lossy, Options, Outcome


def no_gain(before: ir.Model, outcome: Outcome, options: Options, context: Context) -> str | None:
    """Why the model before the step is the better one, in words; `None` where the step gained what it should.

    Of a machine that is not this one no speed is known, so that nothing is said. A plan cuts nothing out.
    """
    if not isinstance(options, Lossy) or not options.least_gain or not outcome.changed:
        return None
    if options.cuts and context.dry:
        return None
    gained = {"smaller": _saved(*_bytes(before, outcome.model))}
    if options.cuts:
        gained["less to compute"] = _saved(_macs(before, context), _macs(outcome.model, context))
        gained["fewer parameters"] = _saved(_parameters(before), _parameters(outcome.model))
    elif options.for_machine and runs_here(resolve(getattr(options, "target", "auto"), context.provider)) is not None:
        return None
    if max(gained.values()) >= options.least_gain:
        return None
    if outcome.speedup is not None and outcome.speedup >= 1 + options.least_gain:
        return None
    size = gained.pop("smaller")
    told = [f"{abs(size):.1%} {'smaller' if size > 0 else 'larger'}"] if abs(size) >= 0.0005 else ["as large as before"]
    told += [f"{share:.1%} {what}" for what, share in gained.items()]
    told += [] if outcome.speedup is None else [f"{outcome.speedup:.2f}x as fast"]
    return f"its result is {', '.join(told)}: less than the {options.least_gain:.0%} that a loss should buy"


def _saved(before: float, after: float) -> float:
    return 1 - after / before if before else 0.0


def _bytes(*models: ir.Model) -> list[int]:
    """Sizes of the files; of large models that of their weights, beside which the rest is nothing."""
    large = any(io.weight_bytes(model) > io.STREAMED_ABOVE for model in models)
    return [io.weight_bytes(model) if large else len(io.to_bytes(model)) for model in models]


def _macs(model: ir.Model, context: Context) -> int:
    batch = next(iter(context.check.batches(1, 1)), None)
    shapes = {} if batch is None else {name: tuple(array.shape) for name, array in batch.feeds.items()}
    return sum(cost.count(model, shapes, run=False).values())


def _parameters(model: ir.Model) -> int:
    """Those that are not 0."""
    return sum(weight.nonzeros for weight in weights.find(model))
