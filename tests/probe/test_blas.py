"""The threads of numpy's products, as the library itself tells their number."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lepton_cli.data.memory import Arrays
from lepton_cli.probe import blas
from lepton_cli.probe.moments import Moments
from lepton_cli.quantize import moments, rounding
from lepton_cli.quantize.choose import Choice
from tests.quantize.builders import Graph, context


def loaded() -> ctypes.CDLL:
    """The OpenBLAS that this process has mapped."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("the system does not tell which libraries are loaded")
    paths = {line.split()[-1] for line in maps.read_text().splitlines() if "scipy_openblas64_" in line}
    if len(paths) != 1:
        pytest.skip("numpy has no OpenBLAS of its own here")
    return ctypes.CDLL(paths.pop())


def test_one_thread_inside_and_as_many_as_before_after_it() -> None:
    library = loaded()
    library.scipy_openblas_set_num_threads64_(2)
    before = library.scipy_openblas_get_num_threads64_()
    with blas.one_thread():
        assert library.scipy_openblas_get_num_threads64_() == 1
    assert library.scipy_openblas_get_num_threads64_() == before
    with pytest.raises(KeyError), blas.one_thread():
        raise KeyError
    assert library.scipy_openblas_get_num_threads64_() == before


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(np, "__file__", str(tmp_path / "numpy" / "__init__.py"))
    blas._openblas.cache_clear()
    try:
        assert blas._openblas() is None
        with blas.one_thread():
            assert (np.eye(2) @ np.eye(2) == np.eye(2)).all()
    finally:
        blas._openblas.cache_clear()


def test_moments_and_rounding_use_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = loaded()
    library.scipy_openblas_set_num_threads64_(2)
    seen: list[int] = []

    def counting(work: Callable[..., object]) -> Callable[..., object]:
        def counted(*given: object) -> object:
            seen.append(library.scipy_openblas_get_num_threads64_())
            return work(*given)

        return counted

    monkeypatch.setattr(Moments, "add", counting(Moments.add))
    monkeypatch.setattr(rounding, "inverse_factor", counting(rounding.inverse_factor))
    graph = Graph()
    matrix = graph.constant(graph.random.normal(size=(6, 4)).astype(np.float32))
    model = graph.model(graph.op("MatMul", graph.take("x", ["b", 6]), matrix))
    choice = Choice(frozenset({node.name or "" for node in model.graph}), frozenset(), ())
    data = Arrays({"x": graph.random.normal(size=(8, 6)).astype(np.float32)})
    known = moments.collect(model, choice, data, context(data, tmp_path))
    rounding.apply(model, choice, known, limit=127)
    assert seen == [1] * 3  # two batches of four samples, and the layer
