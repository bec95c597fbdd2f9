"""Nodes that take one sample only, found by running each on one and on several, and changed where that is right.

A node gets what it should get: of several samples what comes out of each alone, put together. What it makes of that has
to be its own results put together in the same way. Where it is not, the first change is made that mends it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from lepton_cli.data.dataset import Array
from lepton_cli.errors import LeptonError
from lepton_cli.graph.edit import inner_graphs
from lepton_cli.graph.frozen import Change, Changes, Choices, Reads, Seen
from lepton_cli.graph.one_node import NO_ARRAY, OneNode, outer_values
from lepton_cli.graph.sized import RANDOM
from lepton_cli.graph.stacked import SampleAxis, found
from lepton_cli.step import Decision

#: Numbers of samples that every node is run on together.
COUNTS = (2, 3)


class NotFree(Exception):
    """A node that cannot take several samples. `alone`: it does not even take one."""

    def __init__(self, node: ir.Node, reason: str, *, alone: bool = False) -> None:
        super().__init__(reason)
        self.node, self.reason, self.alone = node, reason, alone


class Traced(NamedTuple):
    """Of a value: the shape of one sample, where samples lie, the shape of two, and whether it follows from how many
    there are."""

    shape: tuple[int, ...]
    place: SampleAxis | None
    two: tuple[int, ...]
    counted: bool


class Freeing:
    """One pass over a model, which is edited in place."""

    def __init__(
        self,
        model: ir.Model,
        samples: Sequence[Mapping[str, Array]],
        axes: Mapping[str, int],
        choices: Choices,
        *,
        sizes_known: bool,
    ) -> None:
        """`samples`: as many feeds of one sample as the largest of COUNTS. `axes`: inputs with samples, and where.

        `sizes_known`: whether all other sizes are the same in every run.
        """
        self._model = model
        inputs = {value.name or "": value for value in model.graph.inputs}
        source, axis = next(iter(axes.items()))
        self.changes = Changes(model, inputs[source], axis, choices, sizes_known=sizes_known)
        self.decisions: list[Decision] = []
        #: Every value that was seen.
        self.known: dict[ir.Value, Traced] = {}
        self._seen: dict[ir.Value, Seen] = {}
        self._done: set[ir.Node] = set()
        for name in samples[0]:
            given = [one[name] for one in samples]
            self._keep(inputs[name], Seen(given, SampleAxis(axes[name], 1)) if name in axes else Seen(given[:1]))

    def run(self) -> None:
        """Look at every node in turn. Raises NotFree at the first that cannot be mended."""
        self._run(self._model.graph)

    def _run(self, graph: ir.Graph) -> None:
        for node in list(graph):
            reads = self._reads(node)
            if node.op_type in RANDOM:
                raise NotFree(node, "its result is another in every run")
            if any(one.place is not None for one in reads.values()) and node.op_type not in ("Shape", "Size"):
                self._with_samples(node, reads)
            else:
                self._without(node, reads)
            self._done.update([node, *(inner for inside in inner_graphs(node) for inner in inside.all_nodes())])
            if graph is self._model.graph:  # an If reads again what its branches have read
                self._forget([*node.inputs, *outer_values(node)])

    def _reads(self, node: ir.Node) -> Reads:
        reads: dict[int | str, Seen] = {
            index: self._value(value) for index, value in enumerate(node.inputs) if value is not None
        }
        return reads | {value.name or "": self._value(value) for value in outer_values(node)}

    def _value(self, value: ir.Value) -> Seen:
        if value is self.changes.count:
            return Seen([np.array([1])], counted={count: np.array([count]) for count in (1, *COUNTS)})
        if value not in self._seen and value.const_value is not None:
            return Seen([value.const_value.numpy()])
        return self._seen[value]

    def _keep(self, value: ir.Value, seen: Seen) -> None:
        self._seen[value] = seen
        self.known[value] = Traced(seen.of(0).shape, seen.place, seen.together(2).shape, seen.counted is not None)

    def _forget(self, values: Sequence[ir.Value | None]) -> None:
        """Let go of what no node will read any more."""
        for value in values:
            if value is None or value not in self._seen or value.is_graph_output():
                continue
            if all(use.node in self._done for use in value.uses()):
                del self._seen[value]

    def _without(self, node: ir.Node, reads: Reads) -> None:
        """A node that reads no samples, at most how many there are."""
        one = self._alone(node, reads, 1)[0]
        values = [value for value in node.outputs if value.name]
        if all(seen.shared for seen in reads.values()):
            for value, array in zip(values, one, strict=True):
                self._keep(value, Seen([array]))
            return
        together = {count: self._together(node, node, reads, count, {}) for count in COUNTS}
        for at, (value, array) in enumerate(zip(values, one, strict=True)):
            by_count = {1: array, **{count: results[at] for count, results in together.items()}}
            places = {found([array] * count, by_count[count])[0] for count in COUNTS}
            place = places.pop()
            if all(other.shape == array.shape and np.array_equal(other, array) for other in by_count.values()):
                self._keep(value, Seen([array]))
            elif place is not None and not places:  # the same once for each sample: zeros to begin with, say
                self._keep(value, Seen([array] * max(COUNTS), place))
            else:
                self._keep(value, Seen([array], counted=by_count))

    def _alone(self, node: ir.Node, reads: Reads, count: int) -> list[list[Array]]:
        """What the node makes of the first samples, of each alone."""
        fixed = {key: one.of(0) for key, one in reads.items() if one.shared}
        fed = [{key: one.of(at) for key, one in reads.items() if key not in fixed} for at in range(count)]
        try:
            runner = OneNode(node, self._model, fixed, fed[0])
            return [runner.run(one) for one in fed]
        except LeptonError as error:
            reason = f"it cannot be looked at: {_cause(error)}"
            raise NotFree(node, reason, alone=error.code != NO_ARRAY) from error

    def _together(
        self, node: ir.Node, run: ir.Node, reads: Reads, count: int, given: Mapping[int, Array]
    ) -> list[Array]:
        """What `run` makes of `count` samples in the place of the node, with other inputs `given`."""
        wanted = {index for index, value in enumerate(run.inputs) if value is not None}
        kept = {key: one for key, one in reads.items() if key not in given and (isinstance(key, str) or key in wanted)}
        fixed = {key: one.of(0) for key, one in kept.items() if one.shared}
        fed: dict[int | str, Array] = {key: one.together(count) for key, one in kept.items() if not one.shared}
        fed.update(given.items())
        try:
            return OneNode(run, self._model, fixed, fed).run(fed)
        except LeptonError as error:
            raise NotFree(node, f"it does not take {count} samples: {_cause(error)}") from error

    def _with_samples(self, node: ir.Node, reads: Reads) -> None:
        """A node that reads samples: as it is, or with the first change that makes it right."""
        if node.op_type == "If" and not node.domain:
            self._branches(node)
            reads = self._reads(node)
        alone = self._alone(node, reads, max(COUNTS))
        refused: NotFree | None = None
        for change in self.changes.of(node, reads, alone):
            try:
                places = self._places(node, change, reads, alone)
            except NotFree as wrong:
                refused = refused or wrong
                continue
            made = change.edit()
            if change.does:
                done = Decision(node=made.name or "", op=made.op_type, action="freed", reason=change.does)
                self.decisions.append(done)
            values = [value for value in made.outputs if value.name]
            for at, (value, place) in enumerate(zip(values, places, strict=True)):
                self._keep(value, Seen([results[at] for results in alone], place))
            self._done.add(made)
            return
        assert refused is not None
        raise refused

    def _branches(self, node: ir.Node) -> None:
        """Both branches of an If, whichever is taken; one that cannot run on these inputs stays as it is."""
        condition = node.inputs[0]
        if condition is not None and self._value(condition).place is not None:
            raise NotFree(node, "each sample decides which branch is taken")
        for graph in inner_graphs(node):
            try:
                self._run(graph)
            except NotFree as refused:
                if not refused.alone:
                    raise

    def _places(
        self, node: ir.Node, change: Change, reads: Reads, alone: Sequence[Sequence[Array]]
    ) -> list[SampleAxis]:
        """Where the samples lie in each result. Raises NotFree where they lie nowhere."""
        likely = [one.place for one in reads.values()]
        places: list[SampleAxis] = []
        for count in COUNTS:
            for at, together in enumerate(self._together(node, change.run, reads, count, change.given(count))):
                place, why = found([one[at] for one in alone[:count]], together, [*places[at : at + 1], *likely])
                if (
                    place is None
                    or (count != COUNTS[0] and place != places[at])
                    or (change.at and place not in change.at)
                ):
                    raise NotFree(node, why or "where its result has the samples follows from their number")
                if count == COUNTS[0]:
                    places.append(place)
        return places


def _cause(error: LeptonError) -> str:
    """What onnxruntime says, without the node, which is named already."""
    return (error.cause or error.message).rpartition("Status Message: ")[2]
