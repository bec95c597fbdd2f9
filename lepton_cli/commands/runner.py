"""Runs one step and checks what it made, so that no step has to be trusted.

Before and after: valid ONNX, the same inputs, outputs and types (but for the outputs that a step says it makes), finite
outputs on real batches, and outputs equal within the step's tolerance where it promises that. The input of a step that
fails is kept on disk.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from lepton_cli import runtime
from lepton_cli.commands.gain import no_gain
from lepton_cli.errors import LeptonError, ModelError, StepError, cause_of, disk_full
from lepton_cli.graph.held import nothing_to_compress
from lepton_cli.model import io
from lepton_cli.report.model import RECORDS, StepRecord
from lepton_cli.step import Context, Decision, Options, Outcome
from lepton_cli.steps import STEPS

#: Samples the outputs are compared on.
CHECK_SAMPLES = 8

#: What a step did wrong, as opposed to what cannot be done.
_DEFECTS = ("step.unforeseen", "step.broken-model", "step.output-changed", "step.fuse", "fp16.converter")
#: Errors of a model that onnxruntime refuses.
_NOT_RUNNING = ("model.runtime", "model.run")
#: Correlation with the outputs before a step, below which the result has little to do with the model it was.
STRANGE = 0.5
#: Fewer values tell nothing about correlation.
_LEAST_VALUES = 16

BatchOutputs = list[dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Checked:
    """A model with its outputs on the check batches; `None`: it is too large to be run for a plan.

    `answers`: the model after the last step that made it answer anew (`Context.answers`); `None`: there was none.
    """

    model: ir.Model
    outputs: BatchOutputs | None
    answers: ir.Model | None = None


def reference(model: ir.Model, context: Context) -> Checked:
    """The outputs the first step is compared with. Raises ModelError when onnxruntime cannot run the model."""
    return Checked(model, _run(io.payload(model, context.workdir), context))


def run_step(
    before: Checked, options: Options, index: int, context: Context, keep: Path | None
) -> tuple[Checked, StepRecord]:
    """Apply step number `index` (from 0). `keep`: folder for the model that made it fail.

    A step that may change nothing (`if_possible`, and those that only clean up) and that refuses the model, or makes
    something wrong of it, is left out with a warning. Otherwise raises StepError, or any LeptonError of the step with
    `option` extended to the path in the recipe. A step that changes nothing is an error, but not in a plan.
    """
    started = time.monotonic()
    context = dataclasses.replace(context, answers=before.answers)
    try:
        outcome, outputs, resized = _attempt(before, options, context)
        if not context.dry and (refused := no_effect(before.model, options, outcome)) is not None:
            refused.hint = f"lepton plan MODEL -r RECIPE lists every node with its reason; {refused.hint}"
            raise refused
    except LeptonError as error:
        error.option = ("steps", index, *error.option)
        if error.note is None and isinstance(error, StepError):
            error.note = _keep_input(before.model, index, keep)
        raise
    record = RECORDS[options.step](
        index=index,
        step=options.step,
        changed=outcome.changed,
        seconds=time.monotonic() - started,
        summary=outcome.summary,
        left_because=outcome.left_because,
        decisions=outcome.decisions,
        details=outcome.details or STEPS[options.step].details(),
        warnings=(*outcome.warnings, *resized, *_strangers(before, outputs, outcome, options)),
        size_after=io.weight_bytes(outcome.model),
    )
    answers = outcome.model if options.new_answers and outcome.changed else before.answers
    return Checked(outcome.model, outputs, answers), record


def _attempt(before: Checked, options: Options, context: Context) -> tuple[Outcome, BatchOutputs | None, list[str]]:
    """What the step made, checked, its outputs, and what is said of their sizes; the model as it was where leaving the
    step out is no error."""
    try:
        outcome = _apply(before.model, options, context)
        outputs, resized = _check(before, outcome, options, context)
        if (why := no_gain(before.model, outcome, options, context)) is None:
            return outcome, outputs, resized
        if context.dry and getattr(options, "speed_guard", False):  # it may be faster, which is not measured now
            said = f"compress leaves the model as it was unless this makes it faster: {why}"
            return dataclasses.replace(outcome, warnings=(*outcome.warnings, said)), outputs, resized
        return _left_as_it_was(before.model, outcome, why), before.outputs, []
    except Exception as caught:
        if (full := disk_full(caught, context.workdir.parent, None)) is not None:
            raise full from caught
        error = _own_fault(caught, before, options)
        if not isinstance(error, (StepError, ModelError)):
            raise
        optional = options.if_possible or options.cleaning
        if not optional or (isinstance(error, StepError) and error.code not in _DEFECTS):
            raise error from (caught.__cause__ if error is caught else caught)
        reason = error.message + (f": {error.cause}" if error.cause else "")
        return Outcome(before.model, 0, summary="left out", warnings=(f"left out: {reason}",)), before.outputs, []


def _left_as_it_was(model: ir.Model, outcome: Outcome, why: str) -> Outcome:
    """What a step that gained nothing made, in place of its result: what it tried is told, as not applied."""
    decisions = tuple(_not_applied(one) if one.action != "kept" else one for one in outcome.decisions)
    said = f"left the model as it was: {why} (`least_gain: false` insists)"
    return Outcome(model, 0, decisions, why, outcome.details, warnings=(said,), left_because=why)


def _not_applied(tried: Decision) -> Decision:
    how = f"{tried.action} ({tried.reason})" if tried.reason else tried.action
    return tried.model_copy(
        update={"action": "kept", "reason": f"tried as {how}, not applied: the step as a whole gained nothing"}
    )


def _own_fault(error: Exception, before: Checked, options: Options) -> Exception:
    """The model before the step ran: one that does not, met inside the step, is of the step's making."""
    if not isinstance(error, ModelError) or error.code not in _NOT_RUNNING or before.outputs is None:
        return error
    return StepError(
        "step.broken-model",
        f"`{options.step}` made a graph that onnxruntime cannot run",
        cause=error.cause or error.message,
        hint="exclude the nodes concerned, and report this: it is a defect of lepton",
    )


