"""`simplify`: fold constants and BatchNorm, remove what is dead or held twice; outputs stay the same."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from lepton_cli.graph import batch_norm, clean, fold
from lepton_cli.graph.select import select
from lepton_cli.graph.spec import Simplify
from lepton_cli.model import io
from lepton_cli.step import Context, Decision, Outcome

#: Folding one thing uncovers another; real models settle in two or three rounds.
ROUNDS = 8


def simplify(model: ir.Model, options: Simplify, context: Context) -> Outcome:
    """Repeat folding and cleaning until nothing changes."""
    copy = io.clone(model)
    allowed = select([node.name or "" for node in model.graph], options.include, options.exclude)
    decisions: list[Decision] = []

    def record(nodes: list[tuple[ir.Node, str]], action: str) -> int:
        decisions.extend(
            Decision(node=node.name or "", op=node.op_type, action=action, reason=reason) for node, reason in nodes
        )
        return len(nodes)

    defaults = clean.fix_default_inputs(copy)
    decisions.extend(
        Decision(node=name, op="", action="fixed", reason="was an input with a default value") for name in defaults
    )
    left: list[tuple[ir.Node, str]] = []
    with context.progress.stage("simplify") as stage:
        for _ in range(ROUNDS):
            count = record(clean.remove_unused(copy), "removed")
            count += record(clean.remove_no_ops(copy, allowed), "removed")
            count += record(fold.fold_constants(copy, allowed - clean.table_turns(copy)), "folded")
            count += record(clean.merge_equal(copy, allowed), "merged")
            if options.fold_batch_norm:
                norms = batch_norm.fold_batch_norm(copy, allowed)
                left = norms.left
                count += record([(node, "folded into the layer before it") for node in norms.nodes], "folded")
            if not count:
                break
        shared = dict.fromkeys(clean.share_initializers(copy), "equal to another tensor")
        shared |= dict.fromkeys(clean.tie_tables(copy), "a table that is looked up, turned")
        clean.remove_unused(copy)
        stage.note(f"{sum(1 for _ in model.graph)} -> {sum(1 for _ in copy.graph)} nodes")
    decisions.extend(Decision(node=name, op="", action="merged", reason=reason) for name, reason in shared.items())
    changed = len(decisions)
    record(left, "kept")
    actions = Counter(decision.action for decision in decisions if decision.action != "kept")
    summary = ", ".join(f"{count} {action}" for action, count in actions.items()) or "nothing to simplify"
    return Outcome(copy, changed, tuple(decisions), summary, tolerance=1e-3)
