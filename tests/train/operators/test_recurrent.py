"""Recurrent layers against the standard's cases, onnxruntime and finite differences."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnx.backend.test.case.test_case import TestCase

from lepton_cli.train.operators import recurrent
from lepton_cli.train.operators.call import NotInTorch, OperatorCall, TorchOperator
from tests.train.operators.oracle import agrees, cases, slopes
from tests.train.operators.runtime import matches

STANDARD: dict[str, TorchOperator] = {"GRU": recurrent.gru, "LSTM": recurrent.lstm, "RNN": recurrent.rnn}
GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
STEPS, BATCH, FEATURES, SIZE = 4, 3, 2, 3


@pytest.mark.parametrize(
    ("function", "case"),
    [pytest.param(function, case, id=case.name) for name, function in STANDARD.items() for case in cases()[name]],
)
def test_computes_the_cases_of_the_standard(function: TorchOperator, case: TestCase) -> None:
    agrees(function, case)


def layer(
    name: str, *, full: bool = True, lengths: list[int] | None = None, peepholes: bool = False, **attributes: object
) -> tuple[onnx.NodeProto, list[np.ndarray | None]]:
    """A node with random inputs; `full` gives it biases and states to start from."""
    rng = np.random.default_rng(5)
    directions, gates = 2 if attributes.get("direction") == "bidirectional" else 1, GATES[name]

    def random(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    state = random(directions, BATCH, SIZE), random(directions, BATCH, SIZE)
    arrays = [
        random(STEPS, BATCH, FEATURES),
        random(directions, gates * SIZE, FEATURES),
        random(directions, gates * SIZE, SIZE),
        random(directions, 2 * gates * SIZE) if full else None,
        None if lengths is None else np.array(lengths, np.int32),
        state[0] if full else None,
    ]
    if name == "LSTM":
        arrays += [state[1] if full else None, random(directions, 3 * SIZE) if peepholes else None]
    names = ["" if array is None else f"i{index}" for index, array in enumerate(arrays)]
    outputs = ["y", "h", "c"] if name == "LSTM" else ["y", "h"]
    return helper.make_node(name, names, outputs, hidden_size=SIZE, **attributes), arrays


VARIANTS: list[dict[str, object]] = [
    {},
    {"full": False},
    {"lengths": [4, 4, 4]},
    {"lengths": [2, 4, 1]},
    {"lengths": [3, 1, 4], "direction": "reverse"},
    {"lengths": [3, 1, 4], "direction": "bidirectional", "full": False},
    {"direction": "reverse"},
    {"direction": "bidirectional"},
]
OWN: dict[str, list[dict[str, object]]] = {
    "GRU": [
        {"linear_before_reset": 1},
        {"linear_before_reset": 1, "direction": "bidirectional"},
        {"linear_before_reset": 1, "direction": "reverse", "full": False},
        {"linear_before_reset": 1, "lengths": [2, 4, 1]},
        {"activations": ["HardSigmoid", "Relu"], "activation_alpha": [0.3], "activation_beta": [0.4]},
    ],
    "LSTM": [
        {"peepholes": True},
        {"peepholes": True, "direction": "bidirectional", "lengths": [2, 4, 1]},
        {"peepholes": True, "full": False, "direction": "reverse"},
        {"input_forget": 1},
        {"activations": ["HardSigmoid", "LeakyRelu", "Softsign"], "activation_alpha": [0.3, 0.1]},
        {"activations": ["sigmoid", "tanh", "tanh"]},
        {"activations": ["Sigmoid", "Tanh", "Relu", "HardSigmoid", "Tanh", "Elu"], "direction": "bidirectional"},
    ],
    "RNN": [
        {"activations": ["Relu"]},
        {"activations": ["Relu", "Relu"], "direction": "bidirectional"},
        {"activations": ["Relu", "Tanh"], "direction": "bidirectional"},
        {"activations": ["Affine"], "activation_alpha": [0.5], "activation_beta": [0.1]},
    ],
}


@pytest.mark.parametrize(
    ("name", "variant"), [(name, variant) for name in STANDARD for variant in VARIANTS + OWN[name]]
)
def test_computes_as_onnxruntime(name: str, variant: dict[str, object]) -> None:
    proto, arrays = layer(name, **variant)
    matches(STANDARD[name], proto, *arrays)


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("GRU", {"linear_before_reset": 1, "direction": "bidirectional"}),
        ("GRU", {"lengths": [2, 4, 1]}),
        ("LSTM", {"direction": "reverse"}),
        ("LSTM", {"peepholes": True, "lengths": [2, 4, 1]}),
        ("RNN", {"direction": "bidirectional"}),
        ("RNN", {"lengths": [2, 4, 1]}),
    ],
)
def test_passes_gradients(name: str, variant: dict[str, object]) -> None:
    proto, arrays = layer(name, **variant)
    kept = [array for array in arrays if array is not None]
    places = [index for index, array in enumerate(arrays) if array is not None]

    def spread(call: OperatorCall, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found: list[torch.Tensor | None] = [None] * len(arrays)
        for index, one in zip(places, given, strict=True):
            found[index] = one
        made = STANDARD[name](call, *found)
        assert isinstance(made, tuple)
        return tuple(one for one in made if one is not None)

    slopes(spread, proto, *kept)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("lengths", [None, [2, 4, 1]])
@pytest.mark.parametrize("name", STANDARD)
def test_computes_in_bfloat16(name: str, lengths: list[int] | None, autocast: bool) -> None:
    _, arrays = layer(name, lengths=lengths)
    kind = torch.float32 if autocast else torch.bfloat16
    given = [None if one is None else torch.tensor(one) for one in arrays]
    given = [None if one is None else one.to(kind) if one.is_floating_point() else one for one in given]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = STANDARD[name](OperatorCall({"hidden_size": SIZE}, 18, 2), *given)
        if autocast:  # the input comes out of a convolution, the weights are float32
            assert given[0] is not None
            STANDARD[name](OperatorCall({"hidden_size": SIZE}, 18, 2), given[0].bfloat16(), *given[1:])
    assert isinstance(y[0], torch.Tensor)
    assert y[0].dtype in (torch.bfloat16, kind)


def test_refuses_clipped_gates() -> None:
    _, arrays = layer("RNN")
    with pytest.raises(NotInTorch, match="clips"):
        recurrent.rnn(OperatorCall({"hidden_size": SIZE, "clip": 1.0}, 18), *(torch.tensor(one) for one in arrays[:3]))
