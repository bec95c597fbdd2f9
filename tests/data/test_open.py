"""Opening: what is not there or of no known kind, and names the model does not have."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from lepton_cli.data.open import open_dataset
from lepton_cli.data.spec import DataSpec
from lepton_cli.errors import DataError
from lepton_cli.tensors import TensorInfo

X = TensorInfo("x", "float32", ("n", 3))


def fails(path: Path, **fields: object) -> DataError:
    spec = DataSpec.model_validate({"path": path.name, **fields})
    with pytest.raises(DataError) as caught:
        open_dataset(spec, (X,), name="calibration", base=path.parent)
    return caught.value


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "train.npz").touch()
    error = fails(tmp_path / "tain.npz")
    assert error.code == "data.not-found"
    assert "did you mean `train.npz`?" in str(error.hint)
    assert error.option == ("data", "calibration", "path")


def test_unknown_kinds(tmp_path: Path) -> None:
    (tmp_path / "data.h5").write_bytes(b"data")
    assert fails(tmp_path / "data.h5").code == "data.format"
    os.mkfifo(tmp_path / "data.npz")
    assert fails(tmp_path / "data.npz").code == "data.format"


def test_folders_and_loops(tmp_path: Path) -> None:
    (tmp_path / "d.npz").mkdir()
    assert fails(tmp_path / "d.npz").code == "data.empty"
    (tmp_path / "loop.npz").symlink_to(tmp_path / "loop.npz")
    assert fails(tmp_path / "loop.npz").code in ("data.not-found", "data.unreadable")


@pytest.mark.parametrize("option", ["inputs", "preprocess_inputs"])
def test_inputs_the_model_does_not_have(tmp_path: Path, option: str) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 3)))
    error = fails(tmp_path / "d.npz", **{option: {"z": "x" if option == "inputs" else {}}})
    assert error.code == "data.unknown-input"
    assert error.option == ("data", "calibration", option, "z")
    assert "its inputs: `x`" in str(error.hint)


def test_shapes_are_checked_at_once(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 4)))
    assert fails(tmp_path / "d.npz").code == "data.shape"
