"""What in a graph follows from the data that is fed, and what has a size that does (boxes left by suppression)."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from lepton_cli.graph.edit import captured

#: Inputs that say where or how much, not what.
SHAPE_INPUTS: dict[str, tuple[int, ...]] = {
    "Reshape": (1,),
    "Slice": (1, 2, 3, 4),
    "Pad": (1, 3),
    "Split": (1,),
    "Expand": (1,),
    "Tile": (1,),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "TopK": (1,),
    "ConstantOfShape": (0,),
    "CumSum": (1,),
    **{
        f"Reduce{kind}": (1,)
        for kind in ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
    },
}
#: Operators whose data decides how much comes out.
SEARCHING = frozenset({"NonZero", "Unique", "NonMaxSuppression", "Compress", "StringSplit"})
#: Operators whose outputs differ from run to run.
RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}
)


@dataclasses.dataclass(frozen=True)
class FromData:
    """Values of the main graph that follow from the data, and those whose size does."""

    values: frozenset[ir.Value]
    sized: frozenset[ir.Value]


def steering(node: ir.Node) -> list[ir.Value]:
    """The inputs of a node that say where or how much."""
    found = [node.inputs[i] for i in SHAPE_INPUTS.get(node.op_type, ()) if i < len(node.inputs)]
    return [value for value in found if value is not None]


def from_data(model: ir.Model) -> FromData:
    """What follows from more than the sizes of the inputs; a size leaves a value by `Shape` and `Size`."""
    fed, sized = {value for value in model.graph.inputs if not value.is_initializer()}, set[ir.Value]()
    for node in model.graph:
        read = {value for value in (*node.inputs, *captured(node)) if value is not None}
        searches = node.op_type in SEARCHING or bool(captured(node))
        measures = node.op_type in ("Shape", "Size")
        if not measures and (read & sized or not fed.isdisjoint(steering(node)) or (searches and read & fed)):
            sized.update(node.outputs)
        if read & sized if measures else (read & fed or node.op_type in RANDOM):
            fed.update(node.outputs)
    return FromData(frozenset(fed), frozenset(sized))
