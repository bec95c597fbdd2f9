"""What follows from the data, and what has a size that does: told apart node by node."""

from __future__ import annotations

import onnx
import pytest

from lepton_cli.graph.sized import SHAPE_INPUTS, from_data
from lepton_cli.model import io
from tests.hostile.models import parse

#: Text of a graph after its inputs `x`, and which of its values follow from the data, and have a size that does.
GRAPHS = {
    "y = Relu (x)": ("x y", ""),
    "s = Shape (x)\n y = Reshape (x, s)": ("x y", ""),
    "s = Shape (x)\n t = Cast <to = 1> (s)\n y = Add (t, t)": ("x", ""),
    "y = NonZero (x)": ("x y", "y"),
    "p = NonZero (x)\n y = Shape (p)": ("x p y", "p"),
    "p = NonZero (x)\n q = Neg (p)\n y = Size (q)": ("x p q y", "p q"),
    "i = Cast <to = 7> (x)\n y = Expand (x, i)": ("x i y", "y"),
    "i = Cast <to = 7> (x)\n s = Expand (x, i)\n y = Relu (s)": ("x i s y", "s y"),
    "s = Shape (x)\n y = RandomUniformLike (s)": ("x y", ""),
    "s = Shape (x)\n y = NonZero (s)": ("x", ""),
}


@pytest.mark.parametrize("text", GRAPHS)
def test_values_that_follow_from_the_data_and_sizes_that_do(text: str) -> None:
    model = io.read(parse(f"g (float[n] x) => (float[m] y) {{ {text} }}").SerializeToString()).model
    found = from_data(model)
    values, sized = GRAPHS[text]
    assert {value.name for value in found.values} == set(values.split())
    assert {value.name for value in found.sized} == set(sized.split())


def test_an_initializer_that_is_an_input_too_is_no_data() -> None:
    proto = parse("g (float[n] x, float[2] w) => (float[2] y) { y = Neg (w) }", ir_version=3)
    proto.graph.initializer.add(name="w", data_type=1, dims=[2], float_data=[1, 2])
    assert {value.name for value in from_data(io.read(proto.SerializeToString()).model).values} == {"x"}


def test_a_branch_that_reads_data_may_have_any_size() -> None:
    """Either branch may give what it likes."""
    body = "{ b = Identity (x) }"
    text = f"""g (bool c, float[n] x) => (float[m] y) {{
        y = If (c) <then_branch = t () => (float[m] b) {body}, else_branch = e () => (float[m] b) {body}>
    }}"""
    found = from_data(io.read(parse(text).SerializeToString()).model)
    assert {value.name for value in found.sized} == {"y"}


SAY_HOW_MUCH = {
    "shape", "starts", "ends", "axes", "steps", "pads", "split", "roi", "scales", "sizes", "repeats", "K", "axis",
}  # fmt: skip


@pytest.mark.parametrize("op", sorted(SHAPE_INPUTS))
def test_inputs_that_say_where_or_how_much_are_those_of_the_definition(op: str) -> None:
    schema = onnx.defs.get_schema(op, 9 if op == "Upsample" else 18)
    named = {"input"} if op == "ConstantOfShape" else SAY_HOW_MUCH
    assert SHAPE_INPUTS[op] == tuple(i for i, one in enumerate(schema.inputs) if one.name in named)
