"""`fuse` on the bundled transformer: what is gained, what is left, and that results stay the same."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from pydantic import ValidationError

from lepton_cli.data.memory import Arrays
from lepton_cli.errors import MissingExtraError, RecipeError
from lepton_cli.graph import fusion
from lepton_cli.graph.details import FuseDetails
from lepton_cli.graph.spec import Fuse
from lepton_cli.model import io
from lepton_cli.runtime import Session
from lepton_cli.steps import STEPS
from tests.quantize.builders import Graph, context


@pytest.fixture
def vit(samples: Path) -> ir.Model:
    return io.load(samples / "digits_vit.onnx").model


def _logits(model: ir.Model) -> np.ndarray:
    images = np.random.default_rng(0).random((4, 1, 8, 8), np.float32)
    return Session(io.to_bytes(model), threads=1).run({"image": images})["logits"]


def _context(tmp_path: Path):
    return context(Arrays({"image": np.zeros((4, 1, 8, 8), np.float32)}), tmp_path)


def test_heads_are_read_from_the_graph(vit: ir.Model, samples: Path) -> None:
    assert fusion.detect_heads(vit) == (4, 64)
    assert fusion.detect_heads(io.load(samples / "digits_cnn.onnx").model) is None


def test_without_attention_nothing_is_fused_ahead(vit: ir.Model, tmp_path: Path) -> None:
    outcome = STEPS["fuse"].apply(vit, Fuse(step="fuse"), _context(tmp_path))
    assert outcome.changed == 0
    assert outcome.model is vit
    assert {decision.op for decision in outcome.decisions} == {"Softmax"}
    assert "no attention" in outcome.decisions[0].reason


def test_a_named_type_fuses_what_it_finds(vit: ir.Model, tmp_path: Path) -> None:
    outcome = STEPS["fuse"].apply(vit, Fuse(step="fuse", model_type="bert"), _context(tmp_path))
    assert outcome.details.operators["SkipLayerNormalization"] == 8
    assert outcome.changed == sum(outcome.details.operators.values())
    np.testing.assert_allclose(_logits(outcome.model), _logits(vit), atol=1e-4)
    assert io.inputs(outcome.model) == io.inputs(vit)


def test_the_log_is_left_as_the_caller_had_it(vit: ir.Model) -> None:
    before = logging.root.manager.disable
    try:
        logging.disable(logging.INFO)
        fusion.fuse(vit, "bert", 0, 0)
        assert logging.root.manager.disable == logging.INFO
    finally:
        logging.disable(before)


def test_globs_make_no_sense_here(vit: ir.Model, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        STEPS["fuse"].apply(vit, Fuse(step="fuse", exclude=("/head/*",)), _context(tmp_path))
    assert caught.value.option == ("exclude",)


def test_the_old_engine_is_an_extra(vit: ir.Model, tmp_path: Path) -> None:
    try:
        import onnxruntime_tools  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match="onnxruntime-tools"):
            STEPS["fuse"].apply(vit, Fuse(step="fuse", engine="onnxruntime-tools"), _context(tmp_path))
    else:
        pytest.skip("onnxruntime-tools is installed")


def attention() -> ir.Model:
    """A Softmax between two products."""
    graph = Graph()
    x = graph.linear(graph.take("x", ["b", 8]), 8, 8, gemm=False)
    return graph.model(graph.linear(graph.op("Softmax", x), 8, 8, gemm=False))


@dataclasses.dataclass
class Optimizer:
    """Stands for onnxruntime's: gives `gained`, notes what it is asked."""

    gained: dict[str, int]
    asked: list[tuple[str, int, int]] = dataclasses.field(default_factory=list)

    def __call__(self, model: ir.Model, model_type: str, heads: int, hidden: int) -> fusion.Fused:
        self.asked.append((model_type, heads, hidden))
        made = io.clone(model)
        for node in made.graph:
            if node.op_type == "MatMul":
                node.op_type, node.name = next(iter(self.gained), "MatMul"), f"new_{node.name}"
        return fusion.Fused(made, self.gained, "vit")


@pytest.fixture
def optimizers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Optimizer, Optimizer]]:
    def use(gained: dict[str, int], detected: tuple[int, int] | None = (4, 64)) -> tuple[Optimizer, Optimizer]:
        made = Optimizer(gained), Optimizer(gained)
        monkeypatch.setattr(fusion, "fuse", made[0])
        monkeypatch.setattr(fusion, "fuse_with_tools", made[1])
        monkeypatch.setattr(fusion, "detect_heads", lambda model: detected)
        return made

    return use


Use = Callable[..., tuple[Optimizer, Optimizer]]


def test_heads_and_size_are_those_given_else_those_read_else_unknown(optimizers: Use, tmp_path: Path) -> None:
    for detected, options, expected in (
        ((4, 64), {}, (4, 64)),
        ((4, 64), {"heads": 2}, (2, 64)),
        ((4, 64), {"hidden_size": 32}, (4, 32)),
        (None, {}, (0, 0)),
        (None, {"heads": 2, "hidden_size": 16}, (2, 16)),
    ):
        used, other = optimizers({"Attention": 2}, detected)
        outcome = STEPS["fuse"].apply(attention(), Fuse(step="fuse", **options), _context(tmp_path))  # type: ignore[arg-type]
        assert used.asked == [("auto", *expected)]
        assert other.asked == []
        assert (outcome.details.heads, outcome.details.hidden_size) == expected


