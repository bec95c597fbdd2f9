"""The options of `quantize.dynamic`."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from lepton_cli.quantize import dynamic
from lepton_cli.steps.quantize_dynamic import Params, apply
from tests.quantize.builders import context, mlp, rows


def test_convolutions_are_left_by_default() -> None:
    given = Params(step="quantize.dynamic")
    assert given.op_types == ("MatMul", "Gemm", "Gather", "Attention", "LSTM")
    assert given.target == "auto"
    assert set(given.op_types) < set(dynamic.SUPPORTED)


@pytest.mark.parametrize("wrong", [{"target": "avx"}, {"op_types": "MatMul"}, {"bits": 8}])
def test_wrong_options(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Params.model_validate({"step": "quantize.dynamic", **wrong})


def test_the_step_is_the_algorithm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, params, given = mlp(), Params(step="quantize.dynamic"), context(rows(1), tmp_path)
    monkeypatch.setattr(dynamic, "quantize", lambda *arguments: arguments)
    assert apply(model, params, given) == (model, params, given)  # type: ignore[comparison-overlap]
