"""Bytes of a finished file as a function of the widths, before anything is built: the file of the unpruned model tells.

What a later step makes of a node's weights (codes, scales, zero points, biases, packed blocks) is found in the file
where that node is computed, and counted along the axes of the weights that it stands for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from math import prod
from operator import ge

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lepton_cli.coupling.links import TensorAxis
from lepton_cli.model import io
from lepton_cli.prune.analysis import Analysis
from lepton_cli.prune.cost import CostModel, Form, Widths, build
from lepton_cli.quantize import blocks, choose
from lepton_cli.quantize import stored as in_8_bits
from lepton_cli.quantize.kernels import Filling

#: Bytes of a tensor in a file besides its elements and name, and of the tag and length of anything.
_FRAME, _FIELD = 16, 3


@dataclasses.dataclass(frozen=True)
class _Part:
    """Something of a file: its bytes, and the weights' axes that they follow; none where they stay."""

    bytes: float
    axes: list[TensorAxis] = dataclasses.field(default_factory=list)
    shape: tuple[int, ...] = ()
    form: Form | None = None


@dataclasses.dataclass(frozen=True)
class Stored:
    """Bytes of a file by widths of the plan's groups, and of the nodes of the plan."""

    plan: Analysis
    price: CostModel
    parts: Mapping[str, Sequence[_Part]]
    zeros: _Zeros | None = None

    def __call__(self, widths: Widths) -> float:
        """Bytes at these widths."""
        added = 0.0 if self.zeros is None else float(self.zeros(np.asarray(widths)[None])[0])
        return self.price(widths) + added

    def table(self, widths: Widths, group: int, levels: Widths) -> NDArray[np.float64]:
        """Bytes at every level of one group, the others as in `widths`."""
        found = self.price.table(widths, group, levels)
        if self.zeros is not None:
            rows = np.repeat(np.asarray(widths)[None], len(levels), axis=0)
            rows[:, group] = levels
            found = found + self.zeros(rows)
        return np.asarray(found)

    def of(self, nodes: Collection[str]) -> CostModel:
        """Bytes of these nodes: their constants, and what the file says about each."""
        return _priced([part for node in nodes for part in self.parts.get(node, ())], 0.0, self.plan)


def stored(plan: Analysis, written: ir.Model, filling: Filling | None = None) -> Stored:
    """`written`: the file that the unpruned model becomes, in the precision of a candidate. `filling`: where its
    channels would be filled up to blocks."""
    parts: dict[str, list[_Part]] = {}
    counted: set[str] = set()
    ends = _ends(plan, written)
    borders = {value.name for node in plan.model.graph for value in node.outputs} | {
        value.name for value in plan.model.graph.inputs
    }
    for node in plan.model.graph:
        name = node.name or ""
        follows = _Follows(plan, node, _weights(node))
        for made, reader in _cone(ends.get(name), borders, counted):
            found = parts.setdefault(name, [])
            found.append(_Part(_length(made)))
            if isinstance(made, ir.Value):
                found.append(follows(made, reader))
    following = [part for some in parts.values() for part in some if part.axes]
    zeros = None if filling is None or not filling.chains else _Zeros.of(plan, filling)
    full = np.array([[group.channels for group in plan.groups]], np.int64)
    present = 0.0 if zeros is None else float(zeros(full)[0])
    rest = float(len(io.to_bytes(written))) - present - sum(part.bytes for part in following)
    return Stored(plan, _priced(following, rest, plan), parts, zeros)


@dataclasses.dataclass(frozen=True)
class _Zeros:
    """Bytes that fill blocks of channels, by widths."""

    filling: Filling
    #: Bytes of all convolutions' weights.
    codes: CostModel
    #: Channels of every chain [chains], elements of each of its weights [parts], and the chain that these belong to.
    channels: CostModel
    parts: CostModel
    chain: NDArray[np.int64]

    @classmethod
    def of(cls, plan: Analysis, filling: Filling) -> _Zeros:
        """Chains whose channels may go."""
        weights = {node.name or "": found[0][:2] for node in plan.model.graph if (found := _weights(node))}

        def model(places: Sequence[tuple[str, Sequence[int]]]) -> CostModel:
            terms = []
            for node, axes in places:
                name, full = weights[node]
                shape = tuple(full[axis] for axis in axes)
                terms.append((float(prod(shape)), [(name, axis) for axis in axes], shape))
            return build(terms, 0.0, plan.coupling, plan.groups)

        kept = [
            chain
            for chain in filling.chains
            if all(node in weights for node, _ in chain) and len(model([(chain[0][0], [chain[0][1]])]).factor)
        ]
        convs = [node.name or "" for node in plan.model.graph if node.op_type == "Conv" and node.name in weights]
        codes = model([(node, range(len(weights[node][1]))) for node in convs])
        others = filling.codes - codes(np.array([group.channels for group in plan.groups], np.int64))
        return cls(
            filling,
            dataclasses.replace(codes, base=codes.base + others),
            model([(chain[0][0], [chain[0][1]]) for chain in kept]),
            model([(node, range(len(weights[node][1]))) for chain in kept for node, _ in chain]),
            np.array([number for number, chain in enumerate(kept) for _ in chain], np.int64),
        )

    def __call__(self, trials: Widths) -> NDArray[np.float64]:
        """Of several sets of widths, [trials, groups]."""
        channels, parts = self.channels.terms(trials), self.parts.terms(trials)
        owned = np.zeros((channels.shape[1], parts.shape[1]))
        owned[self.chain, np.arange(len(self.chain))] = 1
        codes = self.codes.base + self.codes.terms(trials).sum(axis=1)
        return self.filling.added(channels, parts @ owned.T / np.maximum(channels, 1), codes)


