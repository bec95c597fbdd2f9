"""The `data:` part of a recipe: values that cannot work are refused before any file is opened."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lepton_cli.data.spec import DataSpec, Preprocess


@pytest.mark.parametrize(
    "fields",
    [
        {"resize": 0},
        {"resize": [-1, 4]},
        {"resize": [1, 2, 3]},
        {"crop": 1 << 20},
        {"std": 0},
        {"std": [0.2, 0, 0.2]},
        {"scale": "1/0"},
        {"dtype": "float23"},
        {"pad": 0},
        {"pad": 10**12},
        {"fill_missing": "most"},
        {"layout": "chw"},
        {"sclae": 1},
    ],
)
def test_preprocessing_that_cannot_work(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Preprocess.model_validate(fields)


@pytest.mark.parametrize("fields", [{"samples": 0}, {"skip": -1}, {"first": 0}, {"batch": 0}])
def test_choices_that_leave_nothing(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DataSpec.model_validate({"path": "d.npz", **fields})


def test_one_number_stands_for_all_channels() -> None:
    assert Preprocess.model_validate({"mean": 1, "scale": "1/255"}).mean == (1.0,)
    assert Preprocess.model_validate({"std": [0.1, "1/4"]}).std == (0.1, 0.25)
