"""Which counters are read, on processors and devices, and what happens when they begin again or cannot be read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lepton_cli.measure import doctor, memory_worker, meters, nvml

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
    meter = meters.processor(tree)
    assert meter is not None
    assert [domain.name for domain in meter.domains] == ["package-0", "dram", "package-1"]
    for folder in TREE:
        (tree / folder / "energy_uj").write_text("500000\n")
    assert meter.read() == pytest.approx(0.3)


def test_a_counter_that_begins_again_goes_on(tree: Path) -> None:
    meter = meters.processor(tree)
    assert meter is not None
    (tree / "intel-rapl:0" / "energy_uj").write_text("100000\n")
    assert meter.read() == pytest.approx(0.7)
    (tree / "intel-rapl:0" / "energy_uj").write_text("200000\n")
    assert meter.read() == pytest.approx(0.8)


def test_a_machine_without_a_meter(tmp_path: Path) -> None:
    assert meters.processor(tmp_path) is None
    assert meters.processor(tmp_path / "missing") is None


def test_a_meter_that_only_root_reads_says_what_to_do(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text

    def guarded(path: Path) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_text", guarded)
    with pytest.raises(meters.Unreadable, match=r"sudo chmod a\+r .*energy_uj"):
        meters.processor(tree)
    monkeypatch.setattr(meters.processor, "__defaults__", (tree,))
    (check,) = doctor._energy()
    assert (check.status, check.fix[:4]) == ("warn", "sudo")


def test_a_counter_without_a_range_is_unreadable(tree: Path) -> None:
    """Its beginning again at zero would be a negative amount of energy."""
    (tree / "intel-rapl:0" / "max_energy_range_uj").unlink()
    with pytest.raises(meters.Unreadable, match="begins again"):
        meters.processor(tree)


def test_a_meter_that_goes_away_is_unreadable(tree: Path) -> None:
    counter = meters.processor(tree)
    assert counter is not None
    (tree / "intel-rapl:0" / "energy_uj").unlink()
    with pytest.raises(meters.Unreadable, match="cannot be read"):
        counter.read()


def test_a_counter_that_cannot_be_understood_is_unreadable(tree: Path) -> None:
    (tree / "intel-rapl:0" / "energy_uj").write_text("much\n")
    with pytest.raises(meters.Unreadable):
        meters.processor(tree)


class DriverError(Exception):
    """What NVML raises."""


@pytest.fixture(name="driver")
def _driver(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Two devices that have used 5 and 7 joules, with 1 and 2 MB in use."""
    handles = {0: 5_000, 1: 7_000}
    library = SimpleNamespace(
        NVMLError=DriverError,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetHandleByUUID=lambda name: {"GPU-b": 1}[name],
        nvmlDeviceGetName=lambda handle: f"device {handle}",
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: handles[handle],
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=(handle + 1) * 1_000_000),
        handles=handles,
    )
    monkeypatch.setattr(nvml, "_library", lambda: library)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return library


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "CUDAExecutionProvider"])
def test_joules_of_a_device(driver: SimpleNamespace, provider: str) -> None:
    meter = meters.of(provider)
    assert meter is not None
    assert [counter.name for counter in meter.domains] == ["device 0"]
    driver.handles[0] += 250
    assert meter.read() == pytest.approx(0.25)


@pytest.mark.parametrize(("visible", "device"), [("1", "device 1"), ("GPU-b,0", "device 1"), ("0,1", "device 0")])
def test_the_device_is_the_first_that_cuda_may_see(
    driver: SimpleNamespace, visible: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = nvml.first()
    assert found is not None
    assert found.name == device


@pytest.mark.parametrize("visible", ["", "-1"])
def test_no_device_may_be_seen(driver: SimpleNamespace, visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert nvml.first() is None
    assert meters.of("cuda") is None


def test_memory_of_a_device(driver: SimpleNamespace) -> None:
    assert memory_worker.device_memory() == 1_000_000


def test_a_driver_that_refuses_is_unreadable(driver: SimpleNamespace) -> None:
    def refuse(handle: int) -> int:
        raise DriverError("Not Supported")

    driver.nvmlDeviceGetTotalEnergyConsumption = refuse
    with pytest.raises(meters.Unreadable, match="Not Supported"):
        meters.of("cuda")
    driver.nvmlDeviceGetMemoryInfo = refuse
    assert memory_worker.device_memory() is None


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml._library.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    with pytest.raises(meters.Unreadable, match=r"lepton-cli\[gpu\]"):
        meters.of("cuda")
    assert memory_worker.device_memory() is None


def test_other_providers_have_no_meter() -> None:
    assert meters.of("coreml") is None
