"""The options of `quantize.static`."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from lepton_cli.quantize import static
from lepton_cli.steps.quantize_static import AccuracyGuard, Params, apply
from tests.quantize.builders import context, mlp, rows


def test_the_defaults_leave_the_choice_to_measurements() -> None:
    given = Params(step="quantize.static")
    assert (given.target, given.calibration, given.activations) == ("auto", None, "int8")
    assert (given.equalise, given.bias_correction, given.rounding) == (None, None, None)
    assert (given.accuracy_guard, given.sensitivity, given.speed_guard) == (None, False, True)


def test_the_guard_returns_layers_to_float_unless_told() -> None:
    guard = AccuracyGuard.model_validate({"max_drop": "0.5 pp"})
    assert float(guard.max_drop) == pytest.approx(0.005)
    assert guard.fallback == "float"


@pytest.mark.parametrize(
    "wrong",
    [{"target": "avx"}, {"activations": "int4"}, {"rounding": "up"}, {"accuracy_guard": {}}, {"speed_guard": "maybe"},
     {"accuracy_guard": {"max_drop": "1 pp", "fallback": "int4"}}, {"calibration": "none"}],
)  # fmt: skip
def test_wrong_options(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Params.model_validate({"step": "quantize.static", **wrong})


def test_the_step_is_the_algorithm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, params, given = mlp(), Params(step="quantize.static"), context(rows(1), tmp_path)
    monkeypatch.setattr(static, "quantize", lambda *arguments: arguments)
    assert apply(model, params, given) == (model, params, given)  # type: ignore[comparison-overlap]
