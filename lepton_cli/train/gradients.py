"""From which values a gradient comes back to the weights that train, and what the others are made of."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import onnx_ir as ir

from lepton_cli import runtime
from lepton_cli.graph import shapes
from lepton_cli.graph.edit import inner_graphs
from lepton_cli.graph.one_node import outer_values
from lepton_cli.graph.sized import SEARCHING, from_data, steering
from lepton_cli.train import control
from lepton_cli.train.operators.rounding import RANGES
from lepton_cli.train.operators.table import OPERATORS

#: Their results are decisions, though they are floats: steps, flat in between.
_STEPS = frozenset({"Ceil", "Floor", "Hardmax", "Round", "Sign"})
#: Quantized numbers are floats here: rounding counts as the identity.
_CODES = RANGES.keys() - {ir.DataType.INT32}
#: What these read passes on only how large it is.
_SIZES = frozenset({"SequenceLength", "Shape", "Size"})
#: Why nothing is learnt through an operator that torch lacks.
LACKING = "no gradient is known for it"


class Origin(enum.IntEnum):
    """How a value hangs on the weights that train; what is made of several is as the highest of them."""

    #: No such weight is before it.
    GIVEN = 0
    #: Some are, but it follows from a decision (whole numbers, labels): no gradient comes back.
    DECIDED = 1
    #: A gradient comes back.
    LEARNT = 2
    #: A gradient would have to, through a node that torch lacks.
    BARRED = 3


def operator(node: ir.Node) -> tuple[str, str]:
    """Domain (`""`: the standard) and name."""
    return "" if node.domain == "ai.onnx" else node.domain, node.op_type


def is_lacking(node: ir.Node) -> bool:
    """Whether torch has no such operator."""
    domain, name = operator(node)
    return (domain, name) not in OPERATORS and (domain != "" or name not in control.RUN)


class Gradients:
    """The origin of every value of a model, those of branches and bodies too."""

    def __init__(self, model: ir.Model, trained: Collection[ir.Value], types: Mapping[str, ir.DataType | None]) -> None:
        """`trained`: the values that train, or are made of parameters. `types`: those of the main graph's values."""
        self._trained = set(trained)
        self._origins = dict.fromkeys(self._trained, Origin.LEARNT)
        #: By value: the node at which the gradient ends.
        self._ends: dict[ir.Value, ir.Node] = {}
        #: What follows from a decision that torch lacks, as of which boxes stay.
        self._chosen: set[ir.Value] = set()
        #: What has a number of rows that follows from learnt values, as far as inference can tell.
        self._loose: set[ir.Value] = set()
        if not self._trained:
            return
        self._imports = model.graph.opset_imports
        self._follows = from_data(model).values
        self._types = types
        self._sizes = shapes.symbolic(model, {})
        self._fed = {dim for value in model.graph.inputs for dim in self._sizes.get(value.name or "", ())}
        self._run(model.graph)

    def origin(self, value: ir.Value) -> Origin:
        """See `Origin`."""
        return self._origins.get(value, Origin.GIVEN)

    def end(self, value: ir.Value) -> ir.Node | None:
        """The node at which the gradient ends, on the way from weights to a value that is decided or barred."""
        return self._ends.get(value)

    def compares(self, value: ir.Value) -> bool:
        """Whether its numbers can be compared one by one with those of another computation of it."""
        origin = self.origin(value)
        rows = value not in self._chosen and value not in self._loose
        return origin == Origin.GIVEN or (origin != Origin.BARRED and rows)

    def learns(self, value: ir.Value) -> bool:
        """Whether a gradient comes back from it, and it can be compared with another model's."""
        return self.origin(value) == Origin.LEARNT and self.compares(value) and not self._is_code(value)

    def made_of(
        self, value: ir.Value, fit: Callable[[Sequence[str]], Collection[str]] = lambda names: names
    ) -> tuple[str, ...]:
        """The nearest values before it that learn, by name.

        `fit`: which of some may be taken; what those are made of that may not is looked at too, as far as no weights
        that train are in between.
        """
        found: list[str] = []
        seen, level = {value}, [value]
        while level:
            before = [one for one in dict.fromkeys(one for last in level for one in _reads(last)) if one not in seen]
            seen.update(before)
            before = [one for one in before if self.origin(one) != Origin.GIVEN and one in self._follows]
            tried = {one.name or "": one for one in before if self.learns(one)}
            taken = fit(list(tried)) if tried else ()
            found += [name for name in tried if name in taken]
            level = [one for one in before if one.name not in tried]
            level += [one for name, one in tried.items() if name not in taken and not self._weighs(one)]
        return tuple(found)

    def before(self, values: Collection[ir.Value]) -> set[str]:
        """Names of the values of the main graph that these are made of, and their own."""
        found, stack = set(values), [*values]
        while stack:
            new = [one for one in _reads(stack.pop()) if one not in found]
            found.update(new)
            stack += new
        return {value.name or "" for value in found}

    def _weighs(self, value: ir.Value) -> bool:
        """Whether weights that train come in where it is made."""
        return any(one not in self._follows and self.origin(one) != Origin.GIVEN for one in _reads(value))

    def _run(self, graph: ir.Graph) -> None:
        for node in graph:
            if node.op_type != "Constant" and node.op_type not in _SIZES:
                self._node(node)

    def _node(self, node: ir.Node) -> None:
        reads = _inputs(node)
        highest = self._highest(reads)
        lacking = is_lacking(node) and highest != Origin.GIVEN
        codes = any(self._is_code(one) for one in reads)
        searches = node.op_type in SEARCHING and highest != Origin.GIVEN
        loose = searches or self._highest(steering(node)) != Origin.GIVEN
        results = [] if lacking else self._inside(node, reads, highest)
        for index, value in enumerate(node.outputs):
            made_of = results[index] if results else reads
            origin = self._highest(made_of)
            if lacking and origin == Origin.LEARNT and (codes or self._passes(value, node)):
                origin = Origin.BARRED
            elif node.op_type in _STEPS or not self._passes(value, node):
                origin = min(origin, Origin.DECIDED)
            self._set(value, origin, node, made_of)
            if lacking or not self._chosen.isdisjoint(made_of):
                self._chosen.add(value)
            if (loose or not self._loose.isdisjoint(made_of)) and not self._is_settled(value):
                self._loose.add(value)

    def _highest(self, values: Iterable[ir.Value]) -> Origin:
        return max(map(self.origin, values), default=Origin.GIVEN)

    def _set(self, value: ir.Value, origin: Origin, node: ir.Node, made_of: Sequence[ir.Value]) -> None:
        if value in self._trained or origin == Origin.GIVEN:
            return
        self._origins[value] = origin
        if origin != Origin.LEARNT:
            by_origin = {self.origin(one): self._ends.get(one, node) for one in reversed(made_of)}
            self._ends[value] = next(
                (by_origin[one] for one in (Origin.BARRED, Origin.LEARNT, Origin.DECIDED) if one in by_origin), node
            )

    def _inside(self, node: ir.Node, reads: Sequence[ir.Value], highest: Origin) -> list[list[ir.Value]]:
        """For each output of a node with graphs of its own, the values it is made of."""
        bodies = inner_graphs(node)
        if node.op_type == "If":
            for body in bodies:
                self._run(body)
            decides = [value for value in node.inputs if value is not None]
            return [[*made, *decides] for made in zip(*(body.outputs for body in bodies), strict=True)]
        if not bodies:
            return []
        (body,) = bodies
        if not self._trained.isdisjoint(one for inner in body.all_nodes() for one in inner.inputs if one is not None):
            highest = max(highest, Origin.LEARNT)
        for value in body.inputs:
            self._set(value, highest if self._passes(value, node) else min(highest, Origin.DECIDED), node, reads)
        for rows in (self._chosen, self._loose):
            rows.update(() if rows.isdisjoint(reads) else body.inputs)
        self._run(body)
        barred = [one for one in body.outputs if self.origin(one) == Origin.BARRED]
        outputs = list(body.outputs)[1 if node.op_type == "Loop" else 0 :]
        return [[one, *barred] for one in outputs]

    def _is_settled(self, value: ir.Value) -> bool:
        """Whether its sizes are numbers, or those of the inputs."""
        sizes = self._sizes.get(value.name or "")
        return sizes is not None and all(
            isinstance(size, int) or (size in self._fed and size is not None) for size in sizes
        )

    def _is_code(self, value: ir.Value) -> bool:
        """Whether it is a quantized number that was learnt."""
        kind = value.dtype or self._types.get(value.name or "")
        return kind in _CODES and self.origin(value) == Origin.LEARNT

    def _passes(self, value: ir.Value, node: ir.Node) -> bool:
        """Whether the type lets a gradient through: floats, codes of floats, and what is not known, such as a map."""
        kind = value.dtype or self._types.get(value.name or "")
        if kind is not None:
            return kind.is_floating_point() or (kind in _CODES and node.op_type not in ("Cast", "CastLike"))
        schema = runtime.schema(node.domain, node.op_type, self._imports.get(node.domain))
        index = value.index()
        stated = (
            "T" if schema is None or index is None or index >= len(schema.outputs) else schema.outputs[index].typeStr
        )
        return "(" not in stated or "float" in stated or "double" in stated


def _inputs(node: ir.Node) -> list[ir.Value]:
    return [*(value for value in node.inputs if value is not None), *outer_values(node)]


def _reads(value: ir.Value) -> list[ir.Value]:
    node = value.producer()
    return [] if node is None or node.op_type in _SIZES else _inputs(node)
