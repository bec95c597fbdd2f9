"""Is the graph sound? Unique names, no dangling or circular inputs, operators as ONNX defines them. Linear time."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import onnx

from lepton_cli import runtime
from lepton_cli.errors import ModelError
from lepton_cli.model import stored
from lepton_cli.model.stored import broken

#: A model whose functions unfold to more nodes than this is an attack, not a model.
MOST_NODES = 5_000_000

_FunctionKey = tuple[str, str, str]


class Structure:
    """Checks one model. Raises ModelError at the first thing that is wrong.

    `sorted` tells after `check()` whether all nodes come after what they read.
    """

    def __init__(self, path: Path, proto: onnx.ModelProto) -> None:
        self._path = path
        self._proto = proto
        self._folder = path.parent.resolve()
        self._functions = {_key(function): function for function in proto.functions}
        self.sorted = True

    def check(self) -> None:
        """Functions first: the graphs that call them rely on them."""
        held = {tensor.name for tensor in self._proto.graph.initializer}
        for value in self._proto.graph.input:
            kind = value.type
            if value.name not in held and (kind.WhichOneof("value") is None or _untyped(kind)):
                raise self._broken(f"its input `{value.name}` has no type")
        self._check_functions()
        self._check_graph(self._proto.graph, _Scope(), _opsets(self._proto.opset_import))

    def _broken(self, cause: str, hint: str | None = None) -> ModelError:
        return broken(self._path, cause, hint)

    def _check_functions(self) -> None:
        if len(self._functions) < len(self._proto.functions):
            raise self._broken("two functions have the same name")
        for function in self._functions.values():
            scope = _Scope()
            scope.names |= set(function.input)
            self._check_nodes(function.node, scope, _opsets(function.opset_import), f"function `{function.name}`")
            for name in function.output:
                if name not in scope:
                    raise self._broken(f"output `{name}` of function `{function.name}` is produced by no node")
        self._check_expansion()

    def _check_expansion(self) -> None:
        """Functions must not call themselves, nor unfold beyond all bounds; iterative, so that no depth hurts."""
        sizes: dict[_FunctionKey, int] = {}
        calls = {
            key: [_key(node) for node in _all_nodes(function.node) if _key(node) in self._functions]
            for key, function in self._functions.items()
        }
        for start in self._functions:
            stack, open_keys = [start], {start}
            while stack:
                key = stack[-1]
                missing = next((called for called in calls[key] if called not in sizes), None)
                if missing is not None:
                    if missing in open_keys:
                        raise self._broken(f"function `{missing[1]}` calls itself")
                    open_keys.add(missing)
                    stack.append(missing)
                    continue
                sizes[key] = len(self._functions[key].node) + sum(sizes[called] for called in calls[key])
                open_keys.discard(stack.pop())
        total = sum(sizes.get(_key(node), 1) for node in _all_nodes(self._proto.graph.node))
        if total > MOST_NODES:
            raise self._broken(f"its functions unfold to {total} nodes")

    def _check_graph(self, graph: onnx.GraphProto, outer: _Scope, opsets: Mapping[str, int]) -> None:
        scope = _Scope(outer)
        for value in graph.input:
            if not value.name:
                raise self._broken("an input of the graph has no name")
            if value.name in scope.names:
                raise self._broken(f"two inputs of the graph are named `{value.name}`")
            scope.names.add(value.name)
        initializers: set[str] = set()
        for tensor in graph.initializer:
            if not tensor.name:
                raise self._broken("an initializer has no name")
            if tensor.name in initializers:
                raise self._broken(f"two initializers are named `{tensor.name}`")
            initializers.add(tensor.name)
            stored.check(self._path, tensor, self._folder)
        scope.names |= initializers
        self._check_nodes(graph.node, scope, opsets, "node")
        seen: set[str] = set()
        for value in graph.output:
            # onnxruntime refuses graphs that pass on a value of the graph around them; so do we.
            if value.name not in scope.names:
                raise self._broken(f"output `{value.name}` is produced by no node")
            if value.name in seen:
                raise self._broken(f"output `{value.name}` is listed twice")
            seen.add(value.name)

    def _check_nodes(
        self, nodes: Sequence[onnx.NodeProto], scope: _Scope, opsets: Mapping[str, int], what: str
    ) -> None:
        """Adds the names the nodes produce to `scope`."""
        producers = self._producers(nodes, scope)
        self._check_order(nodes, scope, producers)
        scope.names |= set(producers)
        for node in nodes:
            self._check_node(node, scope, opsets)

    def _producers(self, nodes: Sequence[onnx.NodeProto], scope: _Scope) -> dict[str, int]:
        producers: dict[str, int] = {}
        for index, node in enumerate(nodes):
            for name in node.output:
                if name and (name in producers or name in scope.names):
                    raise self._broken(f"`{name}` is produced twice, again by node `{title(node)}`")
                if name:
                    producers[name] = index
        return producers

    def _check_order(self, nodes: Sequence[onnx.NodeProto], scope: _Scope, producers: dict[str, int]) -> None:
        """Every input is known or produced, and there is an order to run the nodes in (Kahn's algorithm)."""
        users: dict[int, list[int]] = {}
        waiting = [0] * len(nodes)
        for index, node in enumerate(nodes):
            needed = {name for name in node.input if name}.union(*map(_captured, subgraphs(node)))
            for name in needed:
                if name in producers:
                    users.setdefault(producers[name], []).append(index)
                    waiting[index] += 1
                    self.sorted &= producers[name] < index
                elif name not in scope:
                    raise self._broken(f"node `{title(node)}` reads `{name}`, which nothing produces")
        ready = [index for index, count in enumerate(waiting) if count == 0]
        done = 0
        while ready:
            done += 1
            for user in users.get(ready.pop(), ()):
                waiting[user] -= 1
                if waiting[user] == 0:
                    ready.append(user)
        if done < len(nodes):
            node = nodes[next(index for index, count in enumerate(waiting) if count)]
            raise self._broken(f"its nodes form a cycle through `{title(node)}`")

    def _check_node(self, node: onnx.NodeProto, scope: _Scope, opsets: Mapping[str, int]) -> None:
        self._check_operator(node, opsets)
        names: set[str] = set()
        for attribute in node.attribute:
            if not attribute.name or attribute.name in names:
                raise self._broken(f"node `{title(node)}` has two attributes named `{attribute.name}`")
            names.add(attribute.name)
            tensors = [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else ())]
            for sparse in (
                *attribute.sparse_tensors,
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else ()),
            ):
                tensors += [sparse.values, sparse.indices]
            for tensor in tensors:
                stored.check(self._path, tensor, self._folder)
        for graph in subgraphs(node):
            self._check_graph(graph, scope, opsets)

    def _check_operator(self, node: onnx.NodeProto, opsets: Mapping[str, int]) -> None:
        if _key(node) in self._functions or _domain(node.domain) not in ("", "ai.onnx.ml"):
            return
        domain = _domain(node.domain)
        if not domain and not onnx.defs.has(node.op_type):
            if runtime.schema(domain, node.op_type) is not None:  # its optimiser writes some here
                return
            raise ModelError(
                "model.unknown-operator",
                f"{self._path}: node `{title(node)}` uses operator `{node.op_type}`, which neither ONNX nor "
                "onnxruntime knows",
            )
        limits = _limits(node.op_type, opsets.get(domain, 1), domain)
        if limits is None:
            return
        inputs, outputs, required = limits
        if not inputs[0] <= len(node.input) <= inputs[1]:
            raise self._broken(f"node `{title(node)}` ({node.op_type}) has {len(node.input)} inputs")
        if not outputs[0] <= len(node.output) <= outputs[1]:
            raise self._broken(f"node `{title(node)}` ({node.op_type}) has {len(node.output)} outputs")
        missing = required - {attribute.name for attribute in node.attribute}
        if missing:
            raise self._broken(f"node `{title(node)}` ({node.op_type}) lacks the attribute `{min(missing)}`")
        self._check_trusted(node)

    def _check_trusted(self, node: onnx.NodeProto) -> None:
        """Numbers that onnx's shape inference counts with unseen: where they are wrong it ends the process."""
        given = {one.name: one.i for one in node.attribute if not one.ref_attr_name}
        wrong = ""
        if node.op_type == "Split" and given.get("num_outputs", len(node.output)) != len(node.output):
            wrong = f"{len(node.output)} outputs and the attribute `num_outputs` {given['num_outputs']}"
        if node.op_type == "GatherND" and given.get("batch_dims", 0) < 0:
            wrong = f"the attribute `batch_dims` {given['batch_dims']}"
        if wrong:
            raise self._broken(f"node `{title(node)}` ({node.op_type}) has {wrong}")


