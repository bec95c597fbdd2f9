"""`fuse`: attention, LayerNorm and GELU as onnxruntime's own operators (transformers)."""

from __future__ import annotations

import onnx_ir as ir

from lepton_cli.errors import RecipeError
from lepton_cli.graph import clean, fusion
from lepton_cli.graph.details import FuseDetails
from lepton_cli.graph.spec import Fuse
from lepton_cli.step import Context, Decision, Outcome

#: Fusions that onnxruntime does not make by itself. The others, made ahead, were measured to be slower than its own.
_ATTENTION = {"Attention", "MultiHeadAttention", "EmbedLayerNormalization"}

_CONTROL_FLOW = "onnxruntime's optimizer does not see what graphs inside nodes (If, Loop, Scan) take from outside"


def fuse(model: ir.Model, options: Fuse, context: Context) -> Outcome:
    """Fuse, and say which operators came and which attention blocks stayed open."""
    if options.include or options.exclude:
        option = "include" if options.include else "exclude"
        raise RecipeError(
            "recipe.wrong-value", f"step `fuse` works on the whole graph and takes no `{option}`", option=(option,)
        )
    if any(graph is not model.graph for graph in model.graphs()):
        return Outcome(model, 0, _kept(model, _CONTROL_FLOW), f"left as it is: {_CONTROL_FLOW}")
    detected = fusion.detect_heads(model) or (0, 0)
    heads, hidden = options.heads or detected[0], options.hidden_size or detected[1]
    run = fusion.fuse if options.engine == "onnxruntime" else fusion.fuse_with_tools
    with context.progress.stage("fuse") as stage:
        fused = run(model, options.model_type, heads, hidden)
        summary = ", ".join(f"{count} {op}" for op, count in sorted(fused.gained.items())) or "nothing to fuse"
        stage.note(summary)
    if options.model_type == "auto" and fused.gained and not fused.gained.keys() & _ATTENTION:
        reason = "no attention was recognised; LayerNorm and GELU onnxruntime fuses itself when it loads the model"
        told = FuseDetails(heads=heads, hidden_size=hidden)
        return Outcome(model, 0, _kept(model, reason), "no attention to fuse", told)
    if not fused.gained:  # what the optimizer rewrites besides is not wanted
        return Outcome(model, 0, _kept(model, "no attention was recognised"), summary)
    clean.tie_tables(fused.model)
    before = {node.name for node in model.graph}
    decisions = [
        Decision(node=node.name or "", op=node.op_type, action="fused", reason="replaces a pattern of plain operators")
        for node in fused.model.graph
        if node.name not in before and (node.op_type in fused.gained)
    ]
    decisions += _kept(fused.model, "attention around it was not recognised")
    details = FuseDetails(model_type=fused.model_type, heads=heads, hidden_size=hidden, operators=dict(fused.gained))
    return Outcome(fused.model, sum(fused.gained.values()), tuple(decisions), summary, details, tolerance=1e-3)


def _kept(model: ir.Model, reason: str) -> tuple[Decision, ...]:
    return tuple(
        Decision(node=node.name or "", op=node.op_type, action="kept", reason=reason)
        for node in model.graph
        if node.op_type == "Softmax"
    )
