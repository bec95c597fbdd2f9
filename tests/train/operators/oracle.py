"""Operators are held to the ONNX backend cases (the standard's own numbers) and to finite differences."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence, Set
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import helper
from onnx.backend.test.case.test_case import TestCase
from torch import Tensor

from lepton_cli.train.operators.call import NotInTorch, TorchOperator, call_of, tensor_of
from lepton_cli.train.operators.table import OPERATORS

torch.set_num_threads(1)  # the tensors are so small that threads would only wait for each other

#: Types whose numbers lie further apart than float32's tolerance, by how far.
COARSE = {"bfloat16": 2**-7, "float16": 2**-10}


@functools.cache
def cases() -> dict[str, list[TestCase]]:
    """The node cases of the standard by operator; those of several nodes are left out."""
    from onnx.backend.test.case.node import collect_testcases

    found: dict[str, list[TestCase]] = {}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # the generators overflow on purpose
        made = collect_testcases(None)
    for case in made:
        if len(case.model.graph.node) == 1:
            found.setdefault(case.model.graph.node[0].op_type, []).append(case)
    return found


def computed(function: TorchOperator, case: TestCase) -> Iterator[tuple[list[Any], list[Any]]]:
    """What the function makes of the case's inputs, and what the standard says, as arrays."""
    node = ir.from_proto(case.model).graph[0]
    opset = next(one.version for one in case.model.opset_import if one.domain == case.model.graph.node[0].domain)
    for inputs, outputs in case.data_sets or ():
        made = function(call_of(node, opset), *given(case, inputs))
        results = made if isinstance(made, (tuple, list)) else (made,)
        named = [result for result, value in zip(results, node.outputs, strict=False) if value.name]
        yield (
            [_array(one) if isinstance(one, Tensor) else one for one in named],
            [onnx.numpy_helper.to_array(one) if isinstance(one, onnx.TensorProto) else one for one in outputs],
        )


def given(case: TestCase, inputs: Sequence[Any]) -> list[Tensor | None]:
    """A data set's inputs in the order of the node's. Raises NotInTorch for types that torch has not."""
    places = {info.name: index for index, info in enumerate(case.model.graph.input)}
    tensors = [_tensor(inputs[places[name]]) if name else None for name in case.model.graph.node[0].input]
    while tensors and tensors[-1] is None:
        tensors.pop()
    return tensors


def _tensor(array: Any) -> Tensor:
    """As a graph's own values become tensors; whatever is no array (sequences, nothing) is no value of ours."""
    if isinstance(array, onnx.TensorProto):
        return tensor_of(ir.from_proto(array))
    if not isinstance(array, (np.ndarray, np.generic)):
        raise NotInTorch("values that are no tensors")
    return tensor_of(ir.tensor(np.asarray(array)))


def _array(made: Tensor) -> Any:
    if made.dtype == torch.bfloat16:  # numpy has none of its own
        return made.detach().float().numpy().astype(ml_dtypes.bfloat16)
    return made.detach().numpy()


def agrees(function: TorchOperator, case: TestCase, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Shapes, types and numbers are those of the standard."""
    for made, expected in computed(function, case):
        assert len(made) == len(expected)
        for one, other in zip(made, expected, strict=True):
            near = rtol
            assert one.shape == other.shape
            assert one.dtype == other.dtype
            if one.dtype.name in COARSE:  # what numpy does not compare in bfloat16; two roundings
                near, one, other = 2 * COARSE[one.dtype.name], one.astype(np.float32), other.astype(np.float32)
            np.testing.assert_allclose(one, other, rtol=max(near, case.rtol), atol=max(atol, case.atol))


def standard(names: Sequence[str], refused: Set[str] = frozenset()) -> pytest.MarkDecorator:
    """Parametrises a test by the function of each of these operators, a case of the standard, and whether the function
    has to refuse it.
    """
    found = [(OPERATORS["", name], case, case.name in refused) for name in names for case in cases()[name]]
    assert sum(one[-1] for one in found) == len(refused), "names of no case"
    return pytest.mark.parametrize(
        ("function", "case", "refuses"), [pytest.param(*one, id=one[1].name) for one in found]
    )


def holds(function: TorchOperator, case: TestCase, refuses: bool) -> None:
    """As in the standard, or refused by us or by torch."""
    if not refuses:
        return agrees(function, case)
    with pytest.raises(NotImplementedError):
        list(computed(function, case))
    return None


def as_onnxruntime(node: onnx.NodeProto, *inputs: np.ndarray, opset: int, rtol: float = 1e-4) -> list[np.ndarray]:
    """The table's function makes of these inputs, in the order of the node's named ones, what onnxruntime makes.
    Returns that.
    """
    names = [name for name in node.input if name]
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in zip(names, inputs, strict=True)
        ],
        [onnx.ValueInfoProto(name=name) for name in node.output],
    )
    versions = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    expected = session.run(None, dict(zip(names, inputs, strict=True)))
    arrays = iter(inputs)
    tensors = [torch.from_numpy(np.array(next(arrays))) if name else None for name in node.input]
    made = OPERATORS[node.domain, node.op_type](call_of(ir.from_proto(node), opset), *tensors)
    for one, other in zip(made if isinstance(made, tuple) else (made,), expected, strict=True):
        assert one is not None
        assert tuple(one.shape) == other.shape
        assert one.numpy().dtype == other.dtype
        np.testing.assert_allclose(one.numpy(), other, rtol=rtol, atol=1e-5)
    return list(expected)


def slopes(function: TorchOperator, proto: onnx.NodeProto, *inputs: np.ndarray, opset: int = 18) -> None:
    """The gradients by every float input are those of finite differences, in float64."""
    node = ir.from_proto(proto)
    call = call_of(node, opset)
    tensors = [torch.tensor(array) for array in inputs]
    tensors = [one.double().requires_grad_() if one.is_floating_point() else one for one in tensors]

    def differentiable(*inputs: Tensor) -> tuple[Tensor, ...]:
        made = function(call, *inputs)
        results = made if isinstance(made, (tuple, list)) else (made,)
        return tuple(one for one in results if one is not None and one.is_floating_point())

    assert torch.autograd.gradcheck(differentiable, tensors, eps=1e-6, atol=1e-5, rtol=1e-4)
