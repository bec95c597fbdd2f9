"""The options of the quantization steps: defaults are the best known, wrong values are refused before any work."""

import pytest
from pydantic import ValidationError

from lepton_cli.steps import STEPS

NAMES = ("quantize.static", "quantize.dynamic", "quantize.weights", "convert.fp16")


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_the_name_is_needed(name: str) -> None:
    assert STEPS[name].options.model_validate({"step": name}).step == name
    assert STEPS[name].summary


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("quantize.static", {"calibration": "maximum"}),
        ("quantize.static", {"target": "riscv"}),
        ("quantize.static", {"accuracy_guard": {"max_drop": 0.5}}),
        ("quantize.weights", {"bits": 3}),
        ("quantize.weights", {"block_size": 24}),
        ("convert.fp16", {"keep": True}),
    ],
)
def test_wrong_values_are_refused(name: str, wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        STEPS[name].options.model_validate({"step": name, **wrong})
