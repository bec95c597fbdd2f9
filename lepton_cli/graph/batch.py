"""`batch.free`: a graph for one sample at a time takes any number of them, where that can be proven.

The proof is what onnxruntime computes: of several samples together what the graph made of each alone before, and of one
the same bytes.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from lepton_cli import runtime
from lepton_cli.data.batching import sample_axes
from lepton_cli.data.dataset import Array, Dataset
from lepton_cli.data.synthetic import SyntheticDataset, synthetic
from lepton_cli.errors import LeptonError, ModelError, RecipeError, StepError
from lepton_cli.graph.feeds import sized
from lepton_cli.graph.freeing import COUNTS, Freeing, NotFree, Traced
from lepton_cli.graph.frozen import Choices
from lepton_cli.graph.spec import BatchFree
from lepton_cli.graph.stacked import SampleAxis, found, same
from lepton_cli.model import io
from lepton_cli.step import Context, Outcome
from lepton_cli.tensors import Dim, TensorInfo

#: Largest difference between outputs that is rounding: in float32, with halves, and with numbers rounded to integers.
SAME, SAME_HALF, SAME_QUANTIZED = 1e-4, 2e-2, 5e-2
#: Samples that the proof is made with, of the data and made up.
SAMPLES = 4
#: Open sizes are that much larger in a second look at made-up inputs.
_LARGER = 2
#: Times that a model is looked at, each with another place for samples that a Reshape leaves open.
_WALKS = 24
_HINT = "leave the step out: steps that train put samples in one at a time and add up their gradients"

_Feeds = dict[str, Array]


def free(model: ir.Model, options: BatchFree, context: Context) -> Outcome:
    """The model with an open axis for samples on inputs and outputs.

    Raises StepError that names the first node which cannot take several samples, unless `if_possible`; RecipeError for
    a name that another axis has.
    """
    if options.include or options.exclude:
        option = "include" if options.include else "exclude"
        raise RecipeError(
            "recipe.wrong-value", f"step `{options.step}` is about the whole graph and takes no `{option}`",
            option=(option,),
        )  # fmt: skip
    try:
        with context.progress.stage(options.step):
            return _freed(model, options, context)
    except StepError as error:
        if not options.if_possible:
            raise
        said = error.message + (f": {error.cause}" if error.cause else "")
        return Outcome(model, 0, summary="left as it was", warnings=(f"left as it was: {said}",), left_because=said)


def _freed(model: ir.Model, options: BatchFree, context: Context) -> Outcome:
    inputs = io.inputs(model)
    axes = _axes(inputs)
    made_up = list(_made_up(model, axes, context))
    groups = [group for group in (_samples(context.check, inputs, axes), *made_up) if len(group) > 1]
    samples = next((group for group in groups if len(group) >= max(COUNTS)), None)
    if samples is None:
        raise StepError("batch.no-samples", "no samples of one shape can be run through the model", hint="give data")
    frozen = [info.name for info in inputs if info.name in axes and info.shape and info.shape[axes[info.name]] == 1]
    if not frozen and _open_already(model, groups, axes, context):
        return Outcome(model, 0, summary="nothing to free", left_because="takes any number of samples already")
    known = len(axes) == len(inputs) and all(
        isinstance(dim, int) for info in inputs for at, dim in enumerate(info.shape or ()) if at != axes[info.name]
    )
    name = _name(inputs, axes, options)
    copy, freeing = _walked(model, samples[: max(COUNTS)], axes, sizes_known=known)
    try:
        places = _finish(copy, freeing, axes, name)
    except NotFree as refused:
        raise _refused(refused) from refused
    _prove(model, copy, groups, axes, places, context)
    shown = ", ".join(str(info) for info in io.outputs(copy))
    warnings = [
        f"output `{name}` is the same for all samples: it has no axis for them" for name, at in places.items() if not at
    ]
    count = len(freeing.decisions)
    said = f"{'1 node' if count == 1 else f'{count} nodes'} changed, outputs {shown}"
    changed = len(axes) + len(freeing.decisions)
    return Outcome(copy, changed, tuple(freeing.decisions), said, warnings=tuple(warnings), tolerance=_tolerance(model))


def _walked(
    model: ir.Model, samples: Sequence[_Feeds], axes: Mapping[str, int], *, sizes_known: bool
) -> tuple[ir.Model, Freeing]:
    """A copy in which every node takes several samples. Raises StepError for the first that does not."""
    choices, first = Choices(), None
    for _ in range(_WALKS):
        copy = io.clone(model)
        freeing = Freeing(copy, samples, axes, choices, sizes_known=sizes_known)
        try:
            freeing.run()
        except NotFree as refused:
            first = first or refused
            if choices.other():
                continue
            break
        return copy, freeing
    assert first is not None
    raise _refused(first) from first


def _axes(inputs: Sequence[TensorInfo]) -> dict[str, int]:
    """Inputs that hold samples, and on which axis. Raises StepError where none does, or several that are fixed."""
    axes = sample_axes(inputs)
    if not axes:
        raise StepError(
            "batch.none", "the model's inputs have no axis of samples: each feed is one sample as it is", hint=_HINT
        )
    for info in inputs:
        size = None if info.name not in axes or info.shape is None else info.shape[axes[info.name]]
        if isinstance(size, int) and size != 1:
            raise StepError("batch.fixed", f"input `{info.name}` takes {size} samples at a time: only one can be freed")
    return axes


def _name(inputs: Sequence[TensorInfo], axes: Mapping[str, int], options: BatchFree) -> str:
    """What the axis is called: as some inputs have it already, else as asked. Raises RecipeError for a name in use."""
    places = [(info.name, at, dim) for info in inputs for at, dim in enumerate(info.shape or ())]
    own = [dim for name, at, dim in places if axes.get(name) == at and isinstance(dim, str)]
    if not own and any(dim == options.name for _, _, dim in places):
        raise RecipeError(
            "batch.name-taken", f"another axis of the model is called `{options.name}`", hint="choose another `name`",
            option=("name",),
        )  # fmt: skip
    return own[0] if own else options.name


def _samples(data: Dataset, inputs: Sequence[TensorInfo], axes: Mapping[str, int]) -> list[_Feeds]:
    """Different samples of one shape, one a feed; what all share is as the first has it."""
    kept: list[_Feeds] = []
    kinds = {info.name: info.dtype for info in inputs if info.floating}
    for batch in data.batches(1, 4 * SAMPLES):
        feeds = {name: array if name in axes or not kept else kept[0][name] for name, array in batch.feeds.items()}
        feeds = {name: array.astype(kinds.get(name, array.dtype), copy=False) for name, array in feeds.items()}
        if any(feeds[name].ndim <= axis or feeds[name].shape[axis] != 1 for name, axis in axes.items()):
            continue
        alike = all(array.shape == kept[0][name].shape for name, array in feeds.items()) if kept else True
        if alike and not any(all(np.array_equal(one[name], feeds[name]) for name in axes) for one in kept):
            kept.append(feeds)
        if len(kept) == SAMPLES:
            break
    return kept


def _made_up(model: ir.Model, axes: Mapping[str, int], context: Context) -> Iterator[list[_Feeds]]:
    """Made-up samples that the model takes, of usual sizes and of larger ones where sizes are open."""
    inputs = io.inputs(model)
    try:
        usual = list(sized(model))
    except LeptonError:
        return
    larger = [
        dataclasses.replace(info, shape=tuple(
            size * _LARGER if isinstance(size, int) and not isinstance(was, int) else size
            for was, size in zip(before.shape or (), info.shape or (), strict=True)
        ))
        for before, info in zip(inputs, usual, strict=True)
    ]  # fmt: skip
    session = runtime.Session(io.payload(model, context.workdir), threads=context.threads, spin=False)
    made_up = isinstance(context.check, SyntheticDataset)  # of usual sizes, then
    for infos in ([] if made_up else [usual]) + ([larger] if larger != usual else []):
        try:
            made = _samples(synthetic(infos, seed=context.seed + 1, samples=SAMPLES, batch=1), inputs, axes)
            session.run(made[0])
        except LeptonError:
            continue
        yield made


def _together(feeds: Sequence[_Feeds], axes: Mapping[str, int]) -> _Feeds:
    first = feeds[0]
    return {n: np.concatenate([one[n] for one in feeds], axes[n]) if n in axes else first[n] for n in first}


def _combined(count: int) -> list[tuple[int, ...]]:
    """Which samples go in together: each with the next one, and three."""
    return [*itertools.pairwise(range(count)), tuple(range(count))[: max(COUNTS)][::-1]]


def _open_already(
    model: ir.Model, groups: Sequence[Sequence[_Feeds]], axes: Mapping[str, int], context: Context
) -> bool:
    """Whether several samples come out as each alone."""
    session = runtime.Session(io.payload(model, context.workdir), threads=context.threads, spin=False)
    tolerance = _tolerance(model)
    for samples in groups:
        alone = [session.run(one) for one in samples]
        for rows in _combined(len(samples)):
            try:
                together = session.run(_together([samples[row] for row in rows], axes))
            except LeptonError:
                return False
            if not all(_joined([alone[row][name] for row in rows], together[name], tolerance) for name in together):
                return False
    return True


def _joined(alone: Sequence[Any], together: Any, tolerance: float) -> bool:
    """Whether a result of several samples is made of those of each alone: along an axis, or by row where one sample has
    lost the axis of the samples to a Squeeze. A list of maps is one map for each sample."""
    if not isinstance(together, np.ndarray):
        rows = [row for part in alone for row in part]
        numbers = [np.array([list(row.values()) for row in some], np.float32) for some in (rows, together)]
        return [*map(list, rows)] == [*map(list, together)] and same(numbers[0], numbers[1], tolerance)
    if together.ndim == alone[0].ndim + 1 and same(np.stack(alone), together, tolerance):
        return True
    return found(alone, together, tolerance=tolerance)[0] is not None


def _finish(model: ir.Model, freeing: Freeing, axes: Mapping[str, int], name: str) -> dict[str, SampleAxis | None]:
    """Turn outputs whose samples lie inside another axis, and write down the shapes; where outputs have the samples."""
    places: dict[str, SampleAxis | None] = {}
    for output in list(model.graph.outputs):
        known, node, called = freeing.known[output], output.producer(), output.name or ""
        place = known.place
        if known.counted and node is not None:
            raise NotFree(node, f"output `{called}` follows from the number of samples, not from them")
        if place is not None and not place.plain(known.shape):
            freeing.changes.first(output, known.shape, place)
            place = SampleAxis(0, known.shape[0])
        places[called] = place
    for output in model.graph.outputs:
        if output not in freeing.known and output.shape is not None:
            output.shape = ir.Shape([None, *list(output.shape)[1:]])
    for value in (*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)):
        if value in freeing.known and value.shape is not None:
            value.shape = ir.Shape(_dims(value.shape, freeing.known[value], name))
        elif value not in (*model.graph.inputs, *model.graph.outputs):
            value.shape = None
    return places


def _dims(stored: ir.Shape, known: Traced, name: str) -> list[Dim]:
    """A stored shape with what samples make longer left open; all of one that had the wrong number of axes."""
    found: list[Dim] = [dim if isinstance(dim, int) else dim.value for dim in stored]
    if len(found) != len(known.shape):
        found = [None] * len(known.shape)
    for at, (size, two) in enumerate(zip(known.shape, known.two, strict=True)):
        if size != two:
            samples = known.place is not None and at == known.place.axis
            found[at] = name if samples and size == 1 else None
    return found


def _prove(
    before: ir.Model,
    after: ir.Model,
    groups: Sequence[Sequence[_Feeds]],
    axes: Mapping[str, int],
    places: Mapping[str, SampleAxis | None],
    context: Context,
) -> None:
    """Raise StepError unless several samples give what each alone does, and one the same bytes.

    With onnxruntime's optimiser and without: it may join other operators where sizes are open, which rounds otherwise.
    """
    for optimise in (False, True):
        old, new = (
            runtime.Session(io.payload(model, context.workdir), threads=context.threads, optimise=optimise, spin=False)
            for model in (before, after)
        )
        tolerance = _tolerance(before)
        for samples in groups:
            alone = [old.run(one) for one in samples]
            for one, results in zip(samples, alone, strict=True):
                _compare(results, _run(new, one, "one sample"), tolerance if optimise else 0.0, "one sample")
            for rows in _combined(len(samples)):
                parts, what = [alone[row] for row in rows], f"{len(rows)} samples"
                expected = {
                    name: parts[0][name] if at is None else at.stack([one[name] for one in parts])
                    for name, at in places.items()
                }
                _compare(expected, _run(new, _together([samples[row] for row in rows], axes), what), tolerance, what)


def _run(session: runtime.Session, feeds: _Feeds, what: str) -> _Feeds:
    try:
        return session.run(feeds)
    except ModelError as error:
        raise _wrong(what, f"it does not run: {error.cause or error.message}") from error


def _compare(expected: _Feeds, got: _Feeds, tolerance: float, what: str) -> None:
    for name, array in expected.items():
        if not same(array, got[name], tolerance):
            raise _wrong(what, f"output `{name}` is not what comes out of each alone")


def _wrong(what: str, cause: str) -> StepError:
    return StepError("batch.not-proven", f"freed, the graph would be wrong with {what}", cause=cause, hint=_HINT)


def _refused(refused: NotFree) -> StepError:
    node = refused.node
    return StepError(
        "batch.not-free",
        f"node `{node.name}` ({node.op_type}) cannot be given several samples",
        cause=refused.reason,
        hint=_HINT,
    )


def _tolerance(model: ir.Model) -> float:
    """How far outputs may be apart by rounding."""
    if any(node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") for node in model.graph.all_nodes()):
        return SAME_QUANTIZED
    return SAME_HALF if any(value.dtype == ir.DataType.FLOAT16 for value in model.graph.initializers.values()) else SAME
