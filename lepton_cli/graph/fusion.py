"""Fusing transformer blocks into onnxruntime's own operators, with onnxruntime's optimizer."""

from __future__ import annotations

import contextlib
import dataclasses
import io as text_io
import json
import subprocess
import sys
from collections import Counter

import onnx
import onnx_ir as ir

from lepton_cli import runtime, scratch
from lepton_cli.errors import MissingExtraError, StepError, cause_of
from lepton_cli.graph.feeds import default_feeds
from lepton_cli.graph.settle import settle
from lepton_cli.model import io

#: Tried in this order for `auto`; the first that fuses most wins.
MODEL_TYPES = ("bert", "gpt2", "vit")


@dataclasses.dataclass(frozen=True)
class Fused:
    """A fused copy and how many operators of each kind it gained."""

    model: ir.Model
    gained: dict[str, int]
    model_type: str


def detect_heads(model: ir.Model) -> tuple[int, int] | None:
    """(attention heads, hidden size), read from the Reshape to [batch, length, heads, size] before a Transpose."""
    found: Counter[tuple[int, int]] = Counter()
    known = settle(model, default_feeds(model))[0]
    for node in model.graph:
        if node.op_type != "Transpose" or "perm" not in node.attributes or node.inputs[0] is None:
            continue
        producer, shape = node.inputs[0].producer(), known.get(node.inputs[0].name or "", ())
        if producer is None or producer.op_type != "Reshape" or len(shape) != 4:
            continue
        if list(node.attributes["perm"].as_ints())[:2] == [0, 2]:
            found[shape[2], shape[2] * shape[3]] += 1
    return found.most_common(1)[0][0] if found else None


def fuse(model: ir.Model, model_type: str, heads: int, hidden: int) -> Fused:
    """Run onnxruntime.transformers; `heads` and `hidden` 0 mean unknown. Raises StepError when it fails.

    `auto` looks for attention, which no graph without a Softmax has.
    """
    if model_type == "auto" and not any(node.op_type == "Softmax" for node in model.graph):
        return Fused(io.clone(model), {}, model_type)
    runtime.onnxruntime()
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    best: Fused | None = None
    for kind in MODEL_TYPES if model_type == "auto" else (model_type,):
        try:
            options = FusionOptions(kind)
            # Embeddings stay Gather nodes: int8 shrinks those by four, and the fused operator not at all.
            options.enable_embed_layer_norm = False
            options.enable_shape_inference = not _sizes_without_end(model)
            # The optimizer logs every pattern it does not find, and prints some.
            with runtime.quiet(), contextlib.redirect_stdout(text_io.StringIO()):
                result = optimizer.optimize_model(
                    io.to_proto(model),
                    model_type=kind,
                    num_heads=heads,
                    hidden_size=hidden,
                    opt_level=0,
                    use_gpu=False,
                    optimization_options=options,
                )
            fused = _finish(model, result.model, kind)
        except Exception as error:
            if model_type != "auto":
                raise StepError(
                    "step.fuse", f"onnxruntime cannot fuse this graph as `{kind}`", cause=runtime.one_line(error)
                ) from error
            continue
        if best is None or sum(fused.gained.values()) > sum(best.gained.values()):
            best = fused
    return best or Fused(io.clone(model), {}, model_type)


def _sizes_without_end(model: ir.Model) -> bool:
    """Whether the optimizer's algebra may not come to an end: formulas of sizes that are resized again and again."""
    open_sizes = any(
        not isinstance(size, int) for value in model.graph.inputs if value.shape is not None for size in value.shape[1:]
    )
    return open_sizes and any(node.op_type in ("Resize", "Upsample") for node in model.graph)


def fuse_with_tools(model: ir.Model, model_type: str, heads: int, hidden: int) -> Fused:
    """Run onnxruntime-tools 1.7.0 in a process of its own: once imported it breaks onnxruntime.quantization.

    Raises MissingExtraError or StepError.
    """
    kind = "bert" if model_type == "auto" else model_type
    with scratch.folder() as folder:
        source, target = folder / "in.onnx", folder / "out.onnx"
        source.write_bytes(io.to_bytes(model))
        arguments = json.dumps([str(source), str(target), kind, heads, hidden])
        worker = subprocess.run(
            [sys.executable, "-c", _TOOLS_WORKER, arguments], capture_output=True, text=True, check=False
        )
        if "No module named 'onnxruntime_tools'" in worker.stderr:
            raise MissingExtraError("tools", "onnxruntime-tools", "`engine: onnxruntime-tools`")
        if worker.returncode != 0 or not target.exists():
            last = (worker.stderr.strip().splitlines() or ["no message"])[-1]
            raise StepError("step.fuse", "onnxruntime-tools failed on this graph", cause=cause_of(last),
                            hint="use `engine: onnxruntime`")  # fmt: skip
        return _finish(model, onnx.load(target), kind)


_TOOLS_WORKER = """
import json, sys
source, target, kind, heads, hidden = json.loads(sys.argv[1])
from onnxruntime_tools import optimizer
fused = optimizer.optimize_model(source, model_type=kind, num_heads=heads, hidden_size=hidden, opt_level=0)
fused.save_model_to_file(target)
"""


def _finish(before: ir.Model, proto: onnx.ModelProto, kind: str) -> Fused:
    """Back to onnx-ir: names for new nodes, the original's inputs and outputs, operators counted."""
    after = io.from_proto(proto)
    for node in after.graph:
        after.graph.opset_imports.setdefault(node.domain, 1)
    io.name_nodes(after)
    _restore_signature(before, after)
    old, new = (Counter(node.op_type for node in model.graph if node.domain) for model in (before, after))
    plain = Counter(node.op_type for node in after.graph if node.op_type == "LayerNormalization")
    plain -= Counter(node.op_type for node in before.graph if node.op_type == "LayerNormalization")
    return Fused(after, dict((new - old) + plain), kind)


def _restore_signature(before: ir.Model, after: ir.Model) -> None:
    """Element types and shapes of inputs and outputs as they were: the optimizer may rewrite int64 inputs to int32."""
    for old, new in zip(
        (*before.graph.inputs, *before.graph.outputs), (*after.graph.inputs, *after.graph.outputs), strict=True
    ):
        if old.dtype != new.dtype or old.name != new.name:
            raise StepError("step.fuse", f"fusing would change `{old.name}`")
        new.shape = old.shape
