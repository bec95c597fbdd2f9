"""Folding constants, removing what does nothing, shapes and costs on small graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_cli.errors import RecipeError
from lepton_cli.graph import clean, cost, fold, shapes
from lepton_cli.graph.select import select
from lepton_cli.model import io
from tests.hostile.models import mlp, parse, save


def _load(text: str, folder: Path) -> io.ir.Model:
    return io.load(save(parse(text), folder / "m.onnx")).model


def _all(model: io.ir.Model) -> set[str]:
    return {node.name or "" for node in model.graph}


def test_constants_are_computed(tmp_path: Path) -> None:
    model = _load(
        "g (float[n, 2] x) => (float[n, 2] y) <float[2] w = {1, 2}> { s = Exp(w) t = Neg(s) y = Mul(x, t) }", tmp_path
    )
    folded = fold.fold_constants(model, _all(model))
    assert sorted(node.op_type for node, _ in folded) == ["Exp", "Neg"]
    held = model.graph.initializers["t"].const_value
    assert held is not None
    np.testing.assert_allclose(held.numpy(), -np.exp([1.0, 2.0]), rtol=1e-6)


def test_shapes_are_inferred_only_where_something_is_constant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inference takes longer than the rest where nothing folds."""
    monkeypatch.setattr(shapes, "infer", lambda *_: pytest.fail("inferred"))
    without = _load("g (float[n, 2] x) => (float[n, 2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }", tmp_path)
    assert fold.fold_constants(without, _all(without)) == []
    within = _load("g (float[n, 2] x) => (float[n, 2] y) <float[2] w = {1, 2}> { t = Neg(w) y = Mul(x, t) }", tmp_path)
    with pytest.raises(pytest.fail.Exception, match="inferred"):
        fold.fold_constants(within, _all(within))


@pytest.mark.parametrize(
    "text",
    [
        "g (float[2] x) => (float[2] y) { r = RandomNormal<shape = [2]>() y = Add(x, r) }",
        "g (float[1] x) => (float[n] y) <int64[1] s = {90000000}> { b = ConstantOfShape(s) y = Add(x, b) }",
        "g (int8[2] x) => (float[2] y) <int8[2] w = {1, 2}, float s = {0.5}>"
        " { d = DequantizeLinear(w, s) c = Cast<to = 1>(x) y = Add(c, d) }",
    ],
)
def test_random_huge_and_quantized_values_stay(text: str, tmp_path: Path) -> None:
    model = _load(text, tmp_path)
    count = len(model.graph)
    assert fold.fold_constants(model, _all(model)) == []
    assert len(model.graph) == count


def test_fixed_dimensions_are_constants(tmp_path: Path) -> None:
    model = _load(
        "g (float[n, 3, 4] x) => (int64 y, int64[3] z) <int64 i = {2}> { s = Shape(x) d = Gather(s, i)"
        " y = Neg(d) z = Neg(s) }",
        tmp_path,
    )
    folded = fold.fold_shapes(model, _all(model))
    assert [node.op_type for node, _ in folded] == ["Gather"]
    held = model.graph.initializers["d"].const_value
    assert held is not None
    assert held.numpy() == 4


def test_no_ops_go_and_excluded_ones_stay(tmp_path: Path) -> None:
    text = (
        "g (float[2, 3] x) => (float[2, 3] y) { a = Identity(x) b = Transpose<perm = [0, 1]>(a) c = Cast<to = 1>(b)"
        " d = Concat<axis = 0>(c) e = Dropout(d) y = Relu(e) }"
    )
    model = _load(text, tmp_path)
    kept = next(node.name for node in model.graph if node.op_type == "Cast")
    removed = clean.remove_no_ops(model, _all(model) - {kept})
    assert {node.op_type for node, _ in removed} == {"Identity", "Transpose", "Concat", "Dropout"}
    assert [node.op_type for node in model.graph] == ["Cast", "Relu"]


def test_equal_initializers_are_shared_unless_they_are_outputs(tmp_path: Path) -> None:
    text = (
        "g (float[n, 2] x) => (float[n, 2] y, float[2] c) <float[2] a = {1, 2}, float[2] b = {1, 2},"
        " float[2] c = {1, 2}> { t = Add(x, a) u = Add(t, b) y = Add(u, c) }"
    )
    model = _load(text, tmp_path)
    assert clean.share_initializers(model) == ["b"]
    onnx.checker.check_model(io.to_bytes(model))


def test_macs(tmp_path: Path) -> None:
    model = io.load(save(mlp(16), tmp_path / "m.onnx")).model
    known = shapes.concrete(model, {"x": (3, 8)})
    assert known["h"] == (3, 16)
    assert cost.macs(model, known) == {"first": 3 * 8 * 16, "second": 3 * 16 * 4}


def test_stored_shapes_are_not_believed(tmp_path: Path) -> None:
    model = _load("g (float[n, 4] x) => (float[9, 9] y) <float[7, 7] h> { h = Relu(x) y = Neg(h) }", tmp_path)
    assert shapes.concrete(model, {"x": (5, 4)}, run=False) == {"x": (5, 4), "h": (5, 4), "y": (5, 4)}


@given(st.lists(st.sampled_from(["", "a", "a_0", "a_1", "Relu", "Relu_0"]), min_size=1, max_size=12))
def test_names_become_unique_and_stay_where_they_were(names: list[str]) -> None:
    model = io.ir.from_proto(parse("g (float[2] x) => (float[2] y) { y = Relu(x) }"))
    first = next(iter(model.graph))
    first.name = names[0]
    for name in names[1:]:
        model.graph.append(io.ir.Node("", "Relu", [model.graph.inputs[0]], name=name))
    io.name_nodes(model)
    made = [node.name for node in model.graph]
    assert len(set(made)) == len(made)
    assert all(made)
    io.name_nodes(model)
    assert [node.name for node in model.graph] == made


@given(st.sets(st.sampled_from("abcdef")), st.sampled_from(["*", "a", "[abc]", "?"]))
def test_included_and_excluded_are_all(names: set[str], glob: str) -> None:
    """What a glob includes and what is left when it excludes are the whole."""
    try:
        inside = select(names, [glob], [])
    except RecipeError as error:
        assert error.option == ("include", 0)  # noqa: PT017
        return
    assert inside | select(names, [], [glob]) == names
    assert inside & select(names, [], [glob]) == set()
