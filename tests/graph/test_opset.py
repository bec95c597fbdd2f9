"""Newer operator sets compute the same."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_cli.graph.opset import raised
from lepton_cli.graph.shapes import opset
from tests.quantize.builders import images, residual_net, run


@pytest.mark.parametrize(("wanted", "version"), [(21, 10), (23, 11)])
def test_a_newer_operator_set_computes_the_same(wanted: int, version: int) -> None:
    model = residual_net(13)
    made = raised(model, wanted)
    assert made is not None
    assert opset(made) == wanted
    assert (made.ir_version or 0) >= version
    assert opset(model) == 13
    np.testing.assert_allclose(run(made, images(8)), run(model, images(8)), rtol=1e-5)
    assert all(node.name for node in made.graph.all_nodes())


def test_a_model_that_has_it_is_only_copied() -> None:
    model = residual_net(22)
    made = raised(model, 21)
    assert made is not None
    assert made is not model
    assert opset(made) == 22


def test_what_onnx_cannot_convert_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("onnx.version_converter.convert_version", fail)
    assert raised(residual_net(17), 21) is None