def test_the_engine_is_the_one_that_was_asked_for(optimizers: Use, tmp_path: Path) -> None:
    used, other = optimizers({"Attention": 2})
    STEPS["fuse"].apply(
        attention(), Fuse(step="fuse", engine="onnxruntime-tools", model_type="gpt2"), _context(tmp_path)
    )
    assert (used.asked, other.asked) == ([], [("gpt2", 4, 64)])


@pytest.mark.parametrize("operator", ["Attention", "MultiHeadAttention", "EmbedLayerNormalization"])
def test_attention_is_worth_fusing(operator: str, optimizers: Use, tmp_path: Path) -> None:
    optimizers({operator: 2, "Gelu": 1})
    outcome = STEPS["fuse"].apply(attention(), Fuse(step="fuse"), _context(tmp_path))
    assert outcome.changed == 3
    assert outcome.summary == ", ".join(sorted([f"2 {operator}", "1 Gelu"], key=lambda text: text.split()[1]))
    assert outcome.tolerance == 1e-3
    assert outcome.details == FuseDetails(model_type="vit", heads=4, hidden_size=64, operators={operator: 2, "Gelu": 1})
    assert [(one.node, one.op, one.action, one.reason) for one in outcome.decisions] == [
        ("new_MatMul_0", operator, "fused", "replaces a pattern of plain operators"),
        ("new_MatMul_3", operator, "fused", "replaces a pattern of plain operators"),
        ("Softmax_2", "Softmax", "kept", "attention around it was not recognised"),
    ]


def test_what_onnxruntime_fuses_itself_is_not_fused_ahead_unless_a_type_is_named(
    optimizers: Use, tmp_path: Path
) -> None:
    optimizers({"Gelu": 2})
    model = attention()
    outcome = STEPS["fuse"].apply(model, Fuse(step="fuse"), _context(tmp_path))
    assert (outcome.model is model, outcome.changed, outcome.summary) == (True, 0, "no attention to fuse")
    assert outcome.details == FuseDetails(heads=4, hidden_size=64)
    reason = "no attention was recognised; LayerNorm and GELU onnxruntime fuses itself when it loads the model"
    assert [(one.node, one.reason) for one in outcome.decisions] == [("Softmax_2", reason)]
    assert STEPS["fuse"].apply(model, Fuse(step="fuse", model_type="bert"), _context(tmp_path)).changed == 2


@pytest.mark.parametrize("model_type", ["auto", "bert"])
def test_nothing_gained_changes_nothing(model_type: str, optimizers: Use, tmp_path: Path) -> None:
    optimizers({})
    model = attention()
    outcome = STEPS["fuse"].apply(
        model, Fuse.model_validate({"step": "fuse", "model_type": model_type}), _context(tmp_path)
    )
    assert (outcome.model is model, outcome.changed, outcome.summary) == (True, 0, "nothing to fuse")
    assert [one.reason for one in outcome.decisions] == ["no attention was recognised"]


def test_graphs_inside_nodes_are_left_alone(optimizers: Use, tmp_path: Path) -> None:
    used, _ = optimizers({"Attention": 1})
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["": 17]>
        main (float[b, 8] x, bool flag) => (float[b, 8] z) {
            y = Softmax (x)
            z = If (flag) <then_branch = yes () => (float[b, 8] p) { p = Relu (y) },
                           else_branch = no () => (float[b, 8] q) { q = Identity (y) }> }"""
    )
    io.name_nodes(model)
    outcome = STEPS["fuse"].apply(model, Fuse(step="fuse"), _context(tmp_path))
    assert (outcome.model is model, outcome.changed, used.asked) == (True, 0, [])
    assert outcome.summary.startswith("left as it is: onnxruntime's optimizer does not see")
    assert [one.op for one in outcome.decisions] == ["Softmax"]


def test_the_first_glob_is_named_in_the_error(tmp_path: Path) -> None:
    for options, name in (({"include": ("a",)}, "include"), ({"include": ("a",), "exclude": ("b",)}, "include")):
        with pytest.raises(RecipeError, match=f"takes no `{name}`") as caught:
            STEPS["fuse"].apply(attention(), Fuse(step="fuse", **options), _context(tmp_path))  # type: ignore[arg-type]
        assert caught.value.option == (name,)


def test_heads_are_one_at_least() -> None:
    assert Fuse(step="fuse", heads=1, hidden_size=1).engine == "onnxruntime"
    for name in ("heads", "hidden_size"):
        with pytest.raises(ValidationError):
            Fuse.model_validate({"step": "fuse", name: 0})


def _resized(size: int | str, *, softmax: bool) -> ir.Model:
    graph = Graph()
    x = graph.take("image", ["n", 3, size, size])
    x = graph.op("Resize", x, "", graph.constant(np.array([1, 1, 2, 2], np.float32)))
    return graph.model(graph.op("Softmax", x) if softmax else x)


@pytest.mark.parametrize(
    ("size", "softmax", "asked"), [("s", True, [False] * 3), (16, True, [True] * 3), ("s", False, []), (16, False, [])]
)
def test_the_algebra_of_sizes_is_left_out_where_it_may_not_end(
    size: int | str, softmax: bool, asked: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text detector with six Resize kept it busy for more than ten minutes; and it has no attention to look for."""
    from onnxruntime.transformers import optimizer

    seen = []

    def optimize(proto: object, **options: Any) -> Any:
        seen.append(options["optimization_options"].enable_shape_inference)
        return SimpleNamespace(model=proto)

    monkeypatch.setattr(optimizer, "optimize_model", optimize)
    assert not fusion.fuse(_resized(size, softmax=softmax), "auto", 0, 0).gained
    assert seen == asked
