"""Attention of onnxruntime's own domain against onnxruntime and finite differences."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from lepton_cli.train.operators import fused_attention
from lepton_cli.train.operators.call import NotInTorch, OperatorCall
from tests.train.operators.oracle import slopes
from tests.train.operators.runtime import matches

BATCH, PLACES, HEADS, SIZE, PAST = 2, 4, 2, 16, 3
WIDTH = HEADS * SIZE


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def node(
    name: str, arrays: Mapping[str, np.ndarray | None], outputs: str = "y", **attributes: object
) -> onnx.NodeProto:
    names = ["" if array is None else name for name, array in arrays.items()]
    return helper.make_node(name, names, outputs.split(","), domain="com.microsoft", **attributes)


MASKS = {
    "none": None,
    "raw": np.array([[1, 1, 1, 0], [0, 1, 1, 1]], np.int32),
    "square": np.tril(np.ones((BATCH, PLACES, PLACES), np.int32)),
    "ends": np.array([3, 4], np.int32),
    "ends and starts": np.array([3, 4, 0, 1], np.int32),
}


def packed(**given: np.ndarray | None) -> dict[str, np.ndarray | None]:
    rest: dict[str, np.ndarray | None] = {"mask": None, "past": None, "added": None}
    return {"x": random(BATCH, PLACES, 5), "w": random(5, 3 * WIDTH), "b": random(3 * WIDTH), **rest, **given}


@pytest.mark.parametrize("unidirectional", [0, 1])
@pytest.mark.parametrize("mask", MASKS)
def test_attends_with_packed_weights(mask: str, unidirectional: int) -> None:
    arrays = packed(mask=MASKS[mask])
    made = node("Attention", arrays, num_heads=HEADS, unidirectional=unidirectional)
    matches(fused_attention.attention, made, *arrays.values())


@pytest.mark.parametrize(
    ("given", "outputs", "attributes"),
    [
        ({}, "y", {"scale": 0.5}),
        ({"added": random(BATCH, HEADS, PLACES, PLACES)}, "y", {}),
        ({"added": random(1, 1, PLACES, PLACES), "mask": MASKS["raw"]}, "y", {"mask_filter_value": -5.0}),
        ({"past": random(2, BATCH, HEADS, PAST, SIZE)}, "y,p", {"unidirectional": 1}),
        ({"past": random(2, BATCH, HEADS, PAST, SIZE)}, "y,p", {}),
        ({"w": random(5, 2 * WIDTH + 6), "b": random(2 * WIDTH + 6)}, "y", {"qkv_hidden_sizes": [WIDTH, WIDTH, 6]}),
    ],
)
def test_attends_with_variants(given: dict[str, np.ndarray], outputs: str, attributes: dict[str, object]) -> None:
    arrays = packed(**given)
    matches(
        fused_attention.attention, node("Attention", arrays, outputs, num_heads=HEADS, **attributes), *arrays.values()
    )


def apart(**given: np.ndarray | None) -> dict[str, np.ndarray | None]:
    rest = dict.fromkeys(("bias", "mask", "added", "past_key", "past_value"))
    arrays = {"q": random(BATCH, PLACES, WIDTH), "k": random(BATCH, PLACES, WIDTH), "v": random(BATCH, PLACES, WIDTH)}
    return {**arrays, **rest, **given}


@pytest.mark.parametrize(
    ("given", "outputs", "attributes"),
    [
        ({}, "y", {}),
        ({}, "y,pk,pv", {"scale": 0.3}),
        ({"bias": random(3 * WIDTH)}, "y", {"unidirectional": 1}),
        ({"mask": MASKS["raw"]}, "y", {}),
        ({"mask": MASKS["square"]}, "y", {}),
        ({"mask": MASKS["ends"]}, "y", {}),
        ({"mask": MASKS["raw"], "bias": random(3 * WIDTH)}, "y", {"unidirectional": 1}),
        ({"added": random(1, HEADS, PLACES, PLACES)}, "y", {}),
        ({"k": random(BATCH, 6, WIDTH), "v": random(BATCH, 6, WIDTH - 4)}, "y", {}),
        ({"k": random(BATCH, HEADS, 6, SIZE), "v": random(BATCH, HEADS, 6, SIZE)}, "y", {}),
        (
            {"past_key": random(BATCH, HEADS, PAST, SIZE), "past_value": random(BATCH, HEADS, PAST, SIZE)},
            "y,pk,pv",
            {"unidirectional": 1},
        ),
    ],
)
def test_attends_with_many_heads(given: dict[str, np.ndarray], outputs: str, attributes: dict[str, object]) -> None:
    arrays = apart(**given)
    made = node("MultiHeadAttention", arrays, outputs, num_heads=HEADS, **attributes)
    matches(fused_attention.multi_head_attention, made, *arrays.values())


def grouped(past: int, lengths: list[int], **given: np.ndarray | None) -> dict[str, np.ndarray | None]:
    """Four queries for each key, of two heads; cosines and sines of any angles."""
    angles = random(10, SIZE // 2)
    rest: dict[str, np.ndarray | None] = dict.fromkeys(("places", "added", "sink"))
    arrays: dict[str, np.ndarray | None] = {
        "q": random(BATCH, PLACES, 4 * SIZE),
        "k": random(BATCH, PLACES, 2 * SIZE),
        "v": random(BATCH, PLACES, 2 * SIZE),
        "pk": random(BATCH, 2, past, SIZE) if past else None,
        "pv": -random(BATCH, 2, past, SIZE) if past else None,
        "lengths": np.array(lengths, np.int32),
        "total": np.array([past + PLACES], np.int32),
        "cos": np.cos(angles),
        "sin": np.sin(angles),
    }
    return {**arrays, **rest, **given}


PLACED = np.array([[3, 4, 5, 6], [3, 4, 5, 6]], np.int64)


@pytest.mark.parametrize("past", [0, PAST])
@pytest.mark.parametrize(
    ("given", "attributes"),
    [
        ({}, {}),
        ({}, {"do_rotary": 1}),
        ({}, {"do_rotary": 1, "rotary_interleaved": 1, "scale": 0.3}),
        ({"places": PLACED}, {"do_rotary": 1}),
        ({}, {"local_window_size": 2}),
        ({}, {"softcap": 2.0}),
        ({}, {"smooth_softmax": 1}),
        ({"sink": random(4)}, {}),
        ({"q": random(BATCH, PLACES, 8 * SIZE), "k": None, "v": None}, {"do_rotary": 1}),
        ({"added": True}, {"local_window_size": 3}),
    ],
)
def test_attends_with_shared_keys(past: int, given: dict[str, np.ndarray], attributes: dict[str, object]) -> None:
    if "added" in given:
        given = {"added": random(1, 4, PLACES, past + PLACES)}
    arrays = grouped(past, [past + PLACES - 1] * BATCH, **given)
    if past:  # with a past, onnxruntime takes several places of one sample only
        alone = ("q", "k", "v", "pk", "pv", "lengths", "places")
        arrays = {name: one[:1] if name in alone and one is not None else one for name, one in arrays.items()}
    made = node("GroupQueryAttention", arrays, "y,k1,v1", num_heads=4, kv_num_heads=2, **attributes)
    matches(fused_attention.group_query_attention, made, *arrays.values())


def test_attends_with_shared_keys_and_padding() -> None:
    arrays = grouped(0, [PLACES - 1, 1])
    made = node("GroupQueryAttention", arrays, "y,k1,v1", num_heads=4, kv_num_heads=2, do_rotary=1)
    matches(fused_attention.group_query_attention, made, *arrays.values())


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("places", [np.array([2], np.int64), np.array([[0, 3, 1, 2], [4, 4, 0, 9]], np.int64)])
@pytest.mark.parametrize(
    ("shape", "pairs", "attributes"),
    [
        ((BATCH, PLACES, WIDTH), SIZE // 2, {}),
        ((BATCH, HEADS, PLACES, SIZE), SIZE // 2, {}),
        ((BATCH, PLACES, WIDTH), SIZE // 4, {"num_heads": HEADS, "rotary_embedding_dim": SIZE // 2}),
    ],
)
def test_rotates(
    shape: tuple[int, ...], pairs: int, attributes: dict[str, object], places: np.ndarray, interleaved: int
) -> None:
    angles = random(10, pairs)
    arrays: dict[str, np.ndarray | None] = {"x": random(*shape), "p": places, "c": np.cos(angles), "s": np.sin(angles)}
    made = node("RotaryEmbedding", arrays, interleaved=interleaved, **attributes)
    matches(fused_attention.rotary_embedding, made, *arrays.values())
    slopes(fused_attention.rotary_embedding, made, *(one for one in arrays.values() if one is not None))


def test_passes_gradients() -> None:
    """Small heads: what onnxruntime asks of their size does not matter to torch."""
    rng = np.random.default_rng(1)
    x, weight, bias = (rng.standard_normal(shape) for shape in ((2, 3, 3), (3, 12), (12,)))
    mask, added = np.array([[1, 1, 0], [0, 1, 1]]), rng.standard_normal((2, 2, 3, 3))
    query, key, value = (rng.standard_normal((2, 3, 4)) for _ in range(3))
    made = helper.make_node("Attention", ["x", "w", "b", "m"], ["y"], num_heads=2, unidirectional=1)
    slopes(fused_attention.attention, made, x, weight, bias, mask)
    made = helper.make_node("MultiHeadAttention", ["q", "k", "v", "b", "m", "a"], ["y"], num_heads=2)
    slopes(fused_attention.multi_head_attention, made, query, key, value, bias, mask, added)
    call = OperatorCall({"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1, "smooth_softmax": 1, "softcap": 3.0}, 18)

    def shared(_: OperatorCall, *tensors: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, cosines, sines = tensors
        lengths, total = torch.tensor([2, 2]), torch.tensor([3])
        return fused_attention.group_query_attention(
            call, query, key, value, None, None, lengths, total, cosines, sines
        )

    made = helper.make_node("GroupQueryAttention", ["q", "k", "v", "c", "s"], ["y"])
    wide, angles = rng.standard_normal((2, 3, 8)), rng.standard_normal((3, 1))
    slopes(shared, made, wide, key, value, np.cos(angles), np.sin(angles))


def test_refuses_rare_variants() -> None:
    x, one, number = torch.ones(2, 3, 4), torch.ones(4, 12), torch.tensor([2, 1])
    with pytest.raises(NotInTorch, match="shared buffer"):
        fused_attention.attention(OperatorCall({"num_heads": 2, "past_present_share_buffer": 1}, 18), x, one)
    with pytest.raises(NotInTorch, match=r"a mask of attention with the shape \[7\]"):
        fused_attention.attention(OperatorCall({"num_heads": 2}, 18), x, one, None, torch.ones(7))
    with pytest.raises(NotInTorch, match="packed inputs"):
        fused_attention.multi_head_attention(OperatorCall({"num_heads": 2}, 18), torch.ones(2, 3, 2, 3, 2))
    with pytest.raises(NotInTorch, match="scores as a result"):
        fused_attention.multi_head_attention(OperatorCall({"num_heads": 2}, 18, 4), x, x, x)
    past = torch.ones(2, 2, 1, 2)
    call = OperatorCall({"num_heads": 2, "kv_num_heads": 2}, 18)
    with pytest.raises(NotInTorch, match="different lengths"):
        fused_attention.group_query_attention(call, x, x, x, past, past, number, torch.tensor(4))
    with pytest.raises(NotInTorch, match="norms"):
        fused_attention.group_query_attention(call, x, x, x, *[None] * 2, number, torch.tensor(3), *[None] * 5, one)
    call = OperatorCall({"num_heads": 2, "kv_num_heads": 2, "causal": 0}, 18)
    with pytest.raises(NotInTorch, match="not causal"):
        fused_attention.group_query_attention(call, x, x, x, None, None, number, torch.tensor(3))
    with pytest.raises(NotInTorch, match="scale"):
        fused_attention.rotary_embedding(OperatorCall({"scale": 2.0}, 18), x, number, one, one)
