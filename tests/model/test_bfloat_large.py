"""A bfloat16 model whose float32 form is large (here: beyond a lowered limit) runs from a file of its own."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from lepton_cli.model import io


@pytest.mark.parametrize("limit", ["EXTERNAL_ABOVE", "STREAMED_ABOVE"])
def test_the_float32_form_of_a_large_model_is_a_file_that_goes_with_it(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond what one message holds, and where a message and its copy would take several times the model."""
    weight = np.random.default_rng(0).integers(-8, 8, (6, 5)).astype(np.float32) / 4
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.BFLOAT16, ["b", 6])],
        [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, ["b", 5])],
        [helper.make_tensor("w", TensorProto.BFLOAT16, weight.shape, weight.ravel())],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    loaded = io.read(proto.SerializeToString())
    monkeypatch.setattr(io, limit, 100)
    file = loaded.payload
    assert isinstance(file, Path)
    assert loaded.payload == file
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x @ weight)
    del loaded, session
    gc.collect()
    assert not file.parent.parent.exists()
