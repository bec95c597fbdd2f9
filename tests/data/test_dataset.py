"""A part of a data set."""

from __future__ import annotations

import numpy as np

from lepton_cli.data.dataset import First
from lepton_cli.data.synthetic import SyntheticDataset
from lepton_cli.model import io
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
