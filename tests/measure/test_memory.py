"""Peak memory in a process of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lepton_cli.errors import MeasurementError
from lepton_cli.measure import memory
from tests.measure import builders


def test_memory_follows_the_model_and_the_batch(tmp_path: Path) -> None:
    small = memory.measure(builders.chain(1, 8), {"x": np.ones((1, 8), np.float32)}, threads=1)
    path = tmp_path / "wide.onnx"
    path.write_bytes(builders.chain(2, 512))
    large = memory.measure(path, {"x": np.ones((16384, 512), np.float32)}, threads=1)
    # The input and an activation are 32 MB each.
    assert large.added > small.added + 50_000_000
    assert large.peak > large.added
    assert small.device is None


def test_a_model_that_cannot_run_is_one_message() -> None:
    with pytest.raises(MeasurementError) as caught:
        memory.measure(builders.chain(1, 8), {"x": np.ones((1, 9), np.float32)}, threads=1)
    assert "cannot run the model" in str(caught.value.cause)


def test_feeds_may_have_any_name() -> None:
    """`file` is an argument of numpy's own `savez`."""
    renamed = builders.model("g (float[N, 3] file) => (float[N, 3] y) { y = Identity (file) }")
    assert memory.measure(renamed, {"file": np.ones((1, 3), np.float32)}, threads=1).peak > 0
