"""Control flow: nodes that run graphs of their own. Which branch, and how often, follows from data: no gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from lepton_cli.train.operators.call import NotInTorch, OperatorCall, ints

#: Runs an inner graph: its outputs for its inputs.
Body = Callable[[ir.Graph, Sequence["Tensor | None"]], list[Tensor]]


def choose(node: ir.Node, call: OperatorCall, given: Sequence[Tensor | None], body: Body) -> list[Tensor]:
    """If."""
    condition = given[0]
    assert condition is not None
    return body(call["then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"], ())


def repeat(node: ir.Node, call: OperatorCall, given: Sequence[Tensor | None], body: Body) -> list[Tensor]:
    """Loop: carried values of the last round, then what every round gives, stacked along a new first axis."""
    trips, condition, *carried = (*given, None, None)[: max(2, len(given))]
    most = None if trips is None else int(trips.reshape(-1)[0])
    graph: ir.Graph = call["body"]
    gathered: list[list[Tensor]] = [[] for _ in graph.outputs[1 + len(carried) :]]
    on, count = condition is None or bool(condition.reshape(-1)[0]), 0
    while on and (most is None or count < most):
        results = body(graph, [torch.tensor(count), torch.tensor(on), *carried])
        on, count = bool(results[0].reshape(-1)[0]), count + 1
        carried = list(results[1 : 1 + len(carried)])
        for kept, one in zip(gathered, results[1 + len(carried) :], strict=True):
            kept.append(one)
    if not count and gathered:
        raise NotInTorch("its body never runs, and gives the size of its outputs")
    return [*(one for one in carried if one is not None), *(torch.stack(kept) for kept in gathered)]


def scan(node: ir.Node, call: OperatorCall, given: Sequence[Tensor | None], body: Body) -> list[Tensor]:
    """Scan: states, and slices of the inputs one after the other; results are stacked along an axis each."""
    if call.opset < 9:
        raise NotInTorch("Scan of opset 8")
    count, graph = int(call["num_scan_inputs"]), call["body"]
    states = list(given[: len(given) - count])
    inputs = [one for one in given[len(given) - count :] if one is not None]
    axes = ints(call.get("scan_input_axes", [0] * count))
    back = ints(call.get("scan_input_directions", [0] * count))
    rows = [
        list(one.unbind(axis))[:: -1 if turned else 1] for one, axis, turned in zip(inputs, axes, back, strict=True)
    ]
    gathered: list[list[Tensor]] = [[] for _ in graph.outputs[len(states) :]]
    for step in zip(*rows, strict=True):
        results = body(graph, [*states, *step])
        states = list(results[: len(states)])
        for kept, one in zip(gathered, results[len(states) :], strict=True):
            kept.append(one)
    ends = ints(call.get("scan_output_axes", [0] * len(gathered)))
    turns = ints(call.get("scan_output_directions", [0] * len(gathered)))
    stacked = [
        torch.stack(kept[:: -1 if turned else 1], axis)
        for kept, axis, turned in zip(gathered, ends, turns, strict=True)
    ]
    return [*(one for one in states if one is not None), *stacked]


#: By operator.
RUN: dict[str, Callable[[ir.Node, OperatorCall, Sequence[Tensor | None], Body], list[Tensor]]] = {
    "If": choose,
    "Loop": repeat,
    "Scan": scan,
}
