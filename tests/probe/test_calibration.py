"""Streaming calibration: what is counted, in which batches, and what is kept between runs."""

import inspect
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto

from lepton_cli.data.dataset import Batch, Slice
from lepton_cli.data.memory import Arrays
from lepton_cli.errors import DataError
from lepton_cli.probe import calibration
from lepton_cli.probe.calibration import Ranges, collect
from lepton_cli.probe.histogram import Histogram
from lepton_cli.runtime import Session
from tests.quantize.builders import Graph, Scalars, Told, WithConstants, context


class Asked(Arrays):
    """Samples that remember the batch sizes they were asked for, and the samples handed out."""

    def __init__(self, feeds: dict[str, np.ndarray]) -> None:
        super().__init__(feeds)
        self.sizes: list[int | None] = []
        self.starts: list[int] = []

    def batches(self, size: int | None = None, limit: int | None = None) -> Iterator[Batch]:
        self.sizes.append(size)
        for batch in super().batches(size, limit):
            self.starts.append(batch.start)
            yield batch


def net(batch: int | str = "b", width: int = 4) -> ir.Model:
    """`t0` = -2 x, `t1` = relu(t0); input `x` [batch, width]."""
    graph = Graph()
    y = graph.op("Mul", graph.take("x", [batch, width]), graph.constant(np.float32(-2)))
    return graph.model(graph.op("Relu", y))


def data(count: int = 10, width: int = 4, seed: int = 0) -> Asked:
    return Asked({"x": np.random.default_rng(seed).normal(0, 1, (count, width)).astype(np.float32)})


def counted(values: np.ndarray) -> list[int]:
    """Counts by the upper 16 bits."""
    return np.bincount(np.ascontiguousarray(values).view(np.uint32).ravel() >> 16, minlength=1 << 16).tolist()


def same(histogram: Histogram, values: np.ndarray) -> bool:
    ends = (float(values.min()), float(values.max()))
    return histogram.counts.tolist() == counted(values) and (histogram.low, histogram.high) == ends


def test_inputs_and_inner_tensors_are_counted_over_all_samples(tmp_path: Path) -> None:
    samples, told = data(), Told()
    found = collect(net(), ["x", "t0", "t1"], samples, context(samples, tmp_path, progress=told))
    x = samples.feeds["x"]
    assert list(found.histograms) == ["x", "t0", "t1"]
    assert same(found.histograms["x"], x)
    assert same(found.histograms["t0"], -2 * x)
    assert found.histograms["t1"].counts.sum() == x.size
    assert (found.histograms["t1"].low, found.histograms["t1"].high) == (0, float((-2 * x).max()))
    assert found.samples == 10
    assert told.stages == [("calibration", 10)]
    assert told.counts == [0, 10]
    assert told.notes == ["3 tensors, 10 samples"]


def test_ranges_of_two_halves_are_those_of_all_samples(tmp_path: Path) -> None:
    samples = data(12)
    here, x = context(samples, tmp_path), samples.feeds["x"]
    halves = [collect(net(), ["x", "t0"], Slice(samples, 3, rest=rest), here) for rest in (False, True)]
    assert same(halves[0].histograms["x"], x[::3])
    found = halves[0]
    found.join(halves[1])
    assert same(found.histograms["x"], x)
    assert same(found.histograms["t0"], -2 * x)
    assert (found.samples, found.bounds) == (12, {"t0": (0.0, np.inf)})


def test_inputs_alone_need_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = data()
    monkeypatch.setattr(Session, "run", lambda *_: pytest.fail("the model was run"))
    assert same(collect(net(), ["x"], samples, context(samples, tmp_path)).histograms["x"], samples.feeds["x"])


def test_whole_numbers_are_not_counted(tmp_path: Path) -> None:
    graph = Graph()
    whole = graph.take("x", ["b", 4], TensorProto.INT64)
    model = graph.model(graph.op("Cast", graph.op("Neg", whole), to=TensorProto.FLOAT))
    samples = Arrays({"x": np.arange(8, dtype=np.int64).reshape(2, 4)})
    found = collect(model, ["x", "t0", "t1"], samples, context(samples, tmp_path))
    assert [name for name, one in found.histograms.items() if one.empty] == ["x", "t0"]
    assert found.histograms["t1"].low == -7


