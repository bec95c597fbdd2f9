"""The forms in which onnxruntime's int8 kernels are reached: what `quantize.static` rewrites before it rounds."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lepton_cli.coupling import shortcuts
from lepton_cli.graph.edit import Editor, array_of, weight_of
from lepton_cli.probe.rewrites import Rewrite
from lepton_cli.quantize import attention, choose, cpu, gelu, targets, upsampling
from lepton_cli.quantize.prepare import gemm_to_matmul, matmul_to_gemm, unshare
from lepton_cli.simplify.rules import join


def rewrites(excluded: set[str], target: targets.Target) -> list[Rewrite]:
    """What makes int8 cheaper or more exact, on top of what every quantization prepares."""

    def candidates(model: ir.Model) -> choose.Choice:
        return choose.candidates(model, names(model) - excluded)

    own = cpu.suits(target)
    # Before its projections become Gemms of two axes.
    found = [Rewrite("attention as one operator", lambda model: attention.join(model, excluded))] if own else []
    found += [
        Rewrite("operators joined", lambda model: join(model, names(model) - excluded)),
        Rewrite("MatMul and Add as Gemm", matmul_to_gemm),
        Rewrite("a Gemm's bias as a vector", _vectors),
    ]
    if own:
        found += [
            Rewrite("shortcuts as convolutions", lambda model: _convolutions(model, names(model) - excluded)),
            Rewrite("ConvTranspose as Conv", lambda model: upsampling.as_convolutions(model, excluded)),
            Rewrite("GELU as one operator", lambda model: gelu.join(model, excluded)),
            Rewrite("GELU by its half last", cpu.order_gelu),
            Rewrite("Add before LayerNormalization as Sum", cpu.spare_slow_sums),
            Rewrite("Gemm read in float and int8 as MatMul and Add", lambda model: _split(model, candidates(model))),
            Rewrite("Add behind MatMul as Sum", lambda model: cpu.spare_products(model, candidates(model).anchors)),
        ]
    found.append(Rewrite("weights of its own for each node", lambda model: unshare(model, candidates(model).anchors)))
    return found


def names(model: ir.Model) -> set[str]:
    """Names of all nodes, those of branches too."""
    return {node.name or "" for node in model.graph.all_nodes()}


def _vectors(model: ir.Model) -> None:
    """onnxruntime's int8 kernel wants a number for each column; files hold rows `[1, N]` and single numbers too."""
    editor = Editor(model)
    for node in model.graph:
        weight, bias = weight_of(node), array_of(node, 2)
        if node.op_type != "Gemm" or node.domain or weight is None or weight.shape is None or bias is None:
            continue
        columns = weight.shape[0 if node.attributes.get_int("transB", 0) else 1]
        if not isinstance(columns, int) or bias.shape == (columns,):
            continue
        if bias.size in (1, columns) and bias.shape[:-1] in ((), (1,)):
            editor.give(node, 2, np.broadcast_to(bias.reshape(-1), (columns,)), f"{node.name}_bias")


def _split(model: ir.Model, choice: choose.Choice) -> None:
    """onnxruntime's int8 kernel returns int8 or float, not both; what an addition behind it gives is read as both."""

    def mixed(value: ir.Value) -> bool:
        chosen = {use.node.name in choice.nodes for use in value.uses()}
        return True in chosen and (False in chosen or value.is_graph_output())

    gemms = [node for node in model.graph if node.op_type == "Gemm" and node.name in choice.anchors]
    gemm_to_matmul(model, {node.name or "" for node in gemms if mixed(node.outputs[0])})


def _convolutions(model: ir.Model, allowed: set[str]) -> None:
    shortcuts.as_convolutions(model, shortcuts.facts(model), allowed)
