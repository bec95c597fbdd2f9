"""What the runner does with steps that make something wrong: nothing of it gets into a result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lepton_cli.cache import Cache
from lepton_cli.commands import runner
from lepton_cli.data.open import synthetic
from lepton_cli.errors import LeptonError, ModelError, StepError
from lepton_cli.model import io
from lepton_cli.progress import Silent
from lepton_cli.report.model import StepRecord
from lepton_cli.step import Context, Options, Outcome, Step
from lepton_cli.steps import STEPS
from tests.hostile.models import mlp

Apply = Callable[[ir.Model, Options, Context], Outcome]


@pytest.fixture(name="context")
def _context(tmp_path: Path) -> Context:
    (tmp_path / "model.onnx").write_bytes(mlp().SerializeToString())
    model = io.load(tmp_path / "model.onnx").model
    check = synthetic(io.inputs(model), seed=0, samples=8, batch=4)
    return Context(
        calibration=None, evaluation=None, training=None, base=Path(), check=check, original=model, score=None,
        provider="cpu", batch=1, threads=1, seed=0, progress=Silent(), workdir=tmp_path, cache=Cache(None),
    )  # fmt: skip


def _edited(edit: Callable[[ir.Model], object], tolerance: float | None = None) -> Apply:
    """A step that edits a copy."""

    def apply(model: ir.Model, params: Options, context: Context) -> Outcome:
        copy = io.clone(model)
        edit(copy)
        return Outcome(copy, 1, tolerance=tolerance)

    return apply


def _weight(model: ir.Model, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    value = model.graph.initializers[name]
    assert value.const_value is not None
    value.const_value = ir.tensor(change(value.const_value.numpy()).astype(np.float32), name=name)


def _broken(model: ir.Model) -> None:
    next(iter(model.graph)).attributes["transB"] = ir.AttrInt64("transB", 1)


def _renamed(model: ir.Model) -> None:
    model.graph.outputs[0].name = "z"


def _other_type(model: ir.Model) -> None:
    model.graph.inputs[0].type = ir.TensorType(ir.DataType.DOUBLE)


def _nan(model: ir.Model) -> None:
    _weight(model, "w2", lambda array: np.full_like(array, np.nan))


def _scaled(model: ir.Model) -> None:
    _weight(model, "w2", lambda array: array * 1.01)


def _run(
    apply: Apply, context: Context, monkeypatch: pytest.MonkeyPatch, step: str = "quantize.dynamic", **options: bool
) -> tuple[runner.Checked, runner.Checked, object]:
    monkeypatch.setattr(Step, "apply", lambda self, *arguments: apply(*arguments))
    params = STEPS[step].options.model_validate(
        {"step": step, **({} if step == "simplify" else {"least_gain": False}), **options}
    )
    before = runner.reference(context.original, context)
    after, record = runner.run_step(before, params, 3, context, context.workdir / "failed")
    return before, after, record


WRONG: dict[str, tuple[Apply, str]] = {
    "another name": (_edited(_renamed), "outputs changed"),
    "another type": (_edited(_other_type), "inputs changed"),
    "not a number": (_edited(_nan), "NaN or infinity"),
    "not equal": (_edited(_scaled, tolerance=1e-4), "differs by"),
    "cannot run": (_edited(_broken), "cannot run the model"),
    "a bug": (lambda *_: 1 / 0, "failed on this model"),  # type: ignore[dict-item, return-value]
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_never_gets_on(wrong: str, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    apply, message = WRONG[wrong]
    with pytest.raises(StepError) as caught:
        _run(apply, context, monkeypatch)
    assert message in caught.value.message
    assert caught.value.option[:2] == ("steps", 3)
    kept = context.workdir / "failed" / "step-4-input.onnx"
    assert str(kept) in (caught.value.note or "")
    assert io.to_bytes(io.load(kept).model) == io.to_bytes(context.original)


def test_the_first_cause_of_a_failure_is_kept(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """For `--debug`: an error that is its own cause ends the traceback before it."""
    with pytest.raises(StepError) as caught:
        _run(WRONG["a bug"][0], context, monkeypatch)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("wrong", WRONG)
def test_what_may_change_nothing_is_left_out(wrong: str, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    apply, message = WRONG[wrong]
    for step, options in (("quantize.dynamic", {"if_possible": True}), ("simplify", {})):
        before, after, record = _run(apply, context, monkeypatch, step, **options)
        assert after.model is before.model
        (warning,) = record.warnings  # type: ignore[attr-defined]
        assert warning.startswith("left out: ")
        assert message in warning
        assert record.changed == 0  # type: ignore[attr-defined]


def test_a_refusal_is_left_out_only_where_allowed(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Outcome:
        raise ModelError("model.already-quantized", "the model is quantized already")

    with pytest.raises(ModelError):
        _run(refuse, context, monkeypatch)
    _, after, record = _run(refuse, context, monkeypatch, if_possible=True)
    assert after.model is context.original
    assert record.warnings == ("left out: the model is quantized already",)  # type: ignore[attr-defined]


def test_a_target_that_cannot_be_reached_is_an_error_all_the_same(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Outcome:
        raise StepError("prune.unreachable", "the target cannot be reached")

    with pytest.raises(StepError):
        _run(refuse, context, monkeypatch, if_possible=True)


def test_changing_nothing_is_an_error_unless_possible(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(model: ir.Model, *_: object) -> Outcome:
        return Outcome(model, 0)

    with pytest.raises(StepError, match="changed nothing"):
        _run(nothing, context, monkeypatch)
    _run(nothing, context, monkeypatch, if_possible=True)


def test_outputs_of_another_model_are_warned_about(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def upside_down(model: ir.Model) -> None:
        _weight(model, "w2", lambda array: -3 * array)
        _weight(model, "b2", lambda array: -array)

    def constant(model: ir.Model) -> None:
        _weight(model, "w2", lambda array: array * 0)
        _weight(model, "b2", lambda array: array * 0)

    for edit in (upside_down, constant):
        _, _, record = _run(_edited(edit), context, monkeypatch)
        (warning,) = record.warnings  # type: ignore[attr-defined]
        assert "output `y` has little to do with what it was" in warning
    tuned = STEPS["finetune"].options.model_validate({"step": "finetune"})
    _, trained = runner.run_step(runner.reference(context.original, context), tuned, 0, context, None)
    assert trained.warnings == (), "labels may want other answers"
    _, _, record = _run(_edited(_scaled), context, monkeypatch)
    assert record.warnings == ()  # type: ignore[attr-defined]


def test_a_clock_that_jumps_changes_no_duration(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    wall = iter(range(10**9, 0, -(10**5)))
    monkeypatch.setattr(time, "time", lambda: next(wall))
    _, _, record = _run(_edited(_scaled), context, monkeypatch)
    assert 0 < record.seconds < 60  # type: ignore[attr-defined]


def test_a_model_that_does_not_run_is_refused_before_any_step(context: Context) -> None:
    broken = io.clone(context.original)
    _broken(broken)
    with pytest.raises(LeptonError, match="onnxruntime cannot"):
        runner.reference(broken, context)


@pytest.mark.parametrize("code", ["model.runtime", "model.run"])
def test_a_graph_that_a_step_broke_is_not_the_users(
    code: str, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps run what they make themselves, and onnxruntime says no different of it than of a user's file."""

    def fail(*_: object) -> Outcome:
        raise ModelError(code, "onnxruntime cannot load the model", cause="Node () has no type")

    with pytest.raises(StepError, match=r"`quantize\.dynamic` made a graph that onnxruntime cannot run") as caught:
        _run(fail, context, monkeypatch)
    assert (caught.value.exit_code, caught.value.cause) == (3, "Node () has no type")
    _, after, record = _run(fail, context, monkeypatch, if_possible=True)
    assert after.model is context.original
    (warning,) = record.warnings  # type: ignore[attr-defined]
    assert warning.startswith("left out: `quantize.dynamic` made a graph")