def test_limits_leave_out_what_was_never_seen() -> None:
    seen, empty, masked = Histogram(), Histogram(), Histogram()
    seen.add(np.float32([-1, 3]))
    masked.add(np.float32([-np.inf, 2, -3.4e38]))
    found = Ranges({"seen": seen, "empty": empty, "masked": masked}, 1)
    assert found.limits("minmax") == {"seen": (-1, 3), "masked": (0, 2)}
    assert found.masked() == {"masked": 2}


def test_limits_pass_on_method_and_levels() -> None:
    histogram = Histogram()
    histogram.add(np.random.default_rng(0).laplace(size=5000).astype(np.float32))
    found = Ranges({"x": histogram}, 1)
    made = {(method, levels): found.limits(method, levels)["x"] for method in ("minmax", "mse") for levels in (16, 256)}
    assert made["minmax", 16] == made["minmax", 256] == (histogram.low, histogram.high)
    assert made["mse", 16][1] < made["mse", 256][1] <= histogram.high
    assert found.limits("mse")["x"] == made["mse", 256]
    assert inspect.signature(Ranges.limits).parameters["levels"].default == 256


@pytest.mark.parametrize(
    ("working_set", "size"),
    # 32 bytes a sample in t0 and t1.
    [(32 * 5, 5), (32 * 6 - 1, 5), (32 * 33, 32), (32 * 31, 31), (1, 1), (10**9, 32)],
)
def test_batches_fit_the_working_set(
    working_set: int, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "WORKING_SET", working_set)
    samples = data(40)
    found = collect(net(), ["x", "t0", "t1"], samples, context(samples, tmp_path))
    assert samples.sizes == [1, size]
    assert found.samples == 40


def test_a_fixed_batch_is_measured_by_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    true = calibration.batches

    def batches(model: ir.Model, samples: Asked, size: int) -> Iterator[Batch]:
        sizes.append(size)
        return true(model, samples, size)

    monkeypatch.setattr(calibration, "batches", batches)
    monkeypatch.setattr(calibration, "WORKING_SET", 32 * 7)
    samples = data(40)
    collect(net(4), ["t0", "t1"], samples, context(samples, tmp_path))
    assert sizes == [1, 7]


def test_data_that_fit_nowhere_are_an_error(tmp_path: Path) -> None:
    samples = data(10)
    with pytest.raises(DataError, match="no batch of `arrays` fits the model") as raised:
        collect(net(20), ["x"], samples, context(samples, tmp_path))
    assert raised.value.code == "data.empty"


def test_samples_are_counted_by_the_longest_input(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.take("x", ["b", 4])
    model = graph.model(graph.op("Mul", graph.op("Mul", x, graph.take("one", [1])), graph.take("two", [])))
    constants = {"one": np.ones(1, np.float32), "two": np.array(2, np.float32)}
    samples, told = WithConstants(constants, x=data().feeds["x"]), Told()
    found = collect(model, ["t1"], samples, context(samples, tmp_path, progress=told))
    assert found.samples == 10
    assert told.counts == [0, 10]


def test_a_batch_without_any_axis_is_one_sample(tmp_path: Path) -> None:
    graph = Graph()
    model = graph.model(graph.op("Relu", graph.take("x", [])))
    samples = Scalars({"x": np.float32([1, 2, 3])})
    assert collect(model, ["x"], samples, context(samples, tmp_path)).samples == 3


def kept(model: ir.Model, names: Sequence[str], samples: Arrays, tmp_path: Path, cache: str = "cache") -> Ranges:
    return collect(model, names, samples, context(samples, tmp_path, cache=tmp_path / cache))


def test_kept_ranges_are_read_instead_of_the_data(tmp_path: Path) -> None:
    first, second = data(), data()
    before = kept(net(), ["x", "t0"], first, tmp_path)
    after = kept(net(), ["x", "t0"], second, tmp_path)
    assert after.samples == 10
    for name in ("x", "t0"):
        assert np.array_equal(after.histograms[name].counts, before.histograms[name].counts)
        assert after.histograms[name].low == before.histograms[name].low
        assert after.histograms[name].high == before.histograms[name].high
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_another_model_other_data_and_other_tensors_are_kept_apart(tmp_path: Path) -> None:
    kept(net(), ["x"], data(), tmp_path)
    graph = Graph()
    other = graph.model(graph.op("Mul", graph.take("x", ["b", 4]), graph.constant(np.float32(3))))
    files = [len(list((tmp_path / "cache").iterdir()))]
    for model, names, samples in (
        (net(), ["t0"], data()),
        (net(), ["x", "t0"], data()),
        (net(), ["t0", "x"], data()),
        (net(), ["x"], data(seed=1)),
        (other, ["x"], data()),
    ):
        found = kept(model, names, samples, tmp_path)
        assert same(found.histograms["x"], samples.feeds["x"]) if "x" in names else found.histograms["t0"].low
        files.append(len(list((tmp_path / "cache").iterdir())))
    assert files == [1, 2, 3, 4, 5, 6]


def test_a_killed_run_resumes_behind_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "WORKING_SET", 16 * 3)  # batches of three samples
    monkeypatch.setattr(calibration, "_SAVE_SECONDS", -1.0)  # saved after each batch
    samples, told = data(), Told()

    class Killed(Arrays):
        def batches(self, size: int | None = None, limit: int | None = None) -> Iterator[Batch]:
            for batch in super().batches(size, limit):
                if batch.start == 6:
                    raise KeyboardInterrupt
                yield batch

    with pytest.raises(KeyboardInterrupt):
        kept(net(), ["t0"], Killed({"x": samples.feeds["x"]}), tmp_path)
    found = collect(net(), ["t0"], samples, context(samples, tmp_path, cache=tmp_path / "cache", progress=told))
    assert told.counts == [6, 3, 1]
    assert found.samples == 10
    assert same(found.histograms["t0"], -2 * samples.feeds["x"])


