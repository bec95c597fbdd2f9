"""A graph that runs in torch, with gradients.

The graph stays the source of truth: only constants that train are written back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from lepton_cli.errors import StepError
from lepton_cli.graph import shapes
from lepton_cli.graph.edit import captured
from lepton_cli.graph.one_node import outer_values
from lepton_cli.graph.sized import RANDOM
from lepton_cli.model import io
from lepton_cli.train import control, weights
from lepton_cli.train.gradients import LACKING, Gradients, Origin, is_lacking, operator
from lepton_cli.train.operators.call import TYPES, NotInTorch, OperatorCall, TorchOperator, call_of, tensor_of
from lepton_cli.train.operators.rounding import RANGES
from lepton_cli.train.operators.table import OPERATORS, READ_BY_PYTHON
from lepton_cli.train.outside import Outside, are_tensors, is_float, plain

#: Tensors of a run, by the value of the graph that they are of; strings, sequences and maps as `Outside` has them.
Known = dict[ir.Value, Any]
#: Attributes that name a type, and the types that become float32.
_TYPES, _HALF = ("to", "dtype", "stash_type"), (int(ir.DataType.FLOAT16), int(ir.DataType.BFLOAT16))


@dataclasses.dataclass(frozen=True)
class _Use:
    """A node, what computes it (`None`: graphs of its own, or onnxruntime), and which values nobody reads after it.

    `free`: no gradient has to come back through it.
    """

    node: ir.Node
    function: TorchOperator | None
    call: OperatorCall
    done: tuple[ir.Value, ...]
    free: bool


class Network:
    """Runs the main graph of a model. `parameters` are the constants that train, by name.

    `nodes`: names of the nodes whose weights train (`None`: all; empty: none, for a teacher).
    """

    def __init__(self, model: ir.Model, nodes: Collection[str] | None = None, device: str = "cpu") -> None:
        self.model = io.clone(model)
        self.device = torch.device(device)
        self._values = {value.name: value for value in _made(self.model.graph)}
        self._trained = {value.name or "": value for value in weights.weights(self.model, nodes)}
        self.parameters: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}
        self._constants: Known = {}
        #: Values that are made of parameters rather than by their nodes.
        self._computed: dict[ir.Value, Callable[[], Tensor]] = {}
        #: Parameters that are exponents: a step is a share of what they scale.
        self.exponents: set[str] = set()
        self._plans: dict[tuple[str, ...], list[_Use]] = {}
        self._bodies: dict[ir.Graph, list[_Use]] = {}
        #: Nodes that onnxruntime computes.
        self._outside: dict[ir.Node, Outside] = {}
        for name, value in self._trained.items():
            array = _array(value)
            self.parameters[name] = torch.from_numpy(array).to(self.device).requires_grad_()
            if (empty := weights.zeros(array)) is not None:
                self._kept[name] = torch.from_numpy(~empty).to(self.device)
            self._constants[value] = self.parameters[name]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the model's outputs."""
        return tuple(value.name or "" for value in self.model.graph.outputs)

    @cached_property
    def gradients(self) -> Gradients:
        """From which values a gradient comes back."""
        trained = {*self._trained.values(), *self._computed}
        return Gradients(self.model, trained, self._types if trained else {})

    @cached_property
    def _types(self) -> dict[str, ir.DataType | None]:
        return {name: one.dtype for name, one in shapes.infer(self.model).items()}

    @property
    def compared(self) -> tuple[str, ...]:
        """Values by which it is compared with onnxruntime: outputs where they can be, and what those that do not learn
        are made of."""
        names: list[str] = []
        for value in self.model.graph.outputs:
            names += [value.name or ""] if self.gradients.compares(value) else []
            names += () if self.gradients.learns(value) else self.gradients.made_of(value)
        return tuple(dict.fromkeys(names))

    def value(self, name: str) -> ir.Value:
        """The value of the main graph of this name."""
        return self._values[name]

    def __contains__(self, name: str) -> bool:
        """Whether the main graph has a value of this name."""
        return name in self._values

    def run(self, feeds: Mapping[str, Tensor], outputs: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The outputs (default: all), or inner values, by name. Only what leads to them is computed.

        What torch lacks is computed by onnxruntime where no gradient has to come back. Raises StepError that names the
        node where one has to, and where neither can compute what the graph asks for.
        """
        asked = tuple(self.outputs if outputs is None else outputs)
        if asked not in self._plans:
            for value in (self._values[name] for name in asked):
                node = self.gradients.end(value)
                if node is not None and self.gradients.origin(value) == Origin.BARRED:
                    raise refused(node, LACKING)
            self._plans[asked] = self._plan(self.model.graph, [self._values[name] for name in asked])
        known: Known = {self._values[name]: _wide(one) for name, one in feeds.items() if name in self._values}
        known |= {value: compute() for value, compute in self._computed.items()}
        self._compute(self._plans[asked], known)
        return {name: self._tensor(self._values[name], known) for name in asked}

    def trained(self) -> list[ir.Value]:
        """The constants that train."""
        return list(self._trained.values())

    def forget(self) -> None:
        """Drop gradients."""
        for one in self.parameters.values():
            one.grad = None

    def channels_last(self) -> list[Tensor]:
        """The parameters, those of convolutions laid out in memory as torch's kernels are fastest with."""
        for one in self.parameters.values():
            if one.dim() == 4:
                one.data = one.data.contiguous(memory_format=torch.channels_last)
        return list(self.parameters.values())

    def mask(self) -> None:
        """Set back to zero what was pruned: after every step."""
        with torch.no_grad():
            for name, kept in self._kept.items():
                self.parameters[name].mul_(kept)

    def state(self) -> dict[str, NDArray[np.float32]]:
        """A copy of the parameters as arrays."""
        return {name: one.detach().cpu().numpy().copy(order="C") for name, one in self.parameters.items()}

    def load(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Take parameters from `state`, as it was made."""
        with torch.no_grad():
            for name, one in self.parameters.items():
                one.copy_(torch.from_numpy(state[name]))

    def written(self) -> ir.Model:
        """A copy of the model with the parameters as they are now."""
        state = self.state()
        for name, value in self._trained.items():
            weights.write(value, state[name])
        return io.clone(self.model)

    def _tensor(self, value: ir.Value, known: Known) -> Any:
        if value in known:
            found = known[value]
        else:
            found = self._constants.get(value)
            if found is None:
                found = self._constant(value)
        if found is None:
            raise StepError("train.missing", f"`{value.name}` has no value", hint="feed all of the model's inputs")
        return found

    def _constant(self, value: ir.Value) -> Any:
        tensor = weights.held(value)
        if tensor is None:
            return None
        if tensor.dtype not in TYPES:
            return plain(tensor)
        made = _wide(tensor_of(tensor))
        here = made.is_floating_point() and not all(use.idx in _read(use.node) for use in value.uses())
        self._constants[value] = made.to(self.device) if here else made
        return self._constants[value]

    def _plan(self, graph: ir.Graph, asked: Iterable[ir.Value]) -> list[_Use]:
        wanted, uses = set(asked), []
        for node in reversed(list(graph)):
            if not (wanted - self._computed.keys()) & set(node.outputs) or node.op_type == "Constant":
                continue
            reads = {value for value in node.inputs if value is not None} | set(captured(node))
            done = [value for value in reads - wanted if value.graph is graph and weights.held(value) is None]
            wanted |= reads
            free = all(self.gradients.origin(value) != Origin.LEARNT for value in node.outputs)
            uses.append(_Use(node, *self._function(node, free=free), tuple(done), free))
        return uses[::-1]

    def _function(self, node: ir.Node, *, free: bool) -> tuple[TorchOperator | None, OperatorCall]:
        if node.op_type in RANDOM:
            raise refused(node, "its results are others in every run")
        opset = self.model.graph.opset_imports.get(node.domain, 1)
        why = LACKING
        try:
            if not is_lacking(node):
                return OPERATORS.get(operator(node)), _widely(call_of(node, opset))
        except NotInTorch as error:
            why = str(error)
        if not free:
            raise refused(node, why)
        self._outside.setdefault(node, Outside(node, self.model, self.device))
        return None, OperatorCall({}, opset)

    def _compute(self, uses: Sequence[_Use], known: Known) -> None:
        for use in uses:
            outside = self._outside.get(use.node)
            made = self._in_torch(use, known) if outside is None else self._in_onnxruntime(use.node, outside, known)
            known.update(zip(use.node.outputs, made, strict=False))
            for value in use.done:
                known.pop(value, None)

    def _in_torch(self, use: _Use, known: Known) -> Sequence[Any]:
        given = [None if value is None else self._tensor(value, known) for value in use.node.inputs]
        while given and given[-1] is None:
            given.pop()
        if self.device.type != "cpu":
            given = _together(use.node, given)
        try:
            if use.function is None:
                return control.RUN[use.node.op_type](use.node, use.call, given, partial(self._body, known))
            if not are_tensors(given):
                raise NotInTorch("torch has no strings and no maps")
            made = use.function(use.call, *given)
        except (NotInTorch, RuntimeError, ValueError, TypeError, IndexError) as error:  # what torch raises
            if out_of_memory(error):
                raise
            why = (str(error).strip().splitlines() or ["it fails"])[0]
            if not use.free:
                raise refused(use.node, why) from error
            outside = Outside(use.node, self.model, self.device)
            made = self._in_onnxruntime(use.node, outside, known, why)
            self._outside[use.node] = outside
        return made if isinstance(made, (tuple, list)) else (made,)

    def _in_onnxruntime(self, node: ir.Node, outside: Outside, known: Known, why: str = "") -> Sequence[Any]:
        """`why`: the reason where neither can."""
        reads = dict[int | str, ir.Value](
            (index, value) for index, value in enumerate(node.inputs) if value is not None
        ) | {value.name or "": value for value in outer_values(node)}
        given = {key: self._typed(value, self._tensor(value, known)) for key, value in reads.items()}
        fixed = {key for key, value in reads.items() if value not in known and not _trains(given[key])}
        parts = ({key: one for key, one in given.items() if (key in fixed) is held} for held in (True, False))
        try:
            return outside.run(*parts)
        except NotInTorch as error:
            raise refused(node, why or str(error)) from error

    def _typed(self, value: ir.Value, given: Any) -> Any:
        """Quantized numbers, which are floats here, as what they are."""
        kind = value.dtype or self._types.get(value.name or "")
        codes = kind in RANGES and kind in TYPES and is_float(given)
        return given.detach().to(TYPES[kind]) if codes and kind is not None else given

    def _body(self, known: Known, graph: ir.Graph, inputs: Sequence[Tensor | None]) -> list[Tensor]:
        """The outputs of a graph inside a node, for its inputs."""
        if graph not in self._bodies:
            self._bodies[graph] = self._plan(graph, graph.outputs)
        inner = known | dict(zip(graph.inputs, inputs, strict=True))
        self._compute(self._bodies[graph], inner)
        return [self._tensor(value, inner) for value in graph.outputs]


def _together(node: ir.Node, given: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Whole numbers, and what is made of them, begin where Python reads them: they join the floats that they meet."""
    devices = {one.device for one in given if isinstance(one, Tensor)}
    if len(devices) < 2:
        return list(given)
    (device,) = (one for one in devices if one.type != "cpu")
    read = _read(node)
    return [
        one.to(device) if isinstance(one, Tensor) and place not in read and one.device != device else one
        for place, one in enumerate(given)
    ]


def _read(node: ir.Node) -> tuple[int, ...]:
    return READ_BY_PYTHON.get(node.op_type, ())


def out_of_memory(error: Exception) -> bool:
    """Whether torch found no room. On a processor only the text says so."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


def refused(node: ir.Node, why: str) -> StepError:
    """Training ends at the node."""
    return StepError(
        "train.unsupported",
        f"node `{node.name}` ({node.op_type}) cannot be trained through: {why}",
        hint="train with a loss on a value before it, or only nodes behind it (`include`), or leave the step out",
    )


def no_gradient(node: ir.Node | None, cause: str | None = None) -> StepError:
    """Nothing is learnt behind the node."""
    what = "decisions are" if node is None else f"node `{node.name}` ({node.op_type}) is"
    return StepError(
        "train.no-gradient",
        f"no gradient of the outputs reaches a weight: {what} in between",
        cause=cause,
        hint="train with a loss on a value before, or a model that ends there",
    )


def _wide(tensor: Any) -> Any:
    """Half precision is for storing and running a model: it trains in float32, whatever its file holds."""
    half = isinstance(tensor, Tensor) and tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.float() if half else tensor


def _trains(given: Any) -> bool:
    return isinstance(given, Tensor) and given.requires_grad


def _widely(call: OperatorCall) -> OperatorCall:
    attributes = {name: _wide(one) for name, one in call.attributes.items()}
    for name in _TYPES:
        if attributes.get(name) in _HALF:
            attributes[name] = int(ir.DataType.FLOAT)
    return dataclasses.replace(call, attributes=attributes)


def _made(graph: ir.Graph) -> Iterable[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _array(value: ir.Value) -> NDArray[np.float32]:
    tensor = weights.held(value)
    assert tensor is not None
    return np.array(tensor.numpy(), np.float32, order="C", copy=True)
