"""What torch does not compute, and need not, as no gradient comes back through it: onnxruntime does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from lepton_cli import scratch
from lepton_cli.errors import ModelError
from lepton_cli.graph.one_node import OneNode, type_of
from lepton_cli.probe.activations import Activations
from lepton_cli.train.operators.call import NotInTorch

#: Sessions that are kept of a node: lists of numbers, of sizes say, are of a length that a session is made for.
_MOST = 8


class Outside:
    """One node in onnxruntime, on the processor. Results that are no tensors (strings, sequences, maps) are carried as
    onnxruntime gives them: arrays of objects, lists, dicts.
    """

    def __init__(self, node: ir.Node, model: ir.Model, device: torch.device) -> None:
        self._node, self._model, self._device = node, model, device
        self._sessions: dict[tuple[Any, ...], OneNode] = {}

    def run(self, fixed: Mapping[int | str, Any], fed: Mapping[int | str, Any]) -> tuple[Any, ...]:
        """Its results; inputs by number, what inner graphs read from outside by name. `fixed`: those that are the same
        in every run, which some operators have to know before.

        Raises NotInTorch with onnxruntime's reason where there are none.
        """
        held, arrays = ({key: as_numpy(one) for key, one in some.items()} for some in (fixed, fed))
        try:
            key = tuple((place, type_of(one).SerializeToString(deterministic=True)) for place, one in arrays.items())
            if key not in self._sessions:
                if len(self._sessions) == _MOST:
                    del self._sessions[next(iter(self._sessions))]
                self._sessions[key] = OneNode(self._node, self._model, held, arrays)
            found = iter(self._sessions[key].results(arrays))
        except ModelError as error:
            raise NotInTorch(f"onnxruntime, which has to in torch's place: {error.cause or error.message}") from error
        return tuple(as_torch(next(found), self._device) if value.name else None for value in self._node.outputs)


class WholeGraph:
    """A model in onnxruntime, on the processor, for what needs no gradient at all."""

    def __init__(self, model: ir.Model) -> None:
        self._model, self._parts = model, dict[tuple[str, ...], Activations]()

    def run(self, feeds: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """Outputs or inner values by name; what leads to others is not computed."""
        asked = tuple(names)
        if asked not in self._parts:
            with scratch.folder() as folder:
                self._parts[asked] = Activations(self._model, asked, folder, torch.get_num_threads())
        arrays = {name: np.asarray(as_numpy(one), order="C") for name, one in feeds.items()}
        found = self._parts[asked].run(arrays)
        return {name: as_torch(found[name], torch.device("cpu")) for name in asked}


def as_numpy(value: Any) -> Any:
    """Tensors as arrays: without gradients, and half precision, which is trained in float32, as that."""
    if isinstance(value, Tensor):
        made = value.detach().cpu()
        return (made.float() if made.dtype in (torch.float16, torch.bfloat16) else made).numpy()
    return [as_numpy(one) for one in value] if isinstance(value, list) else value


def as_torch(found: Any, device: torch.device) -> Any:
    """Arrays of numbers as tensors; those that say where or how many stay where Python reads them."""
    if isinstance(found, list):
        return [as_torch(one, device) for one in found]
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "biuf":
        return found
    made = torch.from_numpy(np.array(found, order="C"))
    made = made.float() if made.dtype == torch.float16 else made
    return made.to(device) if made.is_floating_point() else made


def plain(tensor: ir.TensorProtocol) -> NDArray[Any]:
    """A constant that torch has no type for (strings, numbers of 4 bits) as onnxruntime takes it."""
    array = tensor.numpy()
    if tensor.dtype != ir.DataType.STRING:
        return array
    return np.array([one.decode(errors="replace") for one in array.ravel()], object).reshape(array.shape)


def is_float(value: Any) -> bool:
    """Whether it is a tensor of floats."""
    return isinstance(value, Tensor) and value.is_floating_point()


def are_tensors(given: Iterable[Any]) -> bool:
    """Whether torch can take them all; lists are sequences of them."""
    return all(are_tensors(one) if isinstance(one, list) else one is None or isinstance(one, Tensor) for one in given)
