"""Errors as text: everything a user needs, and nothing that steers the terminal."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser

from lepton_cli.cli.boundary import printable, render
from lepton_cli.errors import Place, RecipeError
from tests.conftest import Invoke


def test_the_whole_error() -> None:
    place = Place("recipe.yaml", 37, 5, "    per_chanel: true", 10)
    error = RecipeError("recipe.unknown-key", "no option `per_chanel`", where=place, cause="typing", hint="look again")
    assert render(error).splitlines() == [
        "error[recipe.unknown-key]: no option `per_chanel`",
        "  --> recipe.yaml:37:5",
        "37 |     per_chanel: true",
        "   |     ^^^^^^^^^^",
        "  cause: typing",
        "   = help: look again",
    ]


def test_control_characters_are_replaced() -> None:
    assert printable("a\x1b[31mb\x07") == "a\N{REPLACEMENT CHARACTER}[31mb\N{REPLACEMENT CHARACTER}"
    assert "\x1b" not in render(RecipeError("x", "\x1b]0;owned\x07", cause="\x1b[2J", hint="\x1b[H"))


def test_long_names_and_line_breaks_are_cut() -> None:
    lines = render(RecipeError("x", "a\nerror[y]: b" + "c" * 100_000, cause="one\ntwo")).splitlines()
    assert len(lines) == 2
    assert max(map(len, lines)) < 1100


def test_names_from_a_model_cannot_steer_the_terminal(invoke: Invoke, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1, 4] x) => (float[1, 4] y) { y = Relu (x) }'
    )
    model.graph.node[0].name = "\x1b[2Jrelu\x07"
    onnx.save(model, tmp_path / "model.onnx")
    for option in ((), ("--nodes",), ("--layers",), ("--channels",)):
        result = invoke("inspect", "model.onnx", *option)
        assert result.exit_code == 0, result.stderr
        assert "\x1b" not in result.output
