"""What a model is made of: the facts that `inspect` shows and that a recipe is chosen by."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

import onnx_ir as ir

from lepton_cli.graph import cost, shapes
from lepton_cli.graph.edit import weight_of
from lepton_cli.graph.feeds import default_feeds
from lepton_cli.graph.held import nothing_to_compress, scales_stored
from lepton_cli.model import io
from lepton_cli.tensors import TensorInfo

#: Operators that only quantized models have, besides those named `QLinear…`.
QUANTIZED = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "ConvInteger",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
        "QAttention",
        "QGemm",
        "MatMulNBits",
        "QEmbedLayerNormalization",
    }
)
_ATTENTION = {"Attention", "MultiHeadAttention", "QAttention", "GroupQueryAttention"}
_MASK_CONSTANT = 1e9


@dataclasses.dataclass(frozen=True)
class Facts:
    """A model at a glance."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    opset: int
    ir_version: int
    domains: tuple[str, ...]
    operators: dict[str, int]
    macs: dict[str, int]
    conv_macs: int
    batch_norms: int
    quantized: bool
    transformer: bool
    hazards: tuple[str, ...]

    @property
    def convolutions(self) -> int:
        """Conv and ConvTranspose nodes."""
        return self.operators.get("Conv", 0) + self.operators.get("ConvTranspose", 0)

    @property
    def convolutional(self) -> bool:
        """Most multiplications, as far as they are known, are those of convolutions."""
        return 2 * self.conv_macs > sum(self.macs.values()) > 0

    @property
    def products(self) -> int:
        """MatMul and Gemm nodes."""
        return self.operators.get("MatMul", 0) + self.operators.get("Gemm", 0)


def facts(model: ir.Model, feeds: Mapping[str, tuple[int, ...]] | None = None) -> Facts:
    """Look at a model. `feeds`: input shapes of one sample where data is known."""
    operators = Counter(node.op_type for graph in model.graphs() for node in graph)
    normalised = operators["LayerNormalization"] + operators["SkipLayerNormalization"] + operators["ReduceMean"] // 2
    transformer = bool(operators["Softmax"] and operators["MatMul"] >= 4 and normalised) or any(
        operators[a] for a in _ATTENTION
    )
    macs = cost.count(model, default_feeds(model, 1, 64, feeds), run=False)
    convolutions = (node for node in model.graph.all_nodes() if node.op_type in ("Conv", "ConvTranspose"))
    return Facts(
        inputs=io.inputs(model),
        outputs=io.outputs(model),
        opset=shapes.opset(model),
        ir_version=model.ir_version,
        domains=tuple(sorted({node.domain for node in model.graph if node.domain})),
        operators=dict(operators.most_common()),
        macs=macs,
        conv_macs=sum(macs.get(node.name or "", 0) for node in convolutions),
        batch_norms=operators["BatchNormalization"],
        quantized=bool(quantized_nodes(model)),
        transformer=transformer,
        hazards=tuple(_hazards(model, operators)),
    )


def quantized_nodes(model: ir.Model) -> list[ir.Node]:
    """Nodes, in subgraphs too, that make this a quantized model.

    Tables stored in blocks (GatherBlockQuantized) do not: a lookup of its own reads them, and all around stays float.
    """
    return [
        node
        for node in model.graph.all_nodes()
        if node.op_type in QUANTIZED or node.op_type.startswith("QLinear") or scales_stored(node)
    ]


#: What may stand between a stored weight and the node that computes with it.
CARRIERS = ("Cast", "Identity", "Reshape", "Transpose")


def reads_quantized(node: ir.Node) -> bool:
    """Does the node compute in float with a weight that is stored in fewer bits?"""
    sources = [value.producer() for value in node.inputs if value is not None]
    while sources:
        source = sources.pop()
        if source is None or source.domain:
            continue
        value = source.inputs[0] if source.inputs else None
        if scales_stored(source) or (source.op_type == "DequantizeLinear" and value is not None and value.const_value):
            return True
        if source.op_type in CARRIERS and value is not None:
            sources.append(value.producer())
    return False


def why_computed(node: ir.Node) -> str:
    """Why the node has no constant weight."""
    if reads_quantized(node):
        return "its weight is quantized already"
    return "its second input is computed, not a constant weight"


def _hazards(model: ir.Model, operators: Counter[str]) -> list[str]:
    """What is known to go wrong with models like this one."""
    found = [] if (why := nothing_to_compress(model)) is None else [why]
    mask = next((value.name for value in model.graph.initializers.values() if _is_mask(value)), None)
    if mask is not None:
        found.append(f"`{mask}` is a mask constant near -infinity: min-max calibration of other tools is wrecked by it")
    defaults = [value.name for value in model.graph.inputs if value.is_initializer()]
    if defaults:
        found.append(f"{len(defaults)} weights are also graph inputs: `simplify` makes them constants")
    if operators["Loop"] or operators["Scan"] or operators["If"]:
        found.append("control flow (Loop, Scan, If): only `quantize.weights` and `convert.fp16` reach the nodes inside")
    fixed = [value for value in model.graph.inputs if not value.is_initializer() and _fixed_batch(value)]
    if fixed:
        freed = "; `batch.free` frees it where it can" if fixed[0].shape and fixed[0].shape[0] == 1 else ""
        found.append(f"the batch size of `{fixed[0].name}` is fixed: other batch sizes cannot be measured{freed}")
    unfolded = sum(
        1 for node in model.graph
        if node.op_type == "BatchNormalization" and _linear_before(node)
    )  # fmt: skip
    if unfolded:
        found.append(f"{unfolded} BatchNormalization nodes can be folded: `simplify` first, or int8 will be slow")
    fused = operators["FusedConv"] + operators["FusedGemm"] + operators["FusedMatMul"]
    if fused:
        found.append(
            f"{fused} layers are onnxruntime's own fused operators: `simplify` first, or most steps pass them by"
        )
    variable = sum(1 for node in model.graph if node.op_type in ("Conv", "Gemm") and weight_of(node) is None)
    if variable:
        found.append(f"{variable} Conv or Gemm nodes have computed weights: they are left as they are")
    return found


def _linear_before(node: ir.Node) -> bool:
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    return producer is not None and producer.op_type in ("Conv", "ConvTranspose", "Gemm")


def _fixed_batch(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) > 1 and isinstance(value.shape[0], int)


def _is_mask(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or tensor.size != 1 or tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return False
    return abs(float(tensor.numpy().reshape(-1)[0])) > _MASK_CONSTANT
