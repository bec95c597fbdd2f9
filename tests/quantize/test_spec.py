"""The options of the quantization steps: defaults are the best known, wrong values are refused before any work."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lepton_cli.quantize import dynamic
from lepton_cli.quantize.spec import AccuracyGuard, ConvertFp16, QuantizeDynamic, QuantizeStatic, QuantizeWeights
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
        ("quantize.static", {"prefer": "accuracy"}),
        ("quantize.static", {"prefer": "speed", "speed_guard": False}),
        ("quantize.weights", {"bits": 3}),
        ("quantize.weights", {"block_size": 24}),
        ("convert.fp16", {"keep": True}),
    ],
)
def test_wrong_values_are_refused(name: str, wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        STEPS[name].options.model_validate({"step": name, **wrong})


def test_the_defaults_leave_the_choice_to_measurements() -> None:
    given = QuantizeStatic(step="quantize.static")
    assert (given.target, given.calibration, given.activations) == ("auto", None, "int8")
    assert (given.prefer, given.speed_guard) == ("balance", True)
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
def test_wrong_options_of_quantize_static(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        QuantizeStatic.model_validate({"step": "quantize.static", **wrong})


def test_convolutions_are_left_by_default() -> None:
    given = QuantizeDynamic(step="quantize.dynamic")
    assert given.op_types == ("MatMul", "Gemm", "Gather", "Attention", "LSTM")
    assert given.target == "auto"
    assert set(given.op_types) < set(dynamic.SUPPORTED)


@pytest.mark.parametrize("wrong", [{"target": "avx"}, {"op_types": "MatMul"}, {"bits": 8}])
def test_wrong_options_of_quantize_dynamic(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        QuantizeDynamic.model_validate({"step": "quantize.dynamic", **wrong})


def test_four_bits_in_symmetric_blocks_of_32_by_default() -> None:
    given = QuantizeWeights(step="quantize.weights")
    assert (given.bits, given.block_size, given.method, given.symmetric) == (4, 32, "rtn", True)


@pytest.mark.parametrize("size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_the_kernels_know(size: int, bits: int) -> None:
    given = QuantizeWeights.model_validate({"step": "quantize.weights", "block_size": size, "bits": bits})
    assert (given.block_size, given.bits) == (size, bits)


@pytest.mark.parametrize(
    "wrong", [{"bits": 2}, {"bits": 5}, {"block_size": 8}, {"block_size": 512}, {"method": "gptq"}]
)
def test_wrong_options_of_quantize_weights(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        QuantizeWeights.model_validate({"step": "quantize.weights", **wrong})


@pytest.mark.parametrize("symmetric", [True, False])
def test_what_would_be_another_method_by_its_name_alone_is_refused(symmetric: bool) -> None:
    with pytest.raises(ValidationError, match="use k_quant"):
        QuantizeWeights.model_validate({"step": "quantize.weights", "method": "hqq", "symmetric": symmetric})


def test_callers_need_not_change_by_default() -> None:
    assert ConvertFp16(step="convert.fp16").keep_io is True
    with pytest.raises(ValidationError):
        ConvertFp16.model_validate({"step": "convert.fp16", "keep_io": 3})
