"""`simplify`: fold constants, join operators, remove what is dead or held twice; outputs stay the same."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedOpsetsPass

from lepton_cli.graph import batch_norm, clean, fold, shapes
from lepton_cli.graph.edit import inner_graphs
from lepton_cli.graph.select import select
from lepton_cli.graph.spec import Simplify
from lepton_cli.model import io
from lepton_cli.probe.rewrites import Given
from lepton_cli.simplify import branches, rules
from lepton_cli.simplify.rules import RULES, Rule
from lepton_cli.step import Context, Decision, Outcome

#: Folding one thing uncovers another: most models settle in two or three rounds, one choice behind another takes more.
ROUNDS = 32
#: Values of a constant up to which equal ones are looked for before the last round; of larger ones only at the end.
SMALL = 16


@dataclasses.dataclass
class _Made:
    """A copy that is worked on, what was done so far, the rules that did some of it, and what was left and why."""

    model: ir.Model
    decisions: list[Decision] = dataclasses.field(default_factory=list)
    used: set[Rule] = dataclasses.field(default_factory=set)
    left: dict[ir.Node, str] = dataclasses.field(default_factory=dict)
    #: Names of constants that were equal to others.
    shared: list[str] = dataclasses.field(default_factory=list)
    #: Names of the Transposes of tables that are looked up, wherever these stand.
    turns: set[str] = dataclasses.field(default_factory=set)

    def record(self, nodes: Sequence[tuple[ir.Node, str]], action: str) -> int:
        """Note nodes with reasons; how many."""
        self.decisions += [
            Decision(node=node.name or "", op=node.op_type, action=action, reason=reason) for node, reason in nodes
        ]
        return len(nodes)


def simplify(model: ir.Model, options: Simplify, context: Context) -> Outcome:
    """Repeat folding, cleaning and rewriting until nothing changes, without rules that change what is computed."""
    _allowed(model, options)
    with context.progress.stage("simplify") as stage:
        made, warnings = _proved(model, options, context)
        shared = dict.fromkeys(
            [*made.shared, *clean.share_initializers(made.model, across=True)], "equal to another tensor"
        )
        shared |= dict.fromkeys(clean.tie_tables(made.model), "a table that is looked up, turned")
        clean.remove_unused(made.model)
        RemoveUnusedOpsetsPass()(made.model)
        before, after = (sum(1 for _ in one.graph.all_nodes()) for one in (model, made.model))
        stage.note(f"{before} -> {after} nodes")
    decisions = made.decisions
    decisions += [Decision(node=name, op="", action="merged", reason=reason) for name, reason in shared.items()]
    changed = len(decisions)
    made.record([(node, reason) for node, reason in made.left.items() if node.graph is not None], "kept")
    actions = Counter(decision.action for decision in decisions if decision.action != "kept")
    summary = ", ".join(f"{count} {action}" for action, count in actions.items()) or "nothing to simplify"
    return Outcome(made.model, changed, tuple(decisions), summary, warnings=warnings, tolerance=1e-3)


def _proved(model: ir.Model, options: Simplify, context: Context) -> tuple[_Made, tuple[str, ...]]:
    """The model in its simplest form, with those rules that compute the same on the check samples, and a warning for
    each other one."""
    made = _rounds(model, options, RULES)
    if context.dry or not made.used:
        return made, ()
    plain = _rounds(model, options, ())
    given = Given(plain.model, context)
    difference = given.difference(made.model)
    if difference is None:
        return made, ()
    kept, warnings = [], []
    for rule in (rule for rule in RULES if rule in made.used):
        wrong = given.difference(_rounds(model, options, [rule]).model)
        if wrong is None:
            kept.append(rule)
        else:
            warnings.append(f"left out, as it does not compute the same here: {rule.name}, {rule.does} ({wrong})")
    made = _rounds(model, options, kept)
    difference = given.difference(made.model)
    if difference is None:
        return made, tuple(warnings)
    names = ", ".join(rule.name for rule in kept)
    return plain, (*warnings, f"left out, as they do not compute the same together here: {names} ({difference})")


def _allowed(model: ir.Model, options: Simplify) -> set[str]:
    """Names of the nodes that may be touched, inner graphs included."""
    return select([node.name or "" for node in model.graph.all_nodes()], options.include, options.exclude)


def _rounds(model: ir.Model, options: Simplify, with_rules: Sequence[Rule]) -> _Made:
    """A copy that was folded, cleaned and rewritten until nothing changes."""
    made = _Made(io.clone(model))
    for name in clean.fix_default_inputs(made.model):
        made.decisions.append(Decision(node=name, op="", action="fixed", reason="was an input with a default value"))
    _settle(made, made.model, _allowed(model, options), options, with_rules)
    return made


def _settle(made: _Made, model: ir.Model, allowed: set[str], options: Simplify, with_rules: Sequence[Rule]) -> bool:
    """Fold, clean and rewrite a model, or an inner graph as one, in place until nothing changes; did anything?"""
    record, changed = made.record, False
    for _ in range(ROUNDS):
        count = record(clean.remove_unused(model), "removed")
        count += record(clean.remove_no_ops(model, allowed), "removed")
        made.turns |= clean.table_turns(model)
        count += record(fold.fold_constants(model, allowed - made.turns), "folded")
        count += record(branches.take_constant(model, allowed), "removed")
        count += record(clean.merge_equal(model, allowed), "merged")
        if options.fold_batch_norm:
            norms = batch_norm.fold_batch_norm(model, allowed)
            made.left |= dict(norms.left)
            count += record([(node, "folded into the layer before it") for node in norms.nodes], "folded")
        gone, used = rules.apply(model, with_rules, allowed)
        made.used |= used
        record(gone, "joined")
        if not count and not used:
            same = clean.share_initializers(model, most=SMALL)  # nodes that read equal numbers are equal
            made.shared += same
            inside = _settle_inside(made, model, allowed, options, with_rules)
            needed = branches.take_needed(model, allowed)
            if not same and not inside and not needed:
                break
        changed = True
    return changed


def _settle_inside(
    made: _Made, model: ir.Model, allowed: set[str], options: Simplify, with_rules: Sequence[Rule]
) -> bool:
    """The same for every graph inside a node that may be touched."""
    changed = False
    holders = [node for node in model.graph if node.name in allowed and inner_graphs(node)]
    with shapes.inferred_only(model) if holders else contextlib.nullcontext():
        for node in holders:
            for graph in inner_graphs(node):
                with branches.alone(model, node, graph) as part:
                    changed |= _settle(made, part, allowed, options, with_rules)
    return changed
