"""A user's own loader: only when allowed, and every failure is one clear error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lepton_cli.data.open import open_dataset
from lepton_cli.data.reader import SourceDataset
from lepton_cli.data.spec import DataSpec
from lepton_cli.errors import DataError
from lepton_cli.tensors import TensorInfo

X = TensorInfo("x", "float32", ("n", 3))
GOOD = """
import numpy as np
def batches(path):
    for start in range(0, 10, 4):
        stop = min(start + 4, 10)
        yield {"x": np.arange(start * 3, stop * 3).reshape(-1, 3), "y": np.arange(start, stop)}
"""


def opened(folder: Path, code: str, *, allow: bool = True, loader: str = "load.py:batches") -> SourceDataset:
    (folder / "load.py").write_text(code)
    spec = DataSpec.model_validate({"path": "any", "loader": loader, "labels": "y", "skip": 1, "samples": 5})
    return open_dataset(spec, (X,), name="evaluation", base=folder, allow_code=allow)


def test_batches_of_any_size(tmp_path: Path) -> None:
    dataset = opened(tmp_path, GOOD)
    expected = 1 + np.arange(5) * 9 // 5
    for size in (1, 2, 3, 9):
        batches = list(dataset.batches(size))
        assert np.concatenate([batch.labels["labels"] for batch in batches]).tolist() == expected.tolist()
        assert np.concatenate([batch.feeds["x"] for batch in batches])[:, 0].tolist() == (expected * 3).tolist()
    assert dataset.fingerprint == opened(tmp_path, GOOD).fingerprint
    assert len(dataset.sample_hashes()) == 5


def test_not_without_permission(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        opened(tmp_path, "open('ran', 'w')", allow=False)
    assert caught.value.code == "data.code-not-allowed"
    assert caught.value.option == ("data", "evaluation", "loader")
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("1 +", "cannot be imported"),
        ("import no_such_module", "cannot be imported"),
        ("def other(path): pass", "no function `batches`"),
        ("def batches(path): raise KeyError('x')", "raised KeyError"),
        ("def batches(path): yield 3", "yielded a int"),
        ("def batches(path): yield {'y': [1]}", "does not yield `x`"),
        ("def batches(path): yield {'x': [[1, 2, 3]], 'y': [1, 2]}", "different or no length"),
        ("def batches(path): yield {'x': 1, 'y': 2}", "different or no length"),
        ("def batches(path): return 5", "raised TypeError"),
        ("def batches(path): return []", "empty"),
    ],
)
def test_failures(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        opened(tmp_path, code)
    assert caught.value.option[:2] == ("data", "evaluation")


@pytest.mark.parametrize("loader", ["batches", "missing.py:batches", ":batches"])
def test_where_there_is_no_file(tmp_path: Path, loader: str) -> None:
    with pytest.raises(DataError, match="loader"):
        opened(tmp_path, GOOD, loader=loader)
