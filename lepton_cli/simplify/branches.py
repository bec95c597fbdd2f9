"""Branches of If and bodies of loops: an inner graph as a model of its own, and the branch that is always taken.

What an inner graph reads from outside are inputs of that model, with the types and shapes that they have outside, or
constants of it. So whatever is done to models can be done to it, and nothing is computed outside that was inside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from lepton_cli.graph import clean, fold, shapes
from lepton_cli.graph.edit import Editor, array_of, captured, is_constant, read_nothing, rename_apart
from lepton_cli.model import io


@contextlib.contextmanager
def alone(model: ir.Model, node: ir.Node, graph: ir.Graph) -> Iterator[ir.Model]:
    """A graph of a node of the main graph as a model to edit in place; at the end it stands in `model` as it became.

    Of what a loop gives its body the types are those of what the loop is given, and the shapes open: what a file states
    of them need not be true in every round.
    """
    inside, given = set(graph.all_nodes()), list(graph.inputs)
    stated = [(value.type, value.shape) for value in given]
    for value, kind in zip(given, _kinds(node, len(given)), strict=True):
        value.type, value.shape = kind or value.type, None
    stand_ins: dict[ir.Value, ir.Value] = {}
    for value in captured(node):
        readers = [use for use in value.uses() if use.node in inside]
        if not readers:
            continue
        shape = None if value.shape is None else ir.Shape(value.shape)
        held = value.const_value if is_constant(value) else None
        stand_in = ir.Value(name=value.name, type=value.type, shape=shape, const_value=held)
        stand_ins[stand_in] = value
        for reader, index in readers:
            reader.replace_input_with(index, stand_in)
        if held is None:
            graph.inputs.append(stand_in)
        else:
            graph.register_initializer(stand_in)
    graph.opset_imports.update(model.graph.opset_imports)
    try:
        yield ir.Model(graph, ir_version=model.ir_version)
    finally:
        graph.opset_imports.clear()
        graph.inputs[:] = given
        for value, (kind, shape) in zip(given, stated, strict=True):
            value.type, value.shape = kind, shape
        for stand_in, value in stand_ins.items():
            stand_in.replace_all_uses_with(value)
            if stand_in.is_initializer():
                del graph.initializers[stand_in.name or ""]
        rename_apart(model, graph)


def _kinds(node: ir.Node, count: int) -> list[ir.TypeProtocol | None]:
    """Types of the `count` values that a loop gives its body, `None` where that is not known."""
    handed = [None if value is None else value.type for value in node.inputs]
    if node.domain or node.op_type not in ("Loop", "Scan") or len(handed) < count:
        return [None] * count
    return [None, None, *handed[2:]] if node.op_type == "Loop" else handed[len(handed) - count :]


def take_constant(model: ir.Model, allowed: set[str]) -> list[tuple[ir.Node, str]]:
    """Put the branch that is always taken in the place of an If of the main graph; the nodes that are gone."""
    gone: list[tuple[ir.Node, str]] = []
    for node in [node for node in model.graph if node.op_type == "If" and not node.domain and node.name in allowed]:
        condition = array_of(node, 0)
        if condition is None or condition.size != 1:
            continue
        branches = [node.attributes[name].as_graph() for name in ("else_branch", "then_branch")]
        taken = branches.pop(bool(condition.item()))
        rename_apart(model, taken)
        results, nodes, held = list(taken.outputs), list(taken), list(taken.initializers.values())
        taken.outputs.clear()
        taken.remove(nodes)
        taken.initializers.clear()
        for value in held:
            model.graph.register_initializer(value)
        passed = [ir.node("Identity", [value], name=f"{node.name}/result") for value in results]
        model.graph.insert_before(node, nodes)
        Editor(model).insert_before(node, passed)
        ir.convenience.replace_nodes_and_values(
            model.graph, passed[-1], [node], [], node.outputs, [one.outputs[0] for one in passed]
        )
        allowed |= {one.name or "" for one in passed}
        gone.append((node, "always takes the same branch"))
        never = list(branches[0].all_nodes())
        read_nothing(never)
        gone += [(one, "in a branch that is never taken") for one in never]
    return gone


def take_needed(model: ir.Model, allowed: set[str]) -> bool:
    """Let an If of the main graph always squeeze where the rest cannot run otherwise, in place; did any change?

    Exporters write "without this axis, if it has one element": one rank comes out or another. Where operators behind
    it take one of them only, the model fails for all inputs that get there with the other. So does the Squeeze, which
    is taken out of `allowed`: as part of a Reshape it would take any size.
    """
    changed = False
    for node in [node for node in model.graph if node.op_type == "If" and not node.domain and node.name in allowed]:
        squeezes = None if is_constant(node.inputs[0]) else _squeezes(node)
        if squeezes is not None and _fails(model, node, not squeezes) and not _fails(model, node, squeezes):
            node.replace_input_with(0, Editor(model).constant(f"{node.name}/condition", np.array(squeezes)))
            (taken,) = node.attributes["then_branch" if squeezes else "else_branch"].as_graph()
            allowed.discard(taken.name or "")
            changed = True
    return changed


def _squeezes(node: ir.Node) -> bool | None:
    """For which condition an If is the Squeeze of a value, where it is that value itself for the other."""
    inside = {name: list(node.attributes[name].as_graph()) for name in ("then_branch", "else_branch")}
    if any(len(nodes) != 1 or nodes[0].domain for nodes in inside.values()):
        return None
    (yes,), (no,) = inside.values()
    if {yes.op_type, no.op_type} != {"Squeeze", "Identity"} or yes.inputs[0] is not no.inputs[0]:
        return None
    return yes.op_type == "Squeeze"


def _fails(model: ir.Model, node: ir.Node, condition: bool) -> bool:
    """Can the main graph not run where the condition of an If is this?"""
    trial = io.clone(model)
    every = {one.name or "" for one in trial.graph}
    decided = next(one for one in trial.graph if one.name == node.name)
    decided.replace_input_with(0, Editor(trial).constant("condition", np.array(condition)))
    while take_constant(trial, every):
        every = {one.name or "" for one in trial.graph}
        clean.remove_no_ops(trial, every)
        fold.fold_constants(trial, every)
    return shapes.contradicts_itself(trial)
