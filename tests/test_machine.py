"""What this machine is, from what the system tells."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lepton_cli import machine


@pytest.fixture(autouse=True)
def _probed_again() -> Iterator[None]:
    machine.machine.cache_clear()
    yield
    machine.machine.cache_clear()


def _told(monkeypatch: pytest.MonkeyPatch, info: dict[str, str]) -> machine.Machine:
    monkeypatch.setattr(machine, "_cpuinfo", lambda: info)
    found = machine.machine()
    machine.machine.cache_clear()
    return found


@pytest.mark.parametrize(
    ("info", "instructions", "vnni", "block"),
    [
        ({"flags": "fpu avx2 avx512f avx512_vnni"}, ("avx2", "avx512f", "avx512_vnni"), ("avx512_vnni",), 16),
        ({"flags": "avx2 avx_vnni"}, ("avx2", "avx_vnni"), ("avx_vnni",), 8),
        (
            {"flags": "amx_int8 avx512_vnni avx512f"},
            ("avx512f", "avx512_vnni", "amx_int8"),
            ("amx_int8", "avx512_vnni"),
            16,
        ),
        ({"Features": "fp asimd asimddp i8mm"}, ("neon", "neon_dotprod", "i8mm"), (), 8),
        ({"flags": "fpu"}, (), (), 8),
    ],
)
def test_instruction_sets(
    monkeypatch: pytest.MonkeyPatch,
    info: dict[str, str],
    instructions: tuple[str, ...],
    vnni: tuple[str, ...],
    block: int,
) -> None:
    found = _told(monkeypatch, info)
    assert (found.instructions, found.vnni, found.vector_block) == (instructions, vnni, block)


@pytest.mark.parametrize(
    ("told", "kind"),
    [("AMD64", "x86"), ("", "x86"), ("aarch64", "arm"), ("ARM64", "arm"), ("armv7l", "arm")],
)
def test_kinds(monkeypatch: pytest.MonkeyPatch, told: str, kind: str) -> None:
    monkeypatch.setattr(machine.platform, "machine", lambda: told)
    assert _told(monkeypatch, {}).kind == kind


def test_a_name_that_says_little_gets_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    info = {"model name": "AMD EPYC", "cpu family": "25", "model": "17", "stepping": "1"}
    assert _told(monkeypatch, info).processor == "AMD EPYC (family 25, model 17, stepping 1)"
    assert _told(monkeypatch, {"model name": "Cortex"}).processor == "Cortex"


def test_this_machine_is_hashable_and_probed_once() -> None:
    assert machine.machine() is machine.machine()
    assert hash(machine.machine()) == hash(machine.machine())
    assert machine.machine().cores >= machine.usable_threads() >= 1
    assert machine.memory() > 0


def test_usable_threads_follow_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for quota, expected in ((None, 8), (2.0, 2), (0.5, 1), (16.0, 8)):
        monkeypatch.setattr(machine, "_cgroup_quota", lambda quota=quota: quota)
        assert machine.usable_threads() == expected


def test_quotas_as_the_system_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/sys/fs/cgroup/cpu.max": "150000 100000"}
    monkeypatch.setattr(machine.Path, "read_text", lambda path: files[str(path)] if str(path) in files else _missing())
    assert machine._cgroup_quota() == 1.5
    files["/sys/fs/cgroup/cpu.max"] = "max 100000"
    assert machine._cgroup_quota() is None
    del files["/sys/fs/cgroup/cpu.max"]
    files |= {"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}
    assert machine._cgroup_quota() == 0.5
    files["/sys/fs/cgroup/cpu/cpu.cfs_quota_us"] = "-1"
    assert machine._cgroup_quota() is None


def _missing() -> str:
    raise FileNotFoundError


@pytest.mark.parametrize(
    ("text", "instructions"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx_vnni\nflags\t\t: other\n", ("avx2", "avx_vnni")),
        ("Processor : x\nFeatures\t: fp asimd asimddp\n", ("neon", "neon_dotprod")),
        ("model name : none\n", ()),
        ("", ()),
    ],
)
def test_linux_tells_the_instruction_sets(
    text: str, instructions: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: text if str(self) == "/proc/cpuinfo" else "flags : avx512f")
    assert machine.machine().instructions == instructions


def test_systems_that_do_not_tell_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: _missing())
    assert machine.machine().instructions == ()
