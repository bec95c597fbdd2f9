"""A choice that was measured once is not measured again, until something changes that it depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.cache import Cache
from lepton_cli.data.memory import Arrays
from lepton_cli.machine import machine
from lepton_cli.model import io
from lepton_cli.quantize import choose, speed
from lepton_cli.quantize.choose import Choice
from lepton_cli.quantize.details import Returned, Speed
from lepton_cli.quantize.targets import TARGETS, Target
from lepton_cli.step import Context
from tests.quantize.builders import Graph, context, mlp


@dataclasses.dataclass
class Asked:
    """What is decided about, and how often it was measured."""

    model: ir.Model
    choice: Choice
    target: Target
    context: Context
    calls: int = 0
    activations: str = "int8"
    prefixes: tuple[int, ...] = (1, 2)
    prefer: str = "speed"
    drop: tuple[tuple[str, str], ...] = (("Gemm_0", "slower in int8"), ("MatMul_2", "no kernel"))

    def measure(self) -> speed.Decided:
        self.calls += 1
        choice = self.choice
        for name, reason in self.drop:
            choice = choice.without([name], reason, self.model)
        returned = tuple(Returned(nodes=(name,), gain=1.1) for name, _ in self.drop)
        return choice, Speed(speedup=float(self.calls), returned=returned)

    def decide(self) -> speed.Decided:
        return speed.decided_once(
            self.model,
            self.choice,
            self.target.name,
            self.activations,
            self.context,
            self.measure,
            self.prefixes,
            self.prefer,
        )


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    graph = Graph()
    x = graph.op("Sigmoid", graph.linear(graph.take("x", ["b", 32]), 32, 32))
    x = graph.op("Tanh", graph.op("MatMul", x, graph.constant(np.eye(32, dtype=np.float32))))
    model = graph.model(graph.linear(x, 32, 32))
    choice = choose.candidates(model, {node.name or "" for node in model.graph})
    data = Arrays({"x": np.zeros((1, 32), np.float32)})
    data.fingerprint = "data"
    return Asked(model, choice, TARGETS["x86"], context(data, tmp_path, cache=tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()


def stored(note: Path) -> dict[str, Any]:
    found = Cache(note.parent).get(*note.stem.split("-"))
    assert found is not None
    return found


def notes(asked: Asked) -> list[Path]:
    assert asked.context.cache.folder is not None
    return sorted(asked.context.cache.folder.iterdir())


def test_the_second_run_decides_the_same_without_measuring(asked: Asked) -> None:
    first = asked.decide()
    assert first[0].anchors == {"Gemm_4"}
    assert first[0].between == frozenset(), "the region has shrunk"
    assert [(one.node, one.reason) for one in first[0].kept] == [*asked.drop]
    assert asked.decide() == first
    assert asked.calls == 1


def test_layers_that_were_float_before_are_not_dropped_again(asked: Asked) -> None:
    asked.choice = asked.choice.without(["MatMul_2"], "no kernel", asked.model)
    asked.drop = (("Gemm_0", "no kernel"),)
    first = asked.decide()
    (note,) = notes(asked)
    assert stored(note)["dropped"] == {"no kernel": ["Gemm_0"]}
    assert asked.decide() == first


def test_several_layers_of_one_reason_are_all_kept(asked: Asked) -> None:
    asked.drop = (("Gemm_0", "slow"), ("Gemm_4", "slow"))
    first = asked.decide()
    assert first[0].anchors == {"MatMul_2"}
    assert asked.decide() == first
    assert asked.calls == 1


def _weights(asked: Asked) -> None:
    value = asked.model.graph.initializers["w0"]
    changed = value.const_value.numpy().copy()  # type: ignore[union-attr]
    changed[0] += 1
    value.const_value = ir.tensor(changed, name="w0")


def _fingerprint(asked: Asked) -> None:
    other = Arrays({"x": np.zeros((1, 32), np.float32)})
    other.fingerprint = "other"
    asked.context = dataclasses.replace(asked.context, calibration=other)


def _context(**options: Any) -> Callable[[Asked], None]:
    def change(asked: Asked) -> None:
        asked.context = dataclasses.replace(asked.context, **options)

    return change


def _choice(asked: Asked) -> None:
    asked.choice = asked.choice.without(["Gemm_4"], "left out", asked.model)


def _target(asked: Asked) -> None:
    asked.target = TARGETS["x86-vnni"]


CHANGES: dict[str, Callable[[Asked], None]] = {
    "model": _weights,
    "choice": _choice,
    "target": _target,
    "activations": lambda asked: setattr(asked, "activations", "int16"),
    "prefixes": lambda asked: setattr(asked, "prefixes", (1, 2, 3)),
    "prefer": lambda asked: setattr(asked, "prefer", "balance"),
    "provider": _context(provider="openvino"),
    "batch": _context(batch=2),
    "threads": _context(threads=2),
    "data": _fingerprint,
    "no data": _context(calibration=None),
}


@pytest.mark.parametrize("part", CHANGES)
def test_anything_that_speed_depends_on_is_a_part_of_the_key(part: str, asked: Asked) -> None:
    asked.decide()
    CHANGES[part](asked)
    asked.decide()
    assert asked.calls == 2
    assert len(notes(asked)) == 2
    asked.decide()
    assert asked.calls == 2


def test_another_machine_is_measured_again(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    asked.decide()
    other = dataclasses.replace(machine(), processor="another")
    monkeypatch.setattr(speed, "machine", lambda: other)
    asked.decide()
    assert asked.calls == 2


def test_what_speed_does_not_depend_on_is_not(asked: Asked) -> None:
    """The order in which sets give their members least of all."""
    asked.decide()
    asked.context = dataclasses.replace(asked.context, seed=5, check=None)
    asked.choice = dataclasses.replace(asked.choice, anchors=frozenset(sorted(asked.choice.anchors, reverse=True)))
    asked.decide()
    assert asked.calls == 1


def test_a_damaged_note_is_measured_and_written_again(asked: Asked) -> None:
    asked.decide()
    (note,) = notes(asked)
    note.write_text("{")
    asked.decide()
    assert asked.calls == 2
    assert notes(asked) == [note]
    assert stored(note)["measured"]["speedup"] == 2.0


@pytest.mark.parametrize(("limit", "kept"), [(0, 0), (1, 1)])
def test_models_beyond_protobuf_are_measured_each_time(
    limit: int, kept: int, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their bytes cannot be hashed in one piece."""
    monkeypatch.setattr(io, "EXTERNAL_ABOVE", io.weight_bytes(asked.model) + limit)
    asked.decide()
    asked.decide()
    assert asked.calls == 2 - kept
    assert len(notes(asked)) == kept


def test_a_model_is_known_by_its_bytes_not_by_its_object(asked: Asked) -> None:
    asked.decide()
    asked.model = io.clone(asked.model)
    asked.decide()
    assert asked.calls == 1
    asked.model = mlp()
    asked.drop = ()
    asked.decide()
    assert asked.calls == 2
