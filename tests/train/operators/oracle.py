"""Operators are held to the ONNX backend cases (the standard's own numbers) and to finite differences."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx.backend.test.case.test_case import TestCase
from torch import Tensor

from lepton_cli.train.operators.call import Operator, call_of

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


def computed(function: Operator, case: TestCase) -> Iterator[tuple[list[Any], list[Any]]]:
    """What the function makes of the case's inputs, and what the standard says, as arrays."""
    node = ir.from_proto(case.model).graph[0]
    opset = next(one.version for one in case.model.opset_import if one.domain == case.model.graph.node[0].domain)
    places = {info.name: index for index, info in enumerate(case.model.graph.input)}
    for inputs, outputs in case.data_sets or ():
        given = [None if v is None or not v.name else _tensor(inputs[places[v.name]]) for v in node.inputs]
        while given and given[-1] is None:
            given.pop()
        made = function(call_of(node, opset), *given)
        results = made if isinstance(made, (tuple, list)) else (made,)
        named = [result for result, value in zip(results, node.outputs, strict=False) if value.name]
        yield [_array(one) if isinstance(one, Tensor) else one for one in named], list(outputs)


def _tensor(array: np.ndarray) -> Tensor:
    """Of bfloat16 too, which numpy has from another package and torch does not take from there."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def _array(tensor: Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.float().numpy().astype(onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16))
    return tensor.numpy()


def agrees(function: Operator, case: TestCase, rtol: float = 1e-4, atol: float = 1e-5) -> None:
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


def slopes(function: Operator, proto: onnx.NodeProto, *inputs: np.ndarray, opset: int = 18) -> None:
    """The gradients by every float input are those of finite differences, in float64."""
    node = ir.from_proto(proto)
    call = call_of(node, opset)
    given = [torch.tensor(array) for array in inputs]
    given = [one.double().requires_grad_() if one.is_floating_point() else one for one in given]

    def differentiable(*tensors: Tensor) -> tuple[Tensor, ...]:
        made = function(call, *tensors)
        results = made if isinstance(made, (tuple, list)) else (made,)
        return tuple(one for one in results if one is not None and one.is_floating_point())

    assert torch.autograd.gradcheck(differentiable, given, eps=1e-6, atol=1e-5, rtol=1e-4)
