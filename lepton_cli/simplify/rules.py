"""What `simplify` rewrites: rules of onnxscript and our own, in words, applied so that every node that goes is named.

A rule looks at one node and what stands before it, and answers what comes in its place. Here is what all have in
common: nodes that are excluded stay, names are free ones, a node before goes only when nothing else reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir
from onnxscript.rewriter import RewriteRule
from onnxscript.rewriter.rules import common

from lepton_cli.graph import batch_norm, clean, fold, shapes
from lepton_cli.graph.edit import Editor, bypass, is_constant, read_nothing
from lepton_cli.simplify import affine, focus, moves, unfuse
from lepton_cli.simplify.found import Find, Found


def _theirs(*rules: RewriteRule) -> Find:
    """The first of onnxscript's rules that fits."""

    def find(model: ir.Model, node: ir.Node) -> Found | None:
        for rule in rules:
            try:
                made = rule.try_rewrite(model, model.graph, node)
            except Exception:  # what they read without looking whether it is there: it does not fit
                continue
            if made is not None:
                return Found(list(made.new_nodes), list(made.match.nodes))
        return None

    return find


def _cast_like(_: ir.Model, node: ir.Node) -> Found | None:
    """A cast to the type of another value where that is known."""
    like = node.inputs[1] if node.op_type == "CastLike" else None
    if like is None or like.dtype is None:
        return None
    return Found([ir.node("Cast", node.inputs[:1], {**node.attributes, "to": int(like.dtype)}, name=node.name)], [node])