def test_a_broken_graph_is_the_steps_error_where_the_model_cannot_be_fed(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without data that fit nothing is run; what onnxruntime does not even load is no fault of the model given."""
    monkeypatch.setattr(Step, "apply", lambda self, *given: _edited(_broken)(*given))
    options = STEPS["quantize.dynamic"].options.model_validate({"step": "quantize.dynamic"})
    with pytest.raises(StepError) as raised:
        runner.run_step(runner.Checked(context.original, None), options, 0, context, None)
    assert (raised.value.code, raised.value.exit_code) == ("step.broken-model", 3)
    assert raised.value.cause


def test_a_large_result_is_checked_and_run_from_one_file(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one message it would be in memory twice more."""
    kinds = []
    checked = onnx.checker.check_model

    def noted(given: object, *more: object) -> None:
        kinds.append(type(given))
        checked(given, *more)

    monkeypatch.setattr(onnx.checker, "check_model", noted)
    _run(_edited(_scaled), context, monkeypatch)
    monkeypatch.setattr(io, "_too_large", lambda model: True)
    _run(_edited(_scaled), context, monkeypatch)
    assert [issubclass(kind, Path) for kind in kinds] == [False, True]


def _second(output: str = "kind") -> Callable[[ir.Model], None]:
    """One more output: the first one again, negative."""

    def edit(model: ir.Model) -> None:
        first = model.graph.outputs[0]
        node = ir.node("Neg", [first])
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = output, first.type, first.shape
        model.graph.append(node)
        model.graph.outputs.append(node.outputs[0])

    return edit


def _both(*edits: Callable[[ir.Model], object]) -> Callable[[ir.Model], None]:
    def edit(model: ir.Model) -> None:
        for one in edits:
            one(model)

    return edit


ADDED = {"step": "head.add", "name": "kind", "at": "x", "classes": 2}


def _heads(
    edit: Callable[[ir.Model], object],
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
    options: Mapping[str, object] = ADDED,
) -> tuple[runner.Checked, StepRecord]:
    monkeypatch.setattr(Step, "apply", lambda self, *arguments: _edited(edit, tolerance=1e-4)(*arguments))
    before = runner.reference(context.original, context)
    params = STEPS[str(options["step"])].options.model_validate(options)
    return runner.run_step(before, params, 0, context, None)


def test_a_step_may_make_the_outputs_that_it_says(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    after, record = _heads(_second(), context, monkeypatch)
    assert after.outputs is not None
    assert [set(batch) for batch in after.outputs] == [{"y", "kind"}] * 2
    assert record.warnings == ()
    made = {"y": after.outputs[0]["y"]}
    after, record = _heads(_scaled, context, monkeypatch, {"step": "head.replace", "classes": 2})
    assert record.warnings == ()
    assert after.outputs is not None
    assert not np.array_equal(after.outputs[0]["y"], made["y"])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_second("other"), "the model has no output `kind`"),
        (_both(_second(), _second("other")), "outputs changed"),
        (_both(_second(), _scaled), "output `y` differs by"),
        (_both(_second(), _nan), "`kind` contains NaN or infinity"),
        (_both(_second(), _other_type), "inputs changed"),
    ],
)
def test_whatever_else_it_makes_is_wrong(
    edit: Callable[[ir.Model], object], message: str, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StepError, match=message):
        _heads(edit, context, monkeypatch)
