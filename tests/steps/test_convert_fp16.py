"""The options of `convert.fp16`."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from lepton_cli.quantize import fp16
from lepton_cli.steps.convert_fp16 import Params, apply
from tests.quantize.builders import context, mlp, rows


def test_callers_need_not_change_by_default() -> None:
    assert Params(step="convert.fp16").keep_io is True
    with pytest.raises(ValidationError):
        Params.model_validate({"step": "convert.fp16", "keep_io": 3})


def test_the_step_is_the_algorithm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, params, given = mlp(), Params(step="convert.fp16"), context(rows(1), tmp_path)
    monkeypatch.setattr(fp16, "convert", lambda *arguments: arguments)
    assert apply(model, params, given) == (model, params, given)  # type: ignore[comparison-overlap]