#: Rounds of `join`: what one rule made another may take.
ROUNDS = 8
#: Values of a constant up to which it is looked for among those that are there.
_SMALL = 16


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rewrite that keeps the function. `does`: what happens to a node that goes. `least`: the opset it needs."""

    name: str
    does: str
    find: Find
    least: int = 1


#: Not of onnxscript's: constant folding (ours asks onnxruntime, has limits on growth, and knows random operators),
#: BatchNormalization (ours says why one is left), Dropout (an identity to them while training too), Slices as a Split
#: (wrong for odd sizes), `auto_pad` as numbers (dilations forgotten), Flatten as Reshape (no node less), sizes that a
#: Reshape is known to have (opset 14), chains of Reshape and Slice (`moves` finds more), Conv with Mul and Add (scalars
#: only), a zero bias removed (int8 kernels want one), MatMul and Add as Gemm (any bias that broadcasts).
RULES = (
    Rule("unfuse", "written as standard operators", unfuse.plain),
    Rule("fuse_pad_into_conv", "its padding is the Conv's own", _theirs(common.fuse_pad_into_conv_rule), 11),
    Rule("moved", "moves values that are moved again", moves.joined, 5),
    Rule("slice_nothing", "cuts nothing off", moves.nothing_cut, 10),
    Rule("slice_slice", "cuts what is cut again", moves.slices, 10),
    Rule("focus", "every second row and column is what the Conv reads by itself", focus.joined, 10),
    Rule("concat_concat", "joined with what it is joined to", moves.concats, 4),
    Rule("transpose_transpose", "two Transposes in one", _theirs(common.transpose_transpose_rule)),
    Rule("no_op_expand", "expands nothing", _theirs(common.no_op_expand_rule), 8),
    Rule("cast_like", "casts to a type that is known", _cast_like, 15),
    Rule("no_op_cast", "casts to the type it has", _theirs(common.no_op_cast_rule)),
    Rule("cast_cast", "two Casts in one", _theirs(common.cast_cast_rule)),
    Rule("cast_constant_of_shape", "cast where it is made",
         _theirs(common.cast_constant_of_shape_rule, common.cast_constant_of_shape_without_value_rule), 9),
    Rule("no_op", "adds 0 or multiplies by 1",
         _theirs(*common.mul_by_1_rule.commute(), *common.add_0_rule.commute(), common.sub_0_rule,
                 common.div_by_1_rule), 7),
    Rule("min_max", "Min and Max in one",
         _theirs(common.min_min_rule, common.max_max_rule, common.min_max_rule, common.max_min_rule), 12),
    Rule("successive_clip", "Clip and Relu in one",
         _theirs(common.successive_clip_relu_rule, common.successive_relu_clip_rule, common.successive_relu_rule,
                 common.successive_clip_rule), 12),
    Rule("scatter_all", "overwrites everything",
         _theirs(common.no_op_static_scatter_nd_rule, common.no_op_dynamic_scatter_nd_rule), 16),
    Rule("broadcast_to_matmul", "MatMul broadcasts by itself",
         _theirs(common.two_reshapes_matmul_reshape_rule, common.one_reshape_matmul_reshape_rule), 5),
    Rule("expand_before_binary_op", "the operator behind it broadcasts by itself",
         _theirs(*common.expand_before_binary_op_rules), 8),
    Rule("conv_affine", "its factor or addend is in the Conv's weights", affine.into_conv),
    Rule("factors", "one factor instead of two", affine.factors, 7),
    Rule("matmul_add", "MatMul and Add in one Gemm", affine.gemm, 7),
)  # fmt: skip


def apply(model: ir.Model, rules: Sequence[Rule], allowed: set[str]) -> tuple[list[tuple[ir.Node, str]], set[Rule]]:
    """Apply each rule wherever it fits the main graph, in place; `allowed`: names of nodes that may be touched.

    Returns the nodes that are gone, with what happened to them, and the rules that changed anything. Rules trust the
    shapes that values have: those are what inference finds, not what a file holds.
    """
    gone: list[tuple[ir.Node, str]] = []
    used: set[Rule] = set()
    editor, version = Editor(model), shapes.opset(model)
    constants = _Constants(editor)
    with shapes.inferred_only(model):
        for rule in rules:
            for node in list(model.graph) if version >= rule.least else ():
                if (
                    node.graph is model.graph
                    and node.name in allowed
                    and (not node.domain or rule.find is unfuse.plain)
                ):
                    found = rule.find(model, node)
                    if found is None:
                        continue
                    if any(one.name not in allowed for one in found.matched):
                        read_nothing(found.made)
                    else:
                        gone += [(one, rule.does) for one in _put(editor, constants, node, found)]
                        used.add(rule)
    return gone, used


def join(model: ir.Model, allowed: set[str]) -> None:
    """Apply all rules until none fits, in place, with what they leave to compute, to fold and to remove.

    The names of the nodes that are made are added to `allowed`.
    """
    for _ in range(ROUNDS):
        before = {node.name or "" for node in model.graph}
        _, used = apply(model, RULES, allowed)
        allowed |= {node.name or "" for node in model.graph} - before
        if not used:
            break
        clean.remove_unused(model)
        clean.remove_no_ops(model, allowed)
        fold.fold_constants(model, allowed)
        batch_norm.fold_batch_norm(model, allowed)
    shapes.annotate(model)


class _Constants:
    """New constants of a model; small ones that are there are taken: equal nodes are those that read the same."""

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self._there = {self._key(v.const_value): v for v in editor.model.graph.initializers.values() if is_constant(v)}
        self._there.pop(None, None)

    def of(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """A constant that holds the tensor; `name` where it is new."""
        key = self._key(tensor)
        if key is None:
            return self._editor.constant(name, tensor)
        if key not in self._there:
            self._there[key] = self._editor.constant(name, tensor)
        return self._there[key]

    @staticmethod
    def _key(tensor: ir.TensorProtocol | None) -> tuple[ir.DataType, tuple[int, ...], bytes] | None:
        if tensor is None or tensor.size > _SMALL or tensor.dtype == ir.DataType.STRING:
            return None
        return tensor.dtype, tuple(tensor.shape.numpy()), tensor.tobytes()


def _put(editor: Editor, constants: _Constants, node: ir.Node, found: Found) -> list[ir.Node]:
    """Put what was found in the place of `node`; the nodes that are gone, under their names."""
    made = []
    for new in found.made:
        tensor = new.attributes.get_tensor("value") if new.op_type == "Constant" else None
        if tensor is None:
            made.append(new)
        else:
            new.outputs[0].replace_all_uses_with(constants.of(new.outputs[0].name or f"{node.name}/held", tensor))
    for value in dict.fromkeys(value for new in made for value in new.inputs):
        if value is not None and value.const_value is not None and value.graph is None and value.producer() is None:
            value.replace_all_uses_with(constants.of(value.name or f"{node.name}/held", value.const_value))
    last, gone = made[-1], [node]
    wanted = last.name
    if all(new.name != node.name for new in made):
        last.name = node.name
    for result, stands_for_it in found.instead:
        result.replace_all_uses_with(stands_for_it)
    node.resize_outputs(len(last.outputs))
    editor.put(node, made)
    for old in [old for old in found.matched if old is not node][::-1]:
        if old.graph is not None and not any(value.uses() or value.is_graph_output() for value in old.outputs):
            old.graph.remove(old, safe=True)
            gone.append(old)
    if last.op_type == "Identity" and not last.outputs[0].is_graph_output():
        bypass(last)
        return gone
    if wanted in {one.name for one in gone}:
        last.name = wanted
    return [one for one in gone if one.name != last.name]
