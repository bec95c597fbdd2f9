"""Running all models over a data set: fixed batches, scalar inputs, models that fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lepton_cli.data.dataset import Batch
from lepton_cli.data.memory import Arrays
from lepton_cli.data.open import open_dataset
from lepton_cli.data.spec import DataSpec
from lepton_cli.errors import LeptonError, MeasurementError
from lepton_cli.measure import stream
from lepton_cli.model import io
from lepton_cli.runtime import Session
from tests.coupling.networks import Network
from tests.measure import builders

SAME = builders.identity("N, 3")
DATA = Arrays({"x": np.arange(30, dtype=np.float32).reshape(10, 3)}, {"labels": np.arange(10)}, batch=7)


def test_batches_come_in_order_with_their_labels() -> None:
    found = list(stream.run({"a": SAME, "b": SAME}, DATA))
    assert [(r.start, r.count) for r in found] == [(0, 7), (7, 3)]
    assert np.concatenate([r.labels["labels"] for r in found]).tolist() == list(range(10))
    for arm in ("a", "b"):
        assert np.array_equal(np.concatenate([r.outputs[arm]["y"] for r in found]), DATA.feeds["x"])


def test_the_last_batch_of_a_fixed_model_is_filled_up_and_cut() -> None:
    found = list(stream.run({"a": builders.identity("4, 3")}, DATA))
    assert [(r.start, r.count) for r in found] == [(0, 4), (4, 4), (8, 2)]
    assert np.array_equal(np.concatenate([r.outputs["a"]["y"] for r in found]), DATA.feeds["x"])


def test_only_the_first_samples() -> None:
    assert sum(r.count for r in stream.run({"a": SAME}, DATA, limit=5)) == 5


def test_inputs_that_are_single_values() -> None:
    """A sample rate beside the sound: the count comes from the sound."""
    model = builders.model(
        "g (int64 rate, float[N, 3] x) => (float[N, 3] y) { r = Cast <to = 1> (rate) y = Mul (x, r) }"
    )

    class Scalar(Arrays):
        def batches(self, size=None, limit=None):  # type: ignore[no-untyped-def]
            for batch in super().batches(size, limit):
                batch.feeds["rate"] = np.array(2)
                yield Batch({"rate": batch.feeds["rate"], "x": batch.feeds["x"]}, {}, batch.start)

    found = list(stream.run({"a": model}, Scalar(DATA.feeds, batch=7)))
    assert [r.count for r in found] == [7, 3]


def test_failures_name_the_model() -> None:
    narrow = builders.identity("N, 4")
    with pytest.raises(MeasurementError, match="`b` cannot be run"):
        list(stream.run({"a": SAME, "b": narrow}, DATA))
    with pytest.raises(LeptonError) as caught:
        list(stream.run({"a": SAME, "b": b"nothing"}, DATA))
    assert caught.value.note == "while loading `b`"


def test_inputs_and_outputs_that_do_not_match() -> None:
    other = builders.model("g (float[N, 3] z) => (float[N, 3] y) { y = Identity (z) }")
    with pytest.raises(MeasurementError, match="nothing is fed to model input `z`"):
        list(stream.run({"a": SAME, "b": other}, DATA))
    assert len(list(stream.run({"a": SAME, "b": other}, DATA, input_names={"b": {"z": "x"}}))) == 2
    two = builders.model("g (float[N, 3] x) => (float[N, 3] p, float[N, 3] q) { p = Identity (x) q = Identity (x) }")
    with pytest.raises(MeasurementError, match="outputs y against p, q"):
        list(stream.run({"a": SAME, "b": two}, DATA))


def test_feeds_of_samples_that_only_the_graph_shows_stay_whole(tmp_path: Path) -> None:
    """Time first, three sequences a feed, all sizes fixed: a session knows no axis of samples."""
    graph = Network()
    frames, state = graph.input("frames", 7, 3, 5), graph.input("state", 1, 3, 4)
    weights = [graph.weight(1, 12, 5), graph.weight(1, 12, 4)]
    output = graph.node("Squeeze", graph.node("GRU", frames, *weights, "", "", state, hidden_size=4), graph.literal(1))
    model = graph.model(output)
    path = tmp_path / "load.py"
    path.write_text(
        "import numpy as np\n\ndef feeds(path):\n    for seed in range(2):\n"
        "        random = np.random.default_rng(seed)\n"
        "        yield {'frames': random.normal(size=(7, 3, 5)).astype('f'), "
        "'state': random.normal(size=(1, 3, 4)).astype('f')}\n"
    )
    spec = DataSpec.model_validate({"path": ".", "loader": "load.py:feeds"})
    data = open_dataset(spec, io.inputs(model), name="evaluation", base=tmp_path, allow_code=True)
    assert (data.count, data.fixed_batch) == (6, 3)
    found = list(stream.run({"a": io.to_bytes(model)}, data))
    session = Session(io.to_bytes(model), threads=1)
    for seed, results in enumerate(found):
        random = np.random.default_rng(seed)
        feed = {
            "frames": random.normal(size=(7, 3, 5)).astype("f"),
            "state": random.normal(size=(1, 3, 4)).astype("f"),
        }
        np.testing.assert_array_equal(results.outputs["a"][output], session.run(feed)[output])
    assert [results.count for results in found] == [3, 3]
