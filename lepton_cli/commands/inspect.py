"""`lepton inspect`: every fact about a model that needs no data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lepton_cli.commands.job import check_shapes
from lepton_cli.errors import ModelError
from lepton_cli.graph.facts import Facts, facts
from lepton_cli.graph.feeds import default_feeds
from lepton_cli.measure import size
from lepton_cli.model import io
from lepton_cli.prune import channels
from lepton_cli.prune.analysis import GroupFacts
from lepton_cli.quantize import choose, fates
from lepton_cli.quantize.prepare import cleaned, lifted
from lepton_cli.step import Decision
from lepton_cli.tensors import TensorInfo

#: Bytes of a model up to which looking at it includes its gzip size.
COMPRESS_BELOW = 20_000_000


def inspect(path: Path, given: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, Any]:
    """Facts as plain JSON values; the model is not run. `given`: shapes of inputs, batch included.

    Raises ModelError, UsageError.
    """
    loaded = io.load(path)
    model = loaded.model
    check_shapes(given or {}, io.inputs(model))
    feeds = default_feeds(model, 1, 64, given)
    found = facts(model, feeds)
    measured = size.measure(path, loaded.given or model, macs=found.macs, compress=loaded.bytes < COMPRESS_BELOW)
    groups = [_group(group) for group in channels.survey(model, feeds)]
    quantizable, int8 = _quantizable(model, found, loaded.bytes < COMPRESS_BELOW)
    layers = sorted((layer.model_dump(mode="json") for layer in measured.layers), key=lambda layer: -layer["bytes"])
    layers = [{**layer, "int8": int8.get(layer["node"], "")} for layer in layers]
    return {
        "path": str(path),
        "sha256": loaded.sha256,
        "opset": found.opset,
        "ir_version": found.ir_version,
        "domains": list(found.domains),
        "inputs": [_tensor(info) for info in found.inputs],
        "outputs": [_tensor(info) for info in found.outputs],
        "shapes": ", ".join(f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in feeds.items()),
        "operators": found.operators,
        "size": measured.model_dump(mode="json", exclude={"layers"}),
        "layers": layers,
        "nodes": [
            {"name": node.name, "op": node.op_type, "outputs": ", ".join(o.name or "" for o in node.outputs)}
            for node in model.graph.all_nodes()
        ],
        "channel_groups": groups,
        "prunable": _prunable(groups),
        "quantizable": quantizable,
        "hazards": [*found.hazards, *([loaded.note] if loaded.note else [])],
    }


def _tensor(info: TensorInfo) -> dict[str, Any]:
    shape = (
        "unknown shape" if info.shape is None else f"[{', '.join('?' if d is None else str(d) for d in info.shape)}]"
    )
    return {"name": info.name, "dtype": info.dtype, "shape": shape}


def _group(found: GroupFacts) -> dict[str, Any]:
    group = found.group
    return {
        "group": group.name,
        "channels": group.channels,
        "nodes": [port.node for port in group.producers],
        "parameters": found.parameters,
        "macs_share": round(float(found.macs_share), 6),
        "prunable": group.frozen is None,
        "reason": group.frozen or "",
        "node": group.node,
    }


def _prunable(groups: list[dict[str, Any]]) -> str:
    free = [group for group in groups if group["prunable"]]
    text = f"{len(free)} of {len(groups)} groups of channels, {sum(group['channels'] for group in free)} channels"
    reasons = sorted({group["reason"] for group in groups if not group["prunable"] and group["reason"]})
    return (
        text + (f"; the rest: {'; '.join(reasons[:2])}" if reasons else "") + (" (list: --channels)" if groups else "")
    )


def _quantizable(model: ir.Model, found: Facts, small: bool) -> tuple[str, dict[str, str]]:
    """What static quantization finds, in words, and by node with weights whether it becomes int8 and why not."""
    try:
        seen = cleaned(model) if small else lifted(model)
    except ModelError as error:
        return error.message, {}
    choice = choose.candidates(seen, {node.name or "" for node in seen.graph})
    taken = [Decision(node=name, op="", action="quantized", reason="yes") for name in choice.anchors]
    told = (*taken, *choice.kept)
    rest = fates.left_alone(seen, told, "static int8 is for Conv, Gemm and MatMul", fates.STATIC)
    total = len(choice.anchors) + len(choice.kept)
    reasons = sorted({decision.reason for decision in choice.kept})
    text = f"{len(choice.anchors)} of {total} Conv, Gemm and MatMul nodes"
    text += f"; the rest: {'; '.join(reasons[:2])}" if reasons else ""
    if found.quantized and not choice.anchors:
        text = "the model is quantized already"
    others = Counter(decision.op for decision in rest)
    if others:
        text += f"; weights of other operators: {', '.join(f'{count} {op}' for op, count in others.most_common())}"
    return text, {decision.node: decision.reason for decision in (*told, *rest)}
