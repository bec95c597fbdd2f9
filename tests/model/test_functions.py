"""Functions of a model are put in the place of their calls when it is loaded."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from lepton_cli.graph import shapes
from lepton_cli.model import functions, io
from lepton_cli.runtime import Session

X = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)


def _model(body: str, version: int = 17, call: str = "local.f(x)") -> onnx.ModelProto:
    return onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17, "local": 1]>
        main (float[b, 8] x) => (float[b, 8] z) {{ y = {call}  z = local.f(y) }}
        <domain: "local", opset_import: ["": {version}]>
        f (a) => (c) {{ {body} }}""")


@pytest.mark.parametrize("version", [17, 15, 13])
def test_written_out_with_names_of_their_own(version: int) -> None:
    """Relu has more types since opset 14, and means the same."""
    proto = _model("b = Neg (a)  c = Relu (b)", version)
    loaded = io.read(proto.SerializeToString())
    assert not loaded.model.functions
    assert [node.op_type for node in loaded.model.graph] == ["Neg", "Relu"] * 2
    assert [node.name for node in loaded.model.graph] == ["Neg", "Relu", "Neg_2", "Relu_2"]
    made = Session(io.to_bytes(loaded.model), threads=1).run({"x": X})["z"]
    np.testing.assert_array_equal(made, Session(proto.SerializeToString(), threads=1).run({"x": X})["z"])


def test_an_operator_that_meant_something_else_keeps_its_function() -> None:
    """Softmax flattened to two axes before opset 13, and had another default."""
    loaded = io.read(_model("c = Softmax (a)", 12).SerializeToString())
    assert len(loaded.model.functions) == 1
    assert shapes.opset(loaded.model) == 17


def test_one_operator_that_meant_something_else_is_enough() -> None:
    for body in ("b = Relu (a)  c = Softmax (b)", "b = Softmax (a)  c = Relu (b)"):
        model = io.check.parse(io.MEMORY, _model(body, 12).SerializeToString())
        assert functions.written_out(model) is model
        assert [node.op_type for node in model.graph] == ["f", "f"]


def test_a_model_without_functions_is_returned() -> None:
    proto = _model("c = Relu (a)")
    del proto.functions[:], proto.graph.node[:]
    proto.graph.node.append(onnx.helper.make_node("Relu", ["x"], ["z"]))
    model = io.check.parse(io.MEMORY, proto.SerializeToString())
    assert functions.written_out(model) is model


def test_the_model_given_stays() -> None:
    model = io.check.parse(io.MEMORY, _model("c = Relu (a)").SerializeToString())
    assert functions.written_out(model) is not model
    assert len(model.functions) == 1


def _mixed(own: int, body: str) -> ir.Model:
    """A function of version `own` of the standard operators, and of the first of a set whose second the graph has."""
    proto = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": 17, "com.microsoft": 1, "mine": 2, "local": 1]>
        main (float[b, 8] x) => (float[b, 8] z) {{ z = local.f(x) }}
        <domain: "local", opset_import: ["": {own}, "com.microsoft": 1, "mine": 1]>
        f (a) => (c) {{ {body} }}""")
    return functions.written_out(io.check.parse(io.MEMORY, proto.SerializeToString()))


def test_operators_of_other_sets_do_not_matter() -> None:
    made = _mixed(13, "b = Relu (a)  c = com.microsoft.QuickGelu (b)")
    assert [node.op_type for node in made.graph] == ["Relu", "QuickGelu"]


def test_operators_that_nobody_knows_keep_their_function() -> None:
    assert [node.op_type for node in _mixed(15, "b = Relu (a)  c = mine.Thing (b)").graph] == ["f"]
    assert [node.op_type for node in _mixed(15, "c = LayerNormalization (a, a)").graph] == ["f"]
