"""Which machine means which kind of int8."""

from __future__ import annotations

import pytest

from lepton_cli.machine import Machine
from lepton_cli.quantize import targets
from lepton_cli.quantize.targets import TARGETS


def machine(monkeypatch: pytest.MonkeyPatch, kind: str, *flags: str) -> None:
    here = Machine("a processor", "arm" if kind in ("aarch64", "arm64", "ARM64", "armv7l") else "x86", flags, 2)
    monkeypatch.setattr(targets, "machine", lambda: here)


def test_the_table() -> None:
    """Name -> activations, symmetric, 7-bit weights, int8 kernels, float results."""
    table = {
        name: (one.activation, one.symmetric_activations, one.reduce_range, one.int8_kernels, one.float_outputs)
        for name, one in TARGETS.items()
    }
    assert table == {
        "x86-vnni": ("uint8", False, False, True, True),
        "x86": ("uint8", False, True, True, True),
        "arm": ("int8", True, False, True, True),
        "cuda": ("int8", True, False, False, True),
        "tensorrt": ("int8", True, False, True, False),
    }
    assert all(one.name == name and one.why for name, one in TARGETS.items())


@pytest.mark.parametrize("name", sorted(TARGETS))
@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_a_named_target_is_taken_whatever_the_machine(
    name: str, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, "aarch64")
    assert targets.resolve(name, provider) is TARGETS[name]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "name", "why"),
    [
        ((), "x86", "auto: this machine has no VNNI"),
        (("avx2", "avx512f", "avx512_bf16"), "x86", "auto: this machine has no VNNI"),
        (("avx512_vnni", "avx2"), "x86-vnni", "auto: this machine has avx512_vnni"),
        (("avx_vnni",), "x86-vnni", "auto: this machine has avx_vnni"),
        (("amx_int8",), "x86-vnni", "auto: this machine has amx_int8"),
        (
            ("avx_vnni", "amx_int8", "avx512_vnni"),
            "x86-vnni",
            "auto: this machine has amx_int8, avx512_vnni, avx_vnni",
        ),
    ],
)
def test_auto_is_this_x86_machine(flags: tuple[str, ...], name: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "x86_64", *flags)
    found = targets.resolve("auto")
    assert (found.name, found.why) == (name, f"{why}; {TARGETS[name].why}")
    assert targets.resolve("auto", "openvino") == found


@pytest.mark.parametrize("kind", ["aarch64"])
def test_auto_on_arm(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, kind, "avx_vnni")
    found = targets.resolve("auto")
    assert found.name == "arm"
    assert found.why.startswith("auto: this machine is ARM; ")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
@pytest.mark.parametrize("kind", ["x86_64", "aarch64"])
def test_auto_is_the_gpu_where_that_is_measured(provider: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, kind, "avx_vnni")
    found = targets.resolve("auto", provider)
    assert found.name == provider
    assert found.why.startswith(f"auto: measured on provider `{provider}`; ")


@pytest.mark.parametrize(
    ("kind", "flags", "runs"),
    [
        ("x86_64", ("avx_vnni",), {"x86-vnni", "x86"}),
        ("x86_64", ("amx_int8",), {"x86-vnni", "x86"}),
        ("x86_64", ("avx2",), {"x86"}),
        ("aarch64", (), {"arm"}),
    ],
)
def test_speed_here_speaks_for_some_targets_only(
    kind: str, flags: tuple[str, ...], runs: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, kind, *flags)
    reasons = {name: targets.runs_here(target) for name, target in TARGETS.items()}
    assert {name for name, reason in reasons.items() if reason is None} == runs
    for name in ("cuda", "tensorrt"):
        assert reasons[name] == f"target `{name}` is not the CPU the model was measured on"
    if kind == "aarch64":
        assert reasons["x86"] == "this machine is arm, not x86: its speed cannot be measured here"
    else:
        assert reasons["arm"] == "this machine is x86, not arm: its speed cannot be measured here"
    if "avx2" in flags:
        assert "no VNNI" in (reasons["x86-vnni"] or "")
