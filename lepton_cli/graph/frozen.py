"""What a node of a graph for one sample can be given so that it takes several: shapes that follow their number.

Nothing is decided here: each change says what the node would be given for so many samples, and how it is written down
where that turns out to be right.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from lepton_cli.data.dataset import Array
from lepton_cli.graph import shapes
from lepton_cli.graph.edit import Editor, is_constant
from lepton_cli.graph.sized import SHAPE_INPUTS
from lepton_cli.graph.stacked import SampleAxis, reshaped

#: Operators that only move numbers: where one leaves all in place, it is a Reshape.
_MOVING = frozenset({"Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Unsqueeze"})
#: Operators with sizes, counts or bounds that may hold the number of samples.
_COUNTING = frozenset({"Expand", "Resize", "Slice", "Split", "Tile"})
#: Bounds of slices beyond this mean the end.
_ENDLESS = 1 << 31

#: Numbers of a vector; `None`: the number of samples, times another.
Spec = tuple[int | None, ...]


@dataclasses.dataclass
class Seen:
    """A value, of each sample alone (one array where all have the same), and where several lie when together.

    `counted`: by number of samples, where it follows from that and from nothing else.
    """

    alone: list[Array]
    place: SampleAxis | None = None
    counted: Mapping[int, Array] | None = None

    def of(self, sample: int) -> Array:
        """What one sample has."""
        return self.alone[sample if self.place is not None else 0]

    def together(self, count: int) -> Array:
        """What the first `count` samples have together."""
        if self.counted is not None:
            return self.counted[count]
        return self.alone[0] if self.place is None else self.place.stack(self.alone[:count])

    @property
    def shared(self) -> bool:
        """Whether it is the same for any samples."""
        return self.place is None and self.counted is None


#: What a node reads: inputs by number, values from outside that its inner graphs read by name.
Reads = Mapping[int | str, Seen]


@dataclasses.dataclass(frozen=True)
class Change:
    """`does`: in words, empty where nothing is changed. `run`: the node to run, with inputs `given` by their number.

    `edit` writes it into the graph and returns the node that stands there then. `at`: where samples may lie then, if
    not anywhere.
    """

    does: str
    run: ir.Node
    given: Callable[[int], dict[int, Array]]
    edit: Callable[[], ir.Node]
    at: Sequence[SampleAxis] = ()


class Choices:
    """Which of several places samples go to where a Reshape leaves it open: by what is reshaped to what.

    Whether it was the right one shows later. Then `other` takes back the last choice that has an alternative.
    """

    def __init__(self) -> None:
        self._taken: dict[Hashable, int] = {}
        self._counts: dict[Hashable, int] = {}

    def take(self, what: Hashable, count: int) -> int:
        """The number of the place to take, of `count`."""
        self._counts[what] = count
        return self._taken.setdefault(what, 0)

    def other(self) -> bool:
        """Choose otherwise from the last place on; `False` where nothing is left to choose."""
        while self._taken:
            what, number = self._taken.popitem()
            if number + 1 < self._counts[what]:
                self._taken[what] = number + 1
                return True
        return False


class Changes:
    """Changes of the nodes of one model."""

    def __init__(self, model: ir.Model, source: ir.Value, axis: int, choices: Choices, *, sizes_known: bool) -> None:
        """`source`: an input with the samples on `axis`. `sizes_known`: all other sizes are the same in every run."""
        self._choices = choices
        self._model, self._editor, self._source, self._axis = model, Editor(model), source, axis
        self._sizes_known = sizes_known
        #: The number of samples, once something asks for it: `[1]`.
        self.count: ir.Value | None = None

    def of(self, node: ir.Node, reads: Reads, alone: Sequence[Sequence[Array]]) -> Iterator[Change]:
        """Changes that may be right, the plainest first; none at all as the first. `alone`: results by sample."""
        nothing = Change("", node, lambda count: {}, lambda: node)
        places = _order_kept(node, reads, alone)
        if node.op_type in ("Flatten", "Reshape") and places:
            yield from self._chosen(node, reads, alone, places, nothing)
            return
        yield nothing
        if not node.domain:
            yield from self._counts(node, reads)
            for place in places:
                yield from self._reshapes(node, reads, alone, place)
            yield from self._repeats(node, reads)

    def _chosen(
        self,
        node: ir.Node,
        reads: Reads,
        alone: Sequence[Sequence[Array]],
        places: Sequence[SampleAxis],
        nothing: Change,
    ) -> Iterator[Change]:
        """A Reshape or Flatten with the samples where they are wanted; as it is, only if it leaves them there.

        The 1 of a frozen batch fits any number of samples, which are then merged into the axis of a -1.
        """
        shape, target = reads[0].of(0).shape, alone[0][0].shape
        number = self._choices.take((reads[0].place, shape, target), len(places))
        free = [one for one in places if target[one.axis] == 1] if not number else []
        yield dataclasses.replace(nothing, at=[*free, places[number]])
        yield from self._reshapes(node, reads, alone, places[number])

    def _counts(self, node: ir.Node, reads: Reads) -> Iterator[Change]:
        """The number of samples in one place of a size, bound or count."""
        for index in SHAPE_INPUTS[node.op_type] if node.op_type in _COUNTING else ():
            vector = reads.get(index)
            if vector is None or not vector.shared or vector.of(0).dtype != np.int64 or vector.of(0).ndim != 1:
                continue
            asked = [int(size) for size in vector.of(0)]
            for place, size in enumerate(asked):
                if size and abs(size) < _ENDLESS:
                    yield self._given(node, index, asked, (*asked[:place], None, *asked[place + 1 :]), size)

    def _reshapes(
        self, node: ir.Node, reads: Reads, alone: Sequence[Sequence[Array]], place: SampleAxis
    ) -> Iterator[Change]:
        """A shape with room for several samples at a place."""
        shape, target, source = reads[0].of(0).shape, alone[0][0].shape, reads[0].place
        own = node.op_type == "Reshape"
        if shapes.opset(self._model) < 5 or source is None:
            return  # then its shape is an attribute
        asked = [int(size) for size in reads[1].of(0)] if own else list(target)
        copied = place.axis == source.axis and shape[place.axis] == target[place.axis]
        copied = copied and not node.attributes.get_int("allowzero", 0)
        for spec in self._rooms(asked, target, place.axis, source.axis, copied=copied):
            yield self._given(node, 1, asked, spec, target[place.axis], reshape=not own, at=[place])

    def _rooms(
        self, asked: Sequence[int], target: Sequence[int], axis: int, source: int, *, copied: bool
    ) -> Iterator[Spec]:
        """Shapes with room on an axis. `copied`: a 0 there takes the size of what is reshaped, whose samples are on
        the axis `source`."""
        known = [target[source] if not size and at == source != axis else size for at, size in enumerate(asked)]

        def room(size: int | None, sizes: Sequence[int]) -> Spec:
            return (*sizes[:axis], size, *sizes[axis + 1 :])

        taken = -1 in known and known[axis] != -1
        if not taken:
            yield room(-1, known)
        if copied:
            yield room(0, known)
        if taken and self._sizes_known:
            yield room(-1, [target[at] if size == -1 else size for at, size in enumerate(known)])
        if taken:
            yield room(None, known)

    def _given(
        self,
        node: ir.Node,
        index: int,
        asked: Sequence[int],
        spec: Spec,
        times: int,
        *,
        reshape: bool = False,
        at: Sequence[SampleAxis] = (),
    ) -> Change:
        """These numbers as an input of the node, or of a Reshape in its place; `None` is `times` the samples."""

        def edit() -> ir.Node:
            old, before = list(node.inputs[1:] if reshape else node.inputs[index : index + 1]), None
            made = node
            if reshape:
                made = ir.node("Reshape", [node.inputs[0], None], name=node.name)
                self._editor.put(node, [made])
            else:
                before = node.inputs[index]
            made.replace_input_with(index, self._vector(made, before, asked, spec, times))
            for value in old:
                _let_go(value)
            return made

        run = ir.node("Reshape", [ir.Value(name="data"), ir.Value(name="shape")]) if reshape else node
        if reshape:
            run.outputs[0].name = "reshaped"
        counted = "samples" if times == 1 else f"{times} x samples"
        shown = ", ".join(counted if size is None else str(size) for size in spec)
        does = f"{node.op_type} became a Reshape to [{shown}]" if reshape else f"{list(asked)} became [{shown}]"
        numbers = [(times, 0) if size is None else (0, size) for size in spec]
        return Change(does, run, lambda n: {index: np.array([t * n + size for t, size in numbers], np.int64)}, edit, at)

    def _repeats(self, node: ir.Node, reads: Reads) -> Iterator[Change]:
        """What all samples share, once a sample: beside them in a Concat, as a recurrent layer's first state."""
        fits: dict[int, list[int]] = {}
        for one in reads.values():
            if one.place is None:
                continue
            axis, shape = one.place.axis, one.of(0).shape
            whole = one.place.inner == shape[axis]
            for key, other in reads.items() if whole else ():
                size = other.of(0).shape[axis : axis + 1] if other.of(0).ndim == len(shape) else ()
                steering = not isinstance(key, int) or key in SHAPE_INPUTS.get(node.op_type, ())
                if size == shape[axis : axis + 1] and other.shared and not steering:
                    fits.setdefault(axis, []).append(int(key))
        for axis, found in fits.items():
            keys = tuple(dict.fromkeys(found))
            for chosen in dict.fromkeys((keys, *((key,) for key in keys))):
                yield self._repeated(node, {key: reads[key].of(0) for key in chosen}, axis)

    def _repeated(self, node: ir.Node, shared: Mapping[int, Array], axis: int) -> Change:
        def edit() -> ir.Node:
            for key, array in shared.items():
                ones: list[int] = [1] * array.ndim
                times = self._vector(node, None, ones, (*ones[:axis], None, *ones[axis + 1 :]), 1)
                tile = ir.node("Tile", [node.inputs[key], times], name=f"{node.name}/samples")
                self._editor.insert_before(node, [tile])
                node.replace_input_with(key, tile.outputs[0])
            return node

        names = ", ".join(f"`{value.name}`" for key in shared if (value := node.inputs[key]) is not None)
        return Change(
            f"{names} once for each sample",
            node,
            lambda n: {key: np.concatenate([array] * n, axis) for key, array in shared.items()},
            edit,
        )

    def _vector(self, node: ir.Node, before: ir.Value | None, asked: Sequence[int], spec: Spec, times: int) -> ir.Value:
        """Numbers as a value that the node can read; those of `before` that stay are read from it."""
        name = f"{node.name}/shape"
        reads_before = before is not None and not _constant(before) and not self._sizes_known

        def source(at: int) -> str:
            if spec[at] is None:
                return "count"
            return "before" if reads_before and spec[at] == asked[at] else "constant"

        made: list[ir.Node] = []
        parts: list[ir.Value] = []
        for kind, group in itertools.groupby(range(len(spec)), source):
            places = list(group)
            if kind == "constant":
                parts.append(self._editor.constant(name, np.array([spec[at] for at in places], np.int64)))
            elif kind == "count":
                parts.append(self._counted())
                if times != 1:
                    factor = self._editor.constant(name, np.array([times], np.int64))
                    made.append(ir.node("Mul", [parts[-1], factor], name=f"{name}/count"))
                    parts[-1] = made[-1].outputs[0]
            else:
                picked = self._editor.constant(name, np.array(places, np.int64))
                made.append(ir.node("Gather", [before, picked], name=f"{name}/known"))
                parts.append(made[-1].outputs[0])
        if len(parts) > 1:
            made.append(ir.node("Concat", parts, {"axis": 0}, name=name))
        if made:
            self._editor.insert_before(node, made)
        return made[-1].outputs[0] if len(parts) > 1 else parts[0]

    def _counted(self) -> ir.Value:
        """The number of samples, read from an input at the beginning of the graph."""
        if self.count is None:
            axis = self._editor.constant("samples/axis", np.array([self._axis], np.int64))
            whole = ir.node("Shape", [self._source], name="samples/shape")
            count = ir.node("Gather", [whole.outputs[0], axis], name="samples")
            self._editor.insert_before(next(iter(self._model.graph)), [whole, count])
            self.count = count.outputs[0]
        return self.count

    def first(self, output: ir.Value, shape: Sequence[int], place: SampleAxis) -> None:
        """Let an output of the graph hold one sample behind the other on its first axis, in place.

        `shape`: of one sample.
        """
        axis, size, inner, name = place.axis, shape[place.axis], place.inner, output.name or ""
        split = np.array([*shape[:axis], size // inner, -1, inner, *shape[axis + 1 :]], np.int64)
        whole = np.array([-1, *shape[1:]], np.int64)
        order = [axis + 1, *(at for at in range(len(split)) if at != axis + 1)]
        graph = self._model.graph
        apart = ir.node("Reshape", [output, self._editor.constant(f"{name}/split", split)], name=f"{name}/split")
        turned = ir.node("Transpose", apart.outputs, {"perm": order}, name=f"{name}/turned")
        joined = ir.node(
            "Reshape", [turned.outputs[0], self._editor.constant(f"{name}/joined", whole)], name=f"{name}/joined"
        )
        made = [apart, turned, joined]
        output.name = self._editor.name(f"{name}/inside")
        for node in made:
            node.name = self._editor.name(node.name or "")
            node.outputs[0].name = self._editor.name(f"{node.name}.out")
        graph.extend(made)
        result = joined.outputs[0]
        result.name, result.type, result.shape = name, output.type, output.shape
        output.shape = None
        graph.outputs[list(graph.outputs).index(output)] = result


def _order_kept(node: ir.Node, reads: Reads, alone: Sequence[Sequence[Array]]) -> list[SampleAxis]:
    """Where samples can lie in the result of a node that leaves all numbers of each in place; nowhere for others."""
    data = reads.get(0)
    if node.domain or node.op_type not in _MOVING or data is None or data.place is None or len(node.outputs) != 1:
        return []
    if any(one.place is not None for key, one in reads.items() if key != 0):
        return []
    if not all(_in_place(data.of(at), results[0]) for at, results in enumerate(alone)):
        return []
    return reshaped(data.place, data.of(0).shape, alone[0][0].shape)


def _constant(value: ir.Value) -> bool:
    node = value.producer()
    return is_constant(value) or (node is not None and node.op_type == "Constant")


def _in_place(one: Array, other: Array) -> bool:
    return one.dtype == other.dtype and one.size == other.size and bool(np.array_equal(one.ravel(), other.ravel()))


def _let_go(value: ir.Value | None) -> None:
    """Remove what nothing reads any more, and what was there only for that."""
    if value is None or value.uses() or value.is_graph_output() or value.is_graph_input():
        return
    node = value.producer()
    if node is None:
        if value.graph is not None and value.is_initializer():
            value.graph.initializers.pop(value.name or "")
    elif node.graph is not None and not any(one.uses() or one.is_graph_output() for one in node.outputs):
        read = list(node.inputs)
        node.graph.remove(node, safe=True)
        for one in read:
            _let_go(one)
