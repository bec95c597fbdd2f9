"""A part of a data set."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_cli.data.dataset import First, Slice
from lepton_cli.data.memory import Arrays
from lepton_cli.data.synthetic import SyntheticDataset
from lepton_cli.model import io
from lepton_cli.tensors import TensorInfo
from tests.prune.context import redundant


def test_the_first_samples_of_a_data_set() -> None:
    whole = SyntheticDataset(io.inputs(redundant()), 0, 40, 8, {})
    part = First(whole, 10)
    assert part.count == 10
    assert part.fingerprint != whole.fingerprint
    taken = np.concatenate([batch.feeds["x"] for batch in part.batches(4)])
    every = np.concatenate([batch.feeds["x"] for batch in whole.batches(40)])
    assert np.array_equal(taken, every[:10])
    assert sum(len(batch.feeds["x"]) for batch in part.batches(4, 6)) == 6
    assert sum(len(batch.feeds["x"]) for batch in part.batches(4, 60)) == 10
    assert First(whole, 60).count == 40


@pytest.mark.parametrize("size", [1, 3, 8, 40])
def test_every_fourth_sample_and_the_others(size: int) -> None:
    rows = np.arange(22, dtype=np.float32).reshape(22, 1)
    whole = Arrays({"x": rows, "rate": 16000}, np.arange(22))
    each, rest = Slice(whole, 4), Slice(whole, 4, rest=True)
    assert (each.count, rest.count) == (6, 16)
    assert len({whole.fingerprint, each.fingerprint, rest.fingerprint}) == 3
    for part, wanted in ((each, rows[::4]), (rest, np.delete(rows, np.s_[::4], axis=0))):
        batches = list(part.batches(size))
        assert np.array_equal(np.concatenate([batch.feeds["x"] for batch in batches]), wanted)
        assert np.array_equal(np.concatenate([batch.labels["labels"] for batch in batches]), wanted[:, 0])
        assert {int(batch.feeds["rate"]) for batch in batches} == {16000}
        assert [batch.start for batch in batches] == np.cumsum([0, *(batch.count for batch in batches)])[:-1].tolist()
        assert sum(batch.count for batch in part.batches(size, 5)) == 5
        assert part.sample_hashes() == [whole.sample_hashes()[int(row)] for row in wanted[:, 0]]


def test_batches_of_a_fixed_size_stay_whole() -> None:
    rows = np.arange(24, dtype=np.float32).reshape(24, 1)
    whole = Arrays({"x": rows}, inputs=[TensorInfo("x", "float32", (4, 1))])
    each, rest = Slice(whole, 3), Slice(whole, 3, rest=True)
    assert (each.count, rest.count) == (8, 16)
    assert [batch.feeds["x"][:, 0].tolist() for batch in each.batches(2)] == [[0, 1, 2, 3], [12, 13, 14, 15]]
    assert {batch.count for batch in rest.batches()} == {4}
