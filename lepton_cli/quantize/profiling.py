"""What onnxruntime really runs: kernels of the optimised graph, counted and timed, and the layers that they come from.

Kernels are matched to layers by name: int8 ones keep the node's, float ones carry the node's or its output tensor's.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from lepton_cli.errors import check_room
from lepton_cli.graph import cost
from lepton_cli.graph.shapes import concrete
from lepton_cli.model import io
from lepton_cli.quantize.choose import Choice
from lepton_cli.quantize.details import LayerTime, Placement
from lepton_cli.runtime import Session, Values
from lepton_cli.step import Context

#: Operators of the optimised graph that compute with 8 bits.
INT8 = (
    "QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantize", "QAttention", "QEmbed", "MatMulNBits",
    "GatherBlockQuantized",
)  # fmt: skip
MATRIX = frozenset({"Conv", "FusedConv", "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "ConvTranspose", "Attention"})
#: What layers must lose at least to be tried, as a share of the float model's time: less is noise of the profiler.
LEAST_LOSS = 0.005


def placement(model: ir.Model, context: Context) -> Placement:
    """Kernels of onnxruntime's optimised graph."""
    with tempfile.TemporaryDirectory(dir=context.workdir) as folder:
        path = Path(folder) / "optimised.onnx"
        Session(io.payload(model, context.workdir), threads=context.threads, optimised_path=path)
        graph = onnx.load(path, load_external_data=False).graph
    counts = Counter(node.op_type for node in graph.node)
    return Placement(
        int8=sum(count for op, count in counts.items() if op.startswith(INT8)),
        in_float=sum(count for op, count in counts.items() if op in MATRIX),
        qdq_left=min(counts["QuantizeLinear"], counts["DequantizeLinear"]),
        operators=dict(counts.most_common(12)),
    )


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What ran under one name of the optimised graph."""

    operator: str
    microseconds: float

    @property
    def int8(self) -> bool:
        """Whether it computes with 8 bits."""
        return self.operator.startswith(INT8)


def profile(model: ir.Model, feeds: Values, context: Context, runs: int = 12) -> dict[str, Kernel]:
    """Median time of every kernel, by the name that the optimised graph gives it."""
    with tempfile.TemporaryDirectory(dir=context.workdir) as folder:
        source = io.payload(model, context.workdir)
        session = Session(source, threads=context.threads, profile_prefix=Path(folder) / "profile")
        for _ in range(runs):
            session.run(feeds)
        written = session.raw.end_profiling()
        try:
            events = json.loads(Path(written).read_text())
        except ValueError:
            check_room(written)
            raise
    times: dict[str, list[float]] = defaultdict(list)
    operators: dict[str, str] = {}
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            name = name.removesuffix("_kernel_time")
            times[name].append(event["dur"])
            operators[name] = event["args"]["op_name"]
    return {name: Kernel(operators[name], float(np.median(found))) for name, found in times.items()}


def times(node: ir.Node, slow: Mapping[str, Kernel], fast: Mapping[str, Kernel]) -> LayerTime:
    """Of a node in the profiles of the quantized (`slow`) and of the float model.

    Kernels are matched by name: int8 ones keep the node's, float ones carry the node's or its output tensor's.
    """
    name = node.name or ""
    return LayerTime(node=name, int8=_int8(slow, name), plain=_plain(fast, [name, *_tensors(node)]))


def rates(model: ir.Model, layers: Iterable[LayerTime], feeds: Values) -> dict[str, tuple[float | None, float | None]]:
    """GMAC/s of each layer in int8 and in float, by node, for inputs shaped like `feeds`."""
    counts = cost.macs(model, concrete(model, {name: array.shape for name, array in feeds.items()}))

    def rate(count: int, microseconds: float | None) -> float | None:
        return round(count / microseconds / 1e3, 1) if microseconds else None

    return {
        one.node: (rate(counts[one.node], one.int8), rate(counts[one.node], one.plain))
        for one in layers
        if one.node in counts
    }


def unfused(model: ir.Model, choice: Choice, kernels: Mapping[str, Kernel]) -> list[str]:
    """Layers that onnxruntime still computes in float: they gain nothing from the rounding around them."""
    return [
        found.node
        for found in (times(node, kernels, kernels) for node in model.graph if node.name in choice.anchors)
        if found.int8 is None and found.plain is not None
    ]


def losing(
    model: ir.Model, choice: Choice, slow: Mapping[str, Kernel], fast: Mapping[str, Kernel]
) -> list[tuple[str, ...]]:
    """Anchors whose int8 kernel takes longer than the float one, kind by kind, what loses most of the time first.

    `slow`, `fast`: profiles of the quantized and of the float model. Layers of one kind compute the same on other
    weights: the medians of their times decide for all of them, as those of a single one are noisy.
    """
    kinds: dict[object, list[tuple[str, float, float]]] = defaultdict(list)
    for node in model.graph:
        if node.name not in choice.anchors:
            continue
        found = times(node, slow, fast)
        if found.int8 is not None and found.plain is not None:
            kinds[_kind(node)].append((found.node, found.int8, found.plain))
    lost: dict[tuple[str, ...], float] = {}
    for layers in kinds.values():
        names, *spent = zip(*layers, strict=True)
        int8, plain = map(float, np.median(spent, axis=1))
        if int8 - plain > 0.1 * plain and len(names) * (int8 - plain) > LEAST_LOSS * whole(fast):
            lost[names] = len(names) * (int8 - plain)
    return sorted(lost, key=lambda names: -lost[names])


def _kind(node: ir.Node) -> object:
    """What the time of a layer depends on: operator, attributes and shapes."""
    shapes = [None if value is None or value.shape is None else str(value.shape) for value in node.inputs]
    return node.op_type, *shapes, *sorted(str(attribute) for attribute in node.attributes.values())


def until(kernels: Mapping[str, Kernel], node: ir.Node, int8: bool) -> float | None:
    """Microseconds of all that runs up to the kernel made from a node, that included: profiles are in order."""
    spent = 0.0
    for name, kernel in kernels.items():
        spent += kernel.microseconds
        found = times(node, {name: kernel}, {name: kernel})
        if (found.int8 if int8 else found.plain) is not None:
            return spent
    return None


def whole(kernels: Mapping[str, Kernel]) -> float:
    """Microseconds of all kernels together."""
    return sum(kernel.microseconds for kernel in kernels.values())


def _int8(kernels: Mapping[str, Kernel], name: str) -> float | None:
    """Time of the int8 kernel made from node `name`: it keeps the name, or gets a number added to it."""
    for found, kernel in kernels.items():
        if kernel.int8 and (found == name or found.startswith(f"{name}_token_")):
            return kernel.microseconds
    return None


def _plain(kernels: Mapping[str, Kernel], names: Iterable[str]) -> float | None:
    """Time of the float matrix kernel that has one of the names."""
    for candidate in (candidate for name in names for candidate in (name, f"{name}_nchwc", f"fused {name}")):
        if candidate in kernels and kernels[candidate].operator in MATRIX:
            return kernels[candidate].microseconds
    return None


def _tensors(node: ir.Node) -> list[str]:
    """The node's output and those of the operators that onnxruntime may fuse behind it."""
    value = node.outputs[0]
    names = [value.name or ""]
    while len(uses := value.uses()) == 1:
        user = next(iter(uses)).node
        if user.op_type not in ("Relu", "Clip", "Add", "Sigmoid", "LeakyRelu", "HardSigmoid"):
            break
        value = user.outputs[0]
        names.append(value.name or "")
    return names