class _Scope:
    """Names known in a graph; those of the graphs around it by reference, so that nesting costs nothing."""

    def __init__(self, outer: _Scope | None = None) -> None:
        self.names: set[str] = set()
        self._outer = outer

    def __contains__(self, name: str) -> bool:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.names:
                return True
            scope = scope._outer
        return False


@functools.cache
def _limits(operator: str, version: int, domain: str) -> tuple[tuple[int, int], tuple[int, int], frozenset[str]] | None:
    """Least and most inputs and outputs, and required attributes; `None` where ONNX has no such operator.

    Operators newer than the model's version pass: onnxruntime knows some of them (LayerNormalization) earlier.
    """
    try:
        schema = onnx.defs.get_schema(operator, version, domain)
    except onnx.defs.SchemaError:
        return None
    required = frozenset(name for name, attribute in schema.attributes.items() if attribute.required)
    return (schema.min_input, schema.max_input), (schema.min_output, schema.max_output), required


def _untyped(kind: onnx.TypeProto) -> bool:
    return kind.HasField("tensor_type") and kind.tensor_type.elem_type not in onnx.TensorProto.DataType.values()[1:]


def title(node: onnx.NodeProto) -> str:
    """How to call a node in a message: its name, else its first output, else its operator."""
    return str(node.name or next(iter(node.output), "") or node.op_type)


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Graphs in the attributes of a node."""
    return [
        graph
        for attribute in node.attribute
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ()))
    ]


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterable[onnx.NodeProto]:
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from _all_nodes(graph.node)


def _captured(graph: onnx.GraphProto) -> set[str]:
    """Names a subgraph takes from outside. Nesting is at most as deep as protobuf allows (about 30)."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    needed = {value.name for value in graph.output}
    for node in graph.node:
        needed.update(node.input, *map(_captured, subgraphs(node)))
        own.update(node.output)
    return needed - own - {""}


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _key(item: onnx.NodeProto | onnx.FunctionProto) -> _FunctionKey:
    return (_domain(item.domain), item.op_type if isinstance(item, onnx.NodeProto) else item.name, item.overload)


def _opsets(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    return {_domain(entry.domain): entry.version for entry in imports}
