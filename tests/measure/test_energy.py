"""Energy: which counters are read, what happens when they begin again, and joules per inference."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import pytest

from lepton_cli import units
from lepton_cli.measure import doctor, energy
from lepton_cli.measure.spec import LatencySpec
from tests.measure import builders

#: As the kernel numbers them: two packages with their parts, and the whole board.
TREE = {
    "intel-rapl:0": "package-0",
    "intel-rapl:0:0": "core",
    "intel-rapl:0:1": "dram",
    "intel-rapl:1": "package-1",
    "intel-rapl:2": "psys",
    "intel-rapl-mmio:0": "package-0",
}
RANGE = 1_000_000


@pytest.fixture(name="tree")
def _tree(tmp_path: Path) -> Path:
    for folder, name in TREE.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "name").write_text(f"{name}\n")
        (tmp_path / folder / "energy_uj").write_text("400000\n")
        (tmp_path / folder / "max_energy_range_uj").write_text(f"{RANGE}\n")
    return tmp_path


def test_packages_and_their_memory_are_counted_once(tree: Path) -> None:
    meter = energy.meter(tree)
    assert meter is not None
    assert [domain.name for domain in meter.domains] == ["package-0", "dram", "package-1"]
    for folder in TREE:
        (tree / folder / "energy_uj").write_text("500000\n")
    assert meter.read() == pytest.approx(0.3)


def test_a_counter_that_begins_again_goes_on(tree: Path) -> None:
    meter = energy.meter(tree)
    assert meter is not None
    (tree / "intel-rapl:0" / "energy_uj").write_text("100000\n")
    assert meter.read() == pytest.approx(0.7)
    (tree / "intel-rapl:0" / "energy_uj").write_text("200000\n")
    assert meter.read() == pytest.approx(0.8)


def test_a_machine_without_a_meter(tmp_path: Path) -> None:
    assert energy.meter(tmp_path) is None
    assert energy.meter(tmp_path / "missing") is None


def test_a_meter_that_only_root_reads_says_what_to_do(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text

    def guarded(path: Path) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_text", guarded)
    with pytest.raises(energy.Unreadable, match=r"sudo chmod a\+r .*energy_uj"):
        energy.meter(tree)
    monkeypatch.setattr(energy, "POWERCAP", tree)
    monkeypatch.setattr(energy.meter, "__defaults__", (tree,))
    check = doctor._energy()
    assert (check.status, check.fix[:4]) == ("warn", "sudo")


def test_a_counter_without_a_range_is_unreadable(tree: Path) -> None:
    """Its beginning again at zero would be a negative amount of energy."""
    (tree / "intel-rapl:0" / "max_energy_range_uj").unlink()
    with pytest.raises(energy.Unreadable, match="begins again"):
        energy.meter(tree)


def test_a_meter_that_goes_away_is_unreadable(tree: Path) -> None:
    counter = energy.meter(tree)
    assert counter is not None
    (tree / "intel-rapl:0" / "energy_uj").unlink()
    with pytest.raises(energy.Unreadable, match="cannot be read"):
        counter.read()


def test_a_counter_that_cannot_be_understood_is_unreadable(tree: Path) -> None:
    (tree / "intel-rapl:0" / "energy_uj").write_text("much\n")
    with pytest.raises(energy.Unreadable):
        energy.meter(tree)


class Steady(energy.Meter):
    """Ten watts, whatever happens."""

    def __init__(self) -> None:
        self.domains = (energy.Domain("package-0", Path(), 1.0),)

    def read(self) -> float:
        return 10 * perf_counter()


def test_joules_per_sample_follow_the_work() -> None:
    arms = {"original": builders.chain(12, 256), "compressed": builders.chain(1, 8)}
    feeds = {"original": np.ones((4, 256), np.float32)}["original"]
    spec = LatencySpec(batch=(4,), threads=1, time=units.Seconds(0.5))
    names = {"original": {"x": "wide"}, "compressed": {"x": "narrow"}}
    found = energy.compare(
        arms, lambda batch: {"wide": feeds, "narrow": feeds[:, :8]}, spec, Steady(), input_names=names
    )
    before, after = found.results
    assert found.domains == ("package-0",)
    assert found.idle_watts == pytest.approx(10, rel=0.01)
    # At a steady ten watts nothing is above rest, and energy is time.
    assert before.watts == pytest.approx(10, rel=0.01)
    assert before.above_idle < 0.05 * before.joules
    assert after.joules < before.joules
    assert found.changes[0].ratio == pytest.approx(after.joules / before.joules, rel=0.5)
    assert found.changes[0].high < 1


class Working(energy.Meter):
    """Five watts at rest; twenty more while a thread of this process works."""

    def __init__(self) -> None:
        self.domains = (energy.Domain("package-0", Path(), 1.0),)

    def read(self) -> float:
        return 5 * perf_counter() + 20 * process_time()


def test_what_is_above_rest_is_the_works_own() -> None:
    model = builders.chain(12, 256)
    spec = LatencySpec(batch=(4,), threads=1, time=units.Seconds(0.5))
    found = energy.compare(
        {"original": model, "compressed": model}, lambda batch: {"x": np.ones((4, 256), np.float32)}, spec, Working()
    )
    assert found.idle_watts == pytest.approx(5, rel=0.1)
    for result in found.results:
        assert result.watts == pytest.approx(25, rel=0.1)
        assert result.above_idle == pytest.approx(0.8 * result.joules, rel=0.05)
        assert result.n > 100


def test_a_counter_that_stands_still_gives_no_numbers() -> None:
    class Still(Steady):
        def read(self) -> float:
            return 1.0

    model = builders.chain(1, 8)
    spec = LatencySpec(threads=1, time=units.Seconds(0.05))
    found = energy.compare(
        {"original": model, "compressed": model}, lambda batch: {"x": np.ones((1, 8), np.float32)}, spec, Still()
    )
    assert found.results == ()
