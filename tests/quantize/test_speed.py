"""A decision that was measured once is not measured again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from lepton_cli.model import io
from lepton_cli.quantize import choose, speed
from tests.quantize import builders


def test_the_second_run_decides_the_same_without_measuring(tmp_path: Path) -> None:
    model = builders.residual_net()
    io.name_nodes(model)
    context = builders.context(builders.Samples(x=np.zeros((1, 3, 8, 8), np.float32)), tmp_path, cache=tmp_path)
    choice = choose.candidates(model, {node.name or "" for node in model.graph})
    slow = sorted(choice.anchors)[:1]
    calls = []

    def measure() -> speed.Decided:
        calls.append(1)
        return choice.without(slow, "slower in int8", model), {"speedup": 1.5, "returned": slow}

    first, measured = speed.decided_once(model, choice, "x86-vnni", "int8", context, measure)
    second, again = speed.decided_once(model, choice, "x86-vnni", "int8", context, measure)
    assert len(calls) == 1
    assert first == second
    assert measured == again
    speed.decided_once(model, choice, "arm", "int8", context, measure)
    assert len(calls) == 2
    speed.decided_once(model, choice, "arm", "int16", context, measure)
    assert len(calls) == 3
    longer = builders.Samples(x=np.zeros((2, 3, 8, 8), np.float32))
    longer.fingerprint = "longer"
    speed.decided_once(model, choice, "arm", "int8", dataclasses.replace(context, calibration=longer), measure)
    assert len(calls) == 4


def test_a_damaged_note_is_measured_again(tmp_path: Path) -> None:
    model = builders.residual_net()
    io.name_nodes(model)
    context = builders.context(builders.Samples(x=np.zeros((1, 3, 8, 8), np.float32)), tmp_path, cache=tmp_path)
    choice = choose.candidates(model, {node.name or "" for node in model.graph})
    for _ in range(2):
        speed.decided_once(model, choice, "x86-vnni", "int8", context, lambda: (choice, {"speedup": 1.0}))
        (note,) = tmp_path.glob("speed-*.npz")
        note.write_text("{")