def _apply(model: ir.Model, options: Options, context: Context) -> Outcome:
    """Whatever a step, or a library it calls, raises: the user sees one message."""
    try:
        return STEPS[options.step].apply(model, options, context)
    except (LeptonError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise StepError(
                "step.system",
                f"`{options.step}` could not be done: {error.strerror or error}",
                where=None if error.filename is None else str(error.filename),
            ) from error
        cause = cause_of(f"{type(error).__name__}: {error}")
        raise StepError(
            "step.unforeseen",
            f"`{options.step}` failed on this model",
            cause=cause,
            hint="this is a defect of lepton: leave the step out, and report it with the output of --debug",
        ) from error


def no_effect(model: ir.Model, options: Options, found: Outcome | StepRecord) -> StepError | None:
    """The error of a step that changed nothing, where that is one."""
    if found.changed or found.left_because or options.if_possible or options.cleaning:
        return None
    reasons = Counter(decision.reason for decision in found.decisions).most_common(3)
    return StepError(
        "step.no-effect",
        f"`{options.step}` changed nothing",
        cause=nothing_to_compress(model)
        or "; ".join(filter(None, (found.summary, *(f"{count} nodes: {reason}" for reason, count in reasons)))),
        hint="`if_possible: true` accepts no change",
    )


def _keep_input(model: ir.Model, index: int, folder: Path | None) -> str | None:
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step-{index + 1}-input.onnx"
        io.save(model, path)
    except OSError:
        return None
    return f"the model before this step is kept as {path}"


def _run(payload: bytes | Path, context: Context) -> BatchOutputs:
    session = runtime.Session(payload, threads=context.threads, spin=False)
    found: BatchOutputs = []
    for batch in context.check.batches(limit=CHECK_SAMPLES):
        results = session.run(batch.feeds)
        found.append({name: value for name, value in results.items() if isinstance(value, np.ndarray)})
    return found


def _check(
    before: Checked, outcome: Outcome, options: Options, context: Context
) -> tuple[BatchOutputs | None, list[str]]:
    _check_signature(before.model, outcome.model, options)
    if outcome.model is before.model:
        return before.outputs, []
    if before.outputs is None and not context.dry:
        _check_loads(before.model, outcome.model, options, context)
    if before.outputs is None or (context.dry and outcome.tolerance is None):  # a plan rounds nothing
        return None, []
    payload = io.payload(outcome.model, context.workdir)
    if io.weight_bytes(outcome.model) < io.EXTERNAL_ABOVE:
        try:
            onnx.checker.check_model(payload)
        except onnx.checker.ValidationError as error:
            if _passes_checker(before.model, context):
                raise _changed(options, f"made an invalid model: {cause_of(error)}") from error
    try:
        outputs = _run(payload, context)
    except LeptonError as error:
        raise StepError(
            "step.broken-model",
            f"after `{options.step}` onnxruntime cannot run the model",
            cause=error.cause or error.message,
        ) from error
    free = _sized_by_data(before) if outcome.tolerance is None else {}
    resized: dict[str, list[str]] = {}
    made = options.new_outputs(io.outputs(before.model))
    for number, (old, new) in enumerate(zip(_kept(before, options) or (), outputs, strict=True)):
        for name in made:
            _check_finite(name, new[name], number, len(outputs), options)
        for name, value in old.items():
            if _resized(value, new[name], free.get(name, frozenset())):
                resized.setdefault(name, []).append(f"{list(value.shape)} to {list(new[name].shape)}")
            else:
                _check_output(name, value, new[name], number, len(outputs), outcome, options)
    name, changes = next(iter(resized.items()), ("", []))
    also = f" (so have {', '.join(f'`{other}`' for other in [*resized][1:])})" if len(resized) > 1 else ""
    said = (
        f"output `{name}`, whose size depends on the data, has another size in {len(changes)} of {len(outputs)} "
        f"check batches, first from {changes[:1] and changes[0]}{also}: it is compared in the others"
    )
    return outputs, [said] if resized else []


def _kept(before: Checked, options: Options) -> BatchOutputs | None:
    """The outputs before a step that it should give too."""
    made = options.new_outputs(io.outputs(before.model))
    if before.outputs is None or not made:
        return before.outputs
    return [{name: value for name, value in batch.items() if name not in made} for batch in before.outputs]


def _check_loads(before: ir.Model, after: ir.Model, options: Options, context: Context) -> None:
    """Of a model that cannot be fed: that onnxruntime still takes it, where it took the one before."""
    if after is before or max(map(io.weight_bytes, (before, after))) >= io.EXTERNAL_ABOVE:
        return
    try:
        runtime.Session(io.payload(after, context.workdir), threads=context.threads)
    except ModelError as error:
        try:
            runtime.Session(io.payload(before, context.workdir), threads=context.threads)
        except LeptonError:
            return
        raise StepError(
            "step.broken-model",
            f"after `{options.step}` onnxruntime cannot load the model",
            cause=error.cause or error.message,
        ) from error


def _sized_by_data(before: Checked) -> dict[str, frozenset[int]]:
    """By output the axes whose size depends on the values fed (NonMaxSuppression, NonZero), as the model declares it:
    they are open, and not named as an axis of an input. Where no shape is declared, those that vary over the batches.
    """
    dims = [dim for value in before.model.graph.inputs for dim in value.shape or ()]
    named = {dim.value for dim in dims if not isinstance(dim, int)} - {None}
    found = {}
    for value in before.model.graph.outputs:
        shapes = [batch[value.name or ""].shape for batch in before.outputs or () if value.name in batch]
        if value.shape is not None:
            axes = [i for i, dim in enumerate(value.shape) if not isinstance(dim, int) and dim.value not in named]
        else:
            same = {len(shape) for shape in shapes} if len({len(shape) for shape in shapes}) == 1 else set()
            axes = [i for rank in same for i in range(rank) if len({shape[i] for shape in shapes[:-1]}) > 1]
        found[value.name or ""] = frozenset(axes)
    return found


def _resized(old: np.ndarray, new: np.ndarray, free: frozenset[int]) -> bool:
    """Are the shapes different, and only in `free` axes?"""
    if old.shape == new.shape or old.ndim != new.ndim or old.dtype != new.dtype:
        return False
    return all(a == b or axis in free for axis, (a, b) in enumerate(zip(old.shape, new.shape, strict=True)))


def _passes_checker(model: ir.Model, context: Context) -> bool:
    """The ONNX checker also refuses models that every runtime accepts: outputs without shape, mixed versions."""
    try:
        onnx.checker.check_model(io.payload(model, context.workdir))
    except onnx.checker.ValidationError:
        return False
    return True


def _check_signature(before: ir.Model, after: ir.Model, options: Options) -> None:
    made = () if after is before else options.new_outputs(io.outputs(before))
    if missing := [name for name in made if name not in {one.name for one in io.outputs(after)}]:
        raise _changed(options, f"the model has no output `{missing[0]}`")
    for what, old, new in (
        ("inputs", io.inputs(before), io.inputs(after)),
        ("outputs", io.outputs(before), io.outputs(after)),
    ):
        was, now = (
            [(one.name, _kind(one.dtype, options)) for one in side if one.name not in made] for side in (old, new)
        )
        if was != now:
            raise _changed(options, f"the {what} changed from {', '.join(map(str, old))} to {', '.join(map(str, new))}")


def _kind(dtype: str, options: Options) -> str:
    """The type as far as the step must keep it."""
    return "float" if options.changes_types and dtype.startswith("float") else dtype


def _check_finite(name: str, values: np.ndarray, number: int, count: int, options: Options) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise _changed(options, f"output `{name}` contains NaN or infinity on check batch {number + 1} of {count}")


def _check_output(
    name: str, old: np.ndarray, new: np.ndarray, number: int, count: int, outcome: Outcome, options: Options
) -> None:
    if old.shape != new.shape or _kind(str(old.dtype), options) != _kind(str(new.dtype), options):
        raise _changed(
            options, f"output `{name}` changed from {old.dtype}{list(old.shape)} to {new.dtype}{list(new.shape)}"
        )
    if old.dtype.kind != "f":
        return
    _check_finite(name, new[np.isfinite(old)], number, count, options)
    if outcome.tolerance is None or not old.size:
        return
    scale = max(float(np.abs(old[np.isfinite(old)]).max(initial=0.0)), 1e-3)
    with np.errstate(invalid="ignore"):
        error = float(np.nan_to_num(np.abs(old.astype(np.float64) - new.astype(np.float64))).max()) / scale
    if error > outcome.tolerance:
        raise _changed(
            options, f"output `{name}` differs by {error:.2g} of its largest value, allowed are {outcome.tolerance:.0e}"
        )


def _strangers(before: Checked, after: BatchOutputs | None, outcome: Outcome, options: Options) -> list[str]:
    """Outputs that a step, which changes results by design, left little of; training is judged by its own samples."""
    was = _kept(before, options)
    if not was or after is None or outcome.tolerance is not None or not outcome.changed or options.training:
        return []
    found = []
    for name, first in was[0].items():
        if first.dtype.kind != "f":
            continue
        pairs = [(a[name], b[name]) for a, b in zip(was, after, strict=True) if a[name].shape == b[name].shape]
        if not pairs:
            continue
        old, new = (np.concatenate([pair[i].ravel() for pair in pairs]).astype(np.float64) for i in (0, 1))
        both = np.isfinite(old) & np.isfinite(new)
        old, new = old[both], new[both]
        if old.size < _LEAST_VALUES or np.ptp(old) == 0:
            continue
        # Scaled first: squares of huge values would overflow.
        old, new = (part / max(np.abs(part).max(), 1e-300) for part in (old, new))
        correlation = float(np.corrcoef(old, new)[0, 1]) if np.ptp(new) > 0 else 0.0
        if correlation < STRANGE:
            found.append(
                f"output `{name}` has little to do with what it was: correlation {correlation:.2f} on the check samples"
            )
    return found


def _changed(options: Options, what: str) -> StepError:
    return StepError(
        "step.output-changed", f"after `{options.step}` {what}", hint="exclude the nodes concerned, and report this"
    )