def _priced(parts: Sequence[_Part], base: float, plan: Analysis) -> CostModel:
    terms = [(part.bytes, part.axes, part.shape) for part in parts]
    return build(terms, base, plan.coupling, plan.groups, [part.form for part in parts])


def _ends(plan: Analysis, written: ir.Model) -> dict[str, ir.Node]:
    """The node of the file that each node of the plan became: by its name, else by its output."""
    by_name = {node.name or "": node for node in written.graph}
    by_output = {value.name: node for node in written.graph for value in node.outputs}
    found = {}
    for node in plan.model.graph:
        end = by_name.get(node.name or "") or by_output.get(node.outputs[0].name)
        if end is not None:
            found[node.name or ""] = end
    return found


def _cone(
    end: ir.Node | None, borders: Collection[str | None], counted: set[str]
) -> Iterator[tuple[ir.Node | ir.Value, ir.Node]]:
    """A node of the file, what computes its inputs up to the plan's values, and all constants on the way with their
    readers; each once."""
    queue = [] if end is None else [end]
    while queue:
        node = queue.pop()
        if (key := f"node {node.name}") in counted:
            continue
        counted.add(key)
        yield node, node
        for value in node.inputs:
            if value is None:
                continue
            if value.const_value is not None and value.is_initializer():
                if value.name not in counted:
                    counted.add(value.name or "")
                    yield value, node
            elif (producer := value.producer()) is not None and value.name not in borders:
                queue.append(producer)


def _length(made: ir.Node | ir.Value) -> float:
    """Bytes of a node in a file with what is said about its outputs, or of a tensor besides its elements."""
    if isinstance(made, ir.Value):
        return float(_FRAME + len(made.name or ""))
    said = sum(_FIELD + ir.serde.serialize_value(value).ByteSize() for value in made.outputs if value.type is not None)
    return float(_FIELD + ir.serde.serialize_node(made).ByteSize() + said)


def _weights(node: ir.Node) -> list[tuple[str, tuple[int, ...], float]]:
    """Weights that a node of the plan reads, with their shapes and bytes of an element, the largest first."""
    found = []
    for value in node.inputs:
        if value is not None and value.is_initializer() and value.const_value is not None and value.const_value.size:
            tensor = value.const_value
            found.append((value.name or "", tuple(map(int, tensor.shape.numpy())), tensor.nbytes / tensor.size))
    return sorted(found, key=lambda one: -prod(one[1]))


@dataclasses.dataclass(frozen=True)
class _Follows:
    """Which axes of the weights of a plan's node the constants of the file follow, and how they are stored."""

    plan: Analysis
    node: ir.Node
    weights: Sequence[tuple[str, tuple[int, ...], float]]

    def __call__(self, value: ir.Value, reader: ir.Node) -> _Part:
        """Blocks: all axes of the weight. As many elements as it has: the same. As many as it has outputs: that axis.
        Others that are many: codes packed in some way."""
        tensor = value.const_value
        assert tensor is not None
        size, count = float(tensor.nbytes), int(tensor.size)
        shape = tuple(map(int, tensor.shape.numpy()))
        for name, full, each in self.weights:
            axes, outputs = [(name, axis) for axis in range(len(full))], self._outputs(name)
            if len(full) == 2 and "block_size" in reader.attributes and value in reader.inputs:
                return _Part(size, axes, full, self._in_blocks(outputs, full, each, reader, value))
            if count == prod(full) and count > 1:
                return _Part(size, axes, full, self._alike(each, reader, size == count < each * count))
            if outputs is not None and count == full[outputs] and count > 1:
                return _Part(size, [axes[outputs]], (full[outputs],))
            if len(shape) == len(full) == 4 and all(map(ge, shape, full)):  # blocks of channels are filled
                return _Part(size / count * prod(full), axes, full)
            if len(full) > 1 and count > max(full):
                return _Part(size, axes, full)
        return _Part(size)

    def _alike(self, each: float, reader: ir.Node, codes: bool) -> Form | None:
        """Element for element; what is too small for codes stays as it is."""
        if codes and reader.op_type == "Cast":
            return Form(elements=int(in_8_bits.LEAST_BYTES / each), bytes=each)
        if codes and self.node.op_type in ("MatMul", "Gemm"):
            return Form(side=choose.LEAST_SIDE, bytes=each)
        return None

    def _in_blocks(
        self, outputs: int | None, full: tuple[int, ...], each: float, reader: ir.Node, value: ir.Value
    ) -> Form:
        """Codes, scales or zero points of blocks along the inputs, all of which a small weight does without."""
        bits, block = reader.attributes.get_int("bits", 4), reader.attributes.get_int("block_size", 1)
        codes = value is reader.inputs[1 if reader.op_type == "MatMulNBits" else 0]
        tensor = value.const_value
        assert tensor is not None
        zeros = not codes and tensor.dtype == ir.DataType.UINT8
        along = 1 if self.node.op_type == "Gather" or outputs is None else 1 - outputs
        filled = block * 8 // bits if zeros else block
        multiples = tuple(filled if axis == along else 1 for axis in range(len(full)))
        return Form(multiples, elements=blocks.LEAST_SIZE, bytes=(each if bits == 4 else 1.0) if codes else 0.0)

    def _outputs(self, weight: str) -> int | None:
        """The axis of a weight along which the node's outputs lie."""
        for group in (*self.plan.groups, *self.plan.frozen):
            for port in group.producers:
                if port.node == self.node.name and port.weight == weight:
                    return port.axis
        return None
