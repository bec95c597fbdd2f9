"""The `data:` part of a recipe: values that cannot work are refused before any file is opened."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lepton_cli.data.spec import DataSpec, Preprocess, TrainingSpec


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


@pytest.mark.parametrize(
    "fields",
    [
        {"holdout": "100 %"},
        {"holdout": 5},
        {"holdout": "-5 %"},
        {"augment": {"flip": "both"}},
        {"augment": ["flip"]},
        {"augment": [{}]},
        {"augment": [{"rotate": 30}]},
        {"augment": [{"flip": "sideways"}]},
        {"augment": [{"flip": "both", "noise": 0.1}]},
        {"augment": [{"crop": 4}]},
        {"augment": [{"crop": {}}]},
        {"augment": [{"crop": {"pad": 0}}]},
        {"augment": [{"crop": {"pad": 100000}}]},
        {"augment": [{"crop": {"pad": 4, "random": [0.2, 1]}}]},
        {"augment": [{"crop": {"pad": 4, "aspect": [1, 1]}}]},
        {"augment": [{"crop": {"random": [1, 0.2]}}]},
        {"augment": [{"crop": {"random": [0, 1]}}]},
        {"augment": [{"crop": {"random": [0.2, 1.1]}}]},
        {"augment": [{"crop": {"random": [0.2, 1], "aspect": [2, 1]}}]},
        {"augment": [{"colour": {}}]},
        {"augment": [{"colour": {"brightness": 1.5}}]},
        {"augment": [{"colour": {"hue": 0.1}}]},
        {"augment": [{"noise": 0}]},
        {"augment": [{"noise": "10 %"}]},
        {"augment": [{"shift": "0 %"}]},
        {"augment": [{"shift": "100 %"}]},
        {"augment": [{"drop_tokens": 0.1}]},
        {"augment": [{"drop_tokens": {"token": 3}}]},
        {"augment": [{"drop_tokens": {"share": "10 %", "token": -1}}]},
        {"augment": [{"mixup": 0}]},
        {"augment": [{"mixup": 0.2}, {"mixup": 0.2}]},
    ],
    ids=str,
)
def test_training_that_cannot_work(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TrainingSpec.model_validate({"path": "d.npz", **fields})


def test_training_is_written_down_as_it_is_read() -> None:
    """Only what was given of each augmentation, with its defaults; it reads back as the same."""
    given = [
        {"flip": "horizontal"},
        {"crop": {"pad": 4}},
        {"crop": {"random": ["1/4", 1]}},
        {"drop_tokens": "10 %"},
        {"mixup": 0.2},
    ]
    spec = TrainingSpec.model_validate({"path": "d.npz", "augment": given})
    assert spec.holdout == 0.05
    assert [one.name for one in spec.augment] == ["flip", "crop", "crop", "drop_tokens", "mixup"]
    written = spec.model_dump(mode="json")
    assert written["holdout"] == "5 %"
    assert written["augment"] == [
        {"flip": "horizontal"},
        {"crop": {"pad": 4}},
        {"crop": {"random": [0.25, 1.0], "aspect": [3 / 4, 4 / 3]}},
        {"drop_tokens": {"share": "10 %", "token": 0}},
        {"mixup": 0.2},
    ]
    assert TrainingSpec.model_validate(written) == spec
    assert TrainingSpec(path="d.npz", holdout="0 %").holdout == 0
