"""`simplify` inside branches and loop bodies: fewer nodes whichever way is taken, and nothing more is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lepton_cli.data.memory import Arrays
from lepton_cli.errors import RecipeError
from lepton_cli.graph.spec import Simplify
from lepton_cli.model import io
from lepton_cli.simplify import simplify as step
from lepton_cli.step import Outcome
from tests.quantize.builders import context
from tests.simplify.test_rules import plain

RANDOM = np.random.default_rng(0)
YES, NO = np.array(True), np.array(False)
X = RANDOM.normal(size=(2, 4)).astype(np.float32)
Feeds = dict[str, np.ndarray]


def parsed(text: str) -> ir.Model:
    """A model in onnx's textual form."""
    model = ir.from_proto(onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>\n' + text))
    io.name_nodes(model)
    return model


def simplified(model: ir.Model, feeds: Sequence[Feeds], tmp_path: Path, **options: object) -> Outcome:
    """What the step makes, held to plain onnxruntime on the model itself, for all inputs."""
    before = io.to_bytes(model)
    outcome = step.simplify(model, Simplify.model_validate(options), context(Arrays(dict(feeds[0])), tmp_path))
    assert io.to_bytes(model) == before
    for one in feeds:
        for wanted, got in zip(plain(model, one), plain(outcome.model, one), strict=True):
            assert wanted.shape == got.shape
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    return outcome


def counted(model: ir.Model) -> Counter[str]:
    """Operators, those of inner graphs included."""
    return Counter(node.op_type for node in model.graph.all_nodes())


TIDY = """
g (bool c, float[b, 4] x) => (float[b, 4] y) <float two = {2}, float one = {1}> {
  t = Tanh(x)
  y = If (c) <
    then_branch = first () => (float[b, 4] y1) {
      four = Mul(two, two)
      a = Identity(t)
      s = Mul(a, four)
      s2 = Mul(t, four)
      dead = Exp(t)
      z = Mul(s2, one)
      y1 = Add(s, z)
    },
    else_branch = second () => (float[b, 4] y2) {
      s = Transpose <perm = [1, 0]> (t)
      y2 = Transpose <perm = [1, 0]> (s)
    }
  >
}
"""


def test_branches_are_folded_cleaned_and_rewritten(tmp_path: Path) -> None:
    feeds = [{"c": c, "x": X} for c in (YES, NO)]
    outcome = simplified(parsed(TIDY), feeds, tmp_path)
    assert counted(outcome.model) == {"Tanh": 1, "If": 1, "Mul": 1, "Add": 1, "Identity": 1}
    assert [node.op_type for node in outcome.model.graph] == ["Tanh", "If"]  # nothing is computed before the choice
    gone = [decision.node for decision in outcome.decisions if decision.op]
    assert len(gone) == len(set(gone))
    again = step.simplify(outcome.model, Simplify(), context(Arrays(feeds[0]), tmp_path))
    assert again.changed == 0


def test_what_is_excluded_stays(tmp_path: Path) -> None:
    model, feeds = parsed(TIDY), [{"c": c, "x": X} for c in (YES, NO)]
    assert counted(simplified(model, feeds, tmp_path / "1", exclude=("Identity*",)).model)["Identity"] == 2
    whole = simplified(model, feeds, tmp_path / "2", exclude=("If*",))
    assert counted(whole.model) == counted(model) - Counter(["Exp"])  # nothing reads it
    with pytest.raises(RecipeError):
        simplified(model, feeds, tmp_path / "3", exclude=("Conv*",))


def test_a_branch_that_is_always_taken_stands_for_the_if(tmp_path: Path) -> None:
    """Both Ifs are decided by a size that is fixed; their branches use the same names, and one result is an output."""
    text = """
    g (float[2, 4] x) => (float[2, 4] y, float[2, 4] w) <int64 two = {2}, int64 at = {0}> {
      sizes = Shape(x)
      rows = Gather(sizes, at)
      is = Equal(rows, two)
      not = Not(is)
      y = If (is) <
        then_branch = a () => (float[2, 4] r) { v = Exp(x) r = Neg(v) },
        else_branch = b () => (float[2, 4] s) { v = Abs(x) s = Sqrt(v) }
      >
      w = If (not) <
        then_branch = c () => (float[2, 4] r) { v = Exp(y) r = Neg(v) },
        else_branch = d () => (float[2, 4] s) { v = Abs(y) s = Sqrt(v) }
      >
    }
    """
    outcome = simplified(parsed(text), [{"x": X}], tmp_path)
    assert [node.op_type for node in outcome.model.graph] == ["Exp", "Neg", "Abs", "Sqrt"]
    assert [value.name for value in outcome.model.graph.outputs] == ["y", "w"]
    assert {d.op for d in outcome.decisions if "never taken" in d.reason} == {"Exp", "Neg", "Abs", "Sqrt"}


SQUEEZED = """
g (float[b, 1, t] x) => (float[b, n] y) <int64[1] last = {{2}}, int64[1] one = {{1}}, int64 two = {{2}},
                                           float[1, 1] w = {{3}}> {{
  sizes = Shape(x)
  size = Gather(sizes, last)
  is = Equal(size, one)
  z = If (is) <
    then_branch = a () => (float[] u) {{ u = Squeeze(x, last) }},
    else_branch = b () => (float[] v) {{ v = Identity(x) }}
  >
  {after}
}}
"""


def test_a_rank_that_the_rest_needs_decides_a_squeeze(tmp_path: Path) -> None:
    """Gemm takes matrices only. What made the model fail still does, although the moves behind it could be one."""
    after = "q = Unsqueeze(z, one) m = Squeeze(q, one) y = Gemm(m, w)"
    model = parsed(SQUEEZED.format(after=after))
    made = simplified(model, [{"x": RANDOM.normal(size=(3, 1, 1)).astype(np.float32)}], tmp_path).model
    assert counted(made) == {"Squeeze": 1, "Gemm": 1}
    for one in (model, made):
        with pytest.raises(Exception, match=r"Squeeze|Gemm"):
            plain(one, {"x": RANDOM.normal(size=(3, 1, 2)).astype(np.float32)})


@pytest.mark.parametrize(
    "after",
    [
        "y = MatMul(z, w)",  # takes both
        "y = If (is) <then_branch = c () => (float[] p) { p = Gemm(z, w) },"
        " else_branch = d () => (float[] q) { q = MatMul(z, w) }>",  # need not run
    ],
)
def test_a_rank_that_is_not_needed_decides_nothing(after: str, tmp_path: Path) -> None:
    model = parsed(SQUEEZED.format(after=after).replace("float[b, n] y", "float[] y"))
    feeds = [{"x": RANDOM.normal(size=shape).astype(np.float32)} for shape in ((3, 1, 1), (1, 1, 1), (3, 1, 1))]
    assert "If" in counted(step.simplify(model, Simplify(), context(Arrays(feeds[0]), tmp_path)).model)
    longer = {"x": RANDOM.normal(size=(1, 1, 1)).astype(np.float32)}
    simplified(model, [*feeds, longer], tmp_path)


LOOP = """
g (int64 n, float[b, 4] x, float[b, 4] k) => (float[] y) <float one = {1}, bool go = {1}> {
  y = Loop (n, go, x) <
    body = step (int64 i, bool c, float[2, 4] v) => (bool c2, float[] v2) {
      c2 = Identity(c)
      two = Add(one, one)
      t = Transpose <perm = [0, 1]> (v)
      m = Mul(t, one)
      size = Shape(m)
      r = Reshape(m, size)
      s = Mul(r, two)
      v2 = Concat <axis = 0> (s, k)
    }
  >
}
"""


def test_bodies_of_loops(tmp_path: Path) -> None:
    """The stated shape of what goes round is that of the first round only: nothing may follow from it."""
    feeds = [{"n": np.array(n), "x": X, "k": X + 1} for n in (0, 1, 3)]
    outcome = simplified(parsed(LOOP), feeds, tmp_path)
    assert counted(outcome.model)["Mul"] == counted(outcome.model)["Concat"] == 1
    assert not counted(outcome.model)["Transpose"]
    assert [node.op_type for node in outcome.model.graph] == ["Loop"]


def test_bodies_of_scans_know_their_types(tmp_path: Path) -> None:
    text = """
    g (float[b, 4] h, float[b, 4] x) => (float[b, 4] last, float[b, b, 4] all) <float one = {1}> {
      last, all = Scan <num_scan_inputs = 1, body = step (s, e) => (s2, o) {
        f = Cast <to = 1> (e)
        l = CastLike(s, one)
        s2 = Add(l, f)
        o = Tanh(s2)
      }> (h, x)
    }
    """
    outcome = simplified(parsed(text), [{"h": X, "x": X}], tmp_path)
    assert counted(outcome.model) == {"Scan": 1, "Add": 1, "Tanh": 1}


def test_graphs_inside_graphs(tmp_path: Path) -> None:
    text = """
    g (bool c, bool d, float[b, 4] x) => (float[b, 4] y) <float[4] k = {1, 2, 3, 4}, float one = {1}> {
      y = If (c) <
        then_branch = a () => (float[b, 4] y1) {
          h = Mul(x, one)
          k1 = Add(k, k)
          y1 = If (d) <
            then_branch = e () => (float[b, 4] y3) { k2 = Mul(k1, k) z = Identity(h) y3 = Add(z, k2) },
            else_branch = f () => (float[b, 4] y4) { z = Mul(h, one) y4 = Sub(z, k1) }
          >
        },
        else_branch = b () => (float[b, 4] y2) { z = Add(x, k) y2 = Relu(z) }
      >
    }
    """
    feeds = [{"c": c, "d": d, "x": X} for c in (YES, NO) for d in (YES, NO)]
    outcome = simplified(parsed(text), feeds, tmp_path)
    assert counted(outcome.model) == {"If": 2, "Add": 2, "Sub": 1, "Relu": 1}


def test_equal_weights_of_different_branches_are_held_once(tmp_path: Path) -> None:
    text = """
    g (bool c, float[b, 4] x) => (float[b, 4] y) {
      y = If (c) <
        then_branch = a () => (float[b, 4] y1) {
          k = Constant <value = float[4] {1, 2, 3, 4}> () t = Mul(x, k) y1 = Exp(t)
        },
        else_branch = d () => (float[b, 4] y2) {
          k = Constant <value = float[4] {1, 2, 3, 4}> () t = Mul(x, k) y2 = Tanh(t)
        }
      >
    }
    """
    outcome = simplified(parsed(text), [{"c": c, "x": X} for c in (YES, NO)], tmp_path)
    held = [value for graph in outcome.model.graphs() for value in graph.initializers.values()]
    assert len(held) == 1
    assert counted(outcome.model)["Mul"] == 2  # the factor is not taken out of the branches


def test_optional_values_and_chance_in_branches(tmp_path: Path) -> None:
    """Two Bernoullis are two throws; Optional has a type as its attribute."""
    text = """
    g (bool c, float[b, 4] x) => (float[b, 4] y) {
      y = If (c) <
        then_branch = a () => (float[b, 4] y1) {
          p = Sigmoid(x) one = Bernoulli(p) two = Bernoulli(p) d = Sub(one, two) z = Sub(d, d) y1 = Add(z, x)
        },
        else_branch = d () => (float[b, 4] y2) { o = Optional(x) v = OptionalGetElement(o) y2 = Identity(v) }
      >
    }
    """
    model = parsed(text)
    optional = next(node for node in model.graph.all_nodes() if node.op_type == "Optional")
    optional.attributes["type"] = ir.AttrTypeProto("type", ir.TypeAndShape(ir.TensorType(ir.DataType.FLOAT), None))
    outcome = simplified(model, [{"c": c, "x": X} for c in (YES, NO)], tmp_path)
    assert counted(outcome.model)["Bernoulli"] == 2