@pytest.mark.parametrize(
    ("seconds", "saves"), [([0, 19.5, 40, 50, 61], 3), ([0, 20, 21, 41, 42], 3), ([0, 20, 20, 20, 20], 1)]
)
def test_ranges_are_saved_every_twenty_seconds_and_at_the_end(
    seconds: list[float], saves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "WORKING_SET", 16 * 3)
    count = 0
    true = calibration._Store.save

    def save(store: calibration._Store, found: Ranges) -> None:
        nonlocal count
        count += 1
        true(store, found)

    clock = iter(seconds)
    now = [0.0]

    def monotonic() -> float:
        return now[0]

    class Slow(Arrays):
        def batches(self, size: int | None = None, limit: int | None = None) -> Iterator[Batch]:
            for batch in super().batches(size, limit):
                if size != 1:
                    now[0] = float(next(clock))
                yield batch

    next(clock)
    monkeypatch.setattr(calibration._Store, "save", save)
    monkeypatch.setattr(time, "monotonic", monotonic)
    samples = Slow({"x": data(12).feeds["x"]})
    kept(net(), ["t0"], samples, tmp_path)
    assert count == saves


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", b"\x93NUMPY\x01\x00v\x00{}"])
def test_broken_files_are_passed_over(content: bytes, tmp_path: Path) -> None:
    samples = data()
    kept(net(), ["x"], samples, tmp_path)
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    for broken in (content, whole[: len(whole) // 2]):
        file.write_bytes(broken)
        told = Told()
        again = context(data(), tmp_path, cache=tmp_path / "cache", progress=told)
        found = collect(net(), ["x"], data(), again)
        assert same(found.histograms["x"], samples.feeds["x"])
        assert found.samples == 10
        assert told.counts == [0, 10]


def test_pickled_objects_are_not_read(tmp_path: Path) -> None:
    kept(net(), ["x"], data(), tmp_path)
    (file,) = (tmp_path / "cache").iterdir()
    with np.load(file) as arrays:
        copied = {**arrays, "samples": np.array(10, dtype=object)}
    with file.open("wb") as stream:
        np.savez(stream, **copied)
    told = Told()
    collect(net(), ["x"], data(), context(data(), tmp_path, cache=tmp_path / "cache", progress=told))
    assert told.counts == [0, 10]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    kept(net(), ["x"], data(), tmp_path, "some/where")
    assert len(list((tmp_path / "some" / "where").iterdir())) == 1


def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file stands here")
    samples = data()
    assert kept(net(), ["x"], samples, tmp_path).samples == 10
    assert (tmp_path / "cache").read_text() == "a file stands here"


def test_an_unfinished_file_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(stream: object, **arrays: np.ndarray) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez_compressed", full)
    assert kept(net(), ["x"], data(), tmp_path).samples == 10
    assert list((tmp_path / "cache").iterdir()) == []
