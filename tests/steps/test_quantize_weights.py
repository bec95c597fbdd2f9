"""The options of `quantize.weights`."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from lepton_cli.quantize import weights
from lepton_cli.steps.quantize_weights import Params, apply
from tests.quantize.builders import context, mlp, rows


def test_four_bits_in_symmetric_blocks_of_32_by_default() -> None:
    given = Params(step="quantize.weights")
    assert (given.bits, given.block_size, given.method, given.symmetric) == (4, 32, "rtn", True)


@pytest.mark.parametrize("size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_the_kernels_know(size: int, bits: int) -> None:
    given = Params.model_validate({"step": "quantize.weights", "block_size": size, "bits": bits})
    assert (given.block_size, given.bits) == (size, bits)


@pytest.mark.parametrize(
    "wrong", [{"bits": 2}, {"bits": 5}, {"block_size": 8}, {"block_size": 512}, {"method": "gptq"}]
)
def test_wrong_options(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Params.model_validate({"step": "quantize.weights", **wrong})


def test_the_step_is_the_algorithm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, params, given = mlp(), Params(step="quantize.weights"), context(rows(1), tmp_path)
    monkeypatch.setattr(weights, "quantize", lambda *arguments: arguments)
    assert apply(model, params, given) == (model, params, given)  # type: ignore[comparison-overlap]
