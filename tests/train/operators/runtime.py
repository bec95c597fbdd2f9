"""Plain onnxruntime as the oracle of operators (and of their variants) that have no cases in the standard."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from onnx import helper
from torch import Tensor

from lepton_cli.train.operators.call import OperatorCall, TorchOperator, call_of


def matches(
    function: TorchOperator, proto: onnx.NodeProto, *arrays: np.ndarray | None, opset: int = 18, atol: float = 1e-5
) -> None:
    """The function computes what onnxruntime does with a model of this one node, whose named inputs get the arrays."""
    named = [name for name in proto.input if name]
    feeds = {name: array for name, array in zip(proto.input, arrays, strict=True) if array is not None}
    assert list(feeds) == named
    graph = helper.make_graph(
        [proto],
        "one",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(feeds[name].dtype), feeds[name].shape)
            for name in named
        ],
        [helper.make_empty_tensor_value_info(name) for name in proto.output if name],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    expected = session.run(None, feeds)
    given = [None if array is None else torch.tensor(array) for array in arrays]
    call = call_of(ir.from_proto(proto), opset)
    made = function(call, *given)
    results = made if isinstance(made, tuple) else (made,)
    assert len(results) == len(proto.output)
    kept = [result for result, name in zip(results, proto.output, strict=True) if name]
    for one, other in zip(kept, expected, strict=True):
        assert isinstance(one, Tensor)
        assert tuple(one.shape) == other.shape
        assert one.numpy().dtype == other.dtype
        np.testing.assert_allclose(one.numpy(), other, rtol=1e-5, atol=atol)
    _stands_where_its_inputs_do(function, call, given)


def _stands_where_its_inputs_do(function: TorchOperator, call: OperatorCall, given: list[Tensor | None]) -> None:
    """No tensor is made on the CPU when the inputs stand elsewhere: `meta` is a device that every build of torch has
    and that mixes with no other. It has no numbers, so what reads one stays unchecked.
    """
    try:
        made = function(call, *(None if one is None else one.to("meta") for one in given))
    except RuntimeError as error:
        if "item() cannot be called on meta tensors" not in str(error):
            raise
        return
    for one in made if isinstance(made, tuple) else (made,):
        assert one is None or one.device.type == "meta"
