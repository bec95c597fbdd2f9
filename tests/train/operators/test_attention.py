"""Attention and rotary embeddings against the standard's cases, onnxruntime and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import helper
from onnx.backend.test.case.test_case import TestCase

from lepton_cli.train.operators import attention
from lepton_cli.train.operators.call import NotInTorch, OperatorCall, TorchOperator
from tests.train.operators.oracle import agrees, cases, slopes
from tests.train.operators.runtime import matches

STANDARD: dict[str, TorchOperator] = {
    "Attention": attention.attention,
    "RotaryEmbedding": attention.rotary_embedding,
}


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("function", "case"),
    [pytest.param(function, case, id=case.name) for name, function in STANDARD.items() for case in cases()[name]],
)
def test_computes_the_cases_of_the_standard(function: TorchOperator, case: TestCase) -> None:
    agrees(function, case)


QUERY, KEY, VALUE = random(2, 4, 3, 4), random(2, 2, 5, 4), -random(2, 2, 5, 4)
MASK = np.array([[True, False, True, True, False], [False] * 5, [True] * 5])
VARIANTS: list[tuple[dict[str, np.ndarray], int, dict[str, object]]] = [
    ({}, 1, {}),
    ({}, 1, {"is_causal": 1, "scale": 0.3}),
    ({}, 1, {"is_causal": 1, "softcap": 1.5}),
    ({}, 4, {"is_causal": 1, "qk_matmul_output_mode": 3}),
    ({"mask": random(3, 5)}, 1, {}),
    ({"mask": random(2, 1, 3, 5)}, 1, {"is_causal": 1}),
    ({"mask": MASK}, 1, {}),
    ({"mask": MASK}, 4, {"softcap": 2.0, "qk_matmul_output_mode": 1}),
    ({"past_key": random(2, 2, 2, 4), "past_value": -random(2, 2, 2, 4)}, 3, {"is_causal": 1}),
    ({"lengths": np.array([3, 5])}, 1, {"is_causal": 1}),
]


@pytest.mark.parametrize(("given", "outputs", "attributes"), VARIANTS)
def test_passes_gradients(given: dict[str, np.ndarray], outputs: int, attributes: dict[str, object]) -> None:
    call = OperatorCall(attributes, 24, outputs)
    arrays = {"query": QUERY, "key": KEY, "value": VALUE, **given}
    made = helper.make_node("Attention", list(arrays), [f"o{k}" for k in range(outputs)], **attributes)

    def named(_: OperatorCall, *tensors: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor | None, ...]:
        return attention.attention(call, **dict(zip(arrays, tensors, strict=True)))

    slopes(named, made, *arrays.values())


@pytest.mark.parametrize(
    ("mask", "attributes"),
    [
        (None, {}),
        (None, {"is_causal": 1, "scale": 0.3}),
        (random(3, 5), {"is_causal": 1}),
        (random(2, 4, 3, 5), {"softcap": 2.0}),
        (MASK[[0, 2, 2]], {}),
    ],
)
def test_attends_as_onnxruntime(mask: np.ndarray | None, attributes: dict[str, object]) -> None:
    names = ["q", "k", "v"] if mask is None else ["q", "k", "v", "m"]
    made = helper.make_node("Attention", names, ["y"], **attributes)
    matches(attention.attention, made, *[QUERY, KEY, VALUE, mask][: len(names)], opset=23)


@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_shows_scores(mode: int, softcap: float) -> None:
    outputs = ["y", "", "", "s"]
    made = helper.make_node("Attention", [*"qkvm"], outputs, qk_matmul_output_mode=mode, softcap=softcap)
    matches(attention.attention, made, QUERY, KEY, VALUE, random(3, 5), opset=23)


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_query_that_sees_nothing_has_no_gradient(softcap: float) -> None:
    query, key, value = (torch.tensor(one).requires_grad_() for one in (QUERY, KEY, VALUE))
    y = attention.attention(OperatorCall({"softcap": softcap}, 23), query, key, value, torch.tensor(MASK))
    assert isinstance(y, torch.Tensor)
    assert y[:, :, 1].abs().max() == 0
    y.sum().backward()
    for one in (query, key, value):
        assert one.grad is not None
        assert bool(one.grad.isfinite().all())
    assert query.grad is not None
    assert query.grad[:, :, 1].abs().max() == 0


@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("mask", [None, MASK, random(3, 5)])
def test_computes_in_bfloat16(mask: np.ndarray | None, softcap: float) -> None:
    wide = [torch.tensor(one) for one in (QUERY, KEY, VALUE)]
    short = [one.bfloat16() for one in wide]
    given = None if mask is None else torch.tensor(mask)
    call = OperatorCall({"softcap": softcap}, 23)
    y = attention.attention(call, *short, given)
    assert isinstance(y, torch.Tensor)
    assert y.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attention.attention(call, *wide, given)
    expected = attention.attention(call, *wide, given)
    assert isinstance(mixed, torch.Tensor)
    torch.testing.assert_close(mixed.float(), expected, rtol=0.05, atol=0.05)
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("shape", "angles", "attributes"),
    [
        ((1, 2, 3, 4), (1, 3, 2), {"interleaved": 1}),
        ((1, 3, 8), (1, 3, 1), {"num_heads": 2, "rotary_embedding_dim": 2}),
    ],
)
def test_rotates(shape: tuple[int, ...], angles: tuple[int, ...], attributes: dict[str, object]) -> None:
    made = helper.make_node("RotaryEmbedding", ["x", "c", "s"], ["y"], **attributes)
    slopes(attention.rotary_embedding, made, random(*shape), np.cos(random(*angles)), np.sin(random(*angles)))


def test_refuses_a_softmax_in_a_type_that_torch_lacks() -> None:
    call = OperatorCall({"softmax_precision": 17}, 23)
    with pytest.raises(NotInTorch, match="type 17"):
        attention.attention(call, *(torch.tensor(one) for one in (QUERY, KEY, VALUE)))
