"""Answers to learn: labels of the training data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from lepton_cli.data.check import check_labels
from lepton_cli.data.dataset import Array, Batch
from lepton_cli.data.source import nearest
from lepton_cli.data.training import TrainingBatch, TrainingData
from lepton_cli.errors import DataError, RecipeError
from lepton_cli.model import io
from lepton_cli.train import losses, proof
from lepton_cli.train.network import Network
from lepton_cli.train.spec import TrainingLoss

#: A number per sample, from the output and the labels.
_Rows = Callable[[Tensor, Tensor], Tensor]
#: Losses of numbers, by the name in a recipe.
NUMBERS: dict[str, _Rows] = {
    "mse": losses.mse,
    "mae": losses.mae,
    "huber": losses.huber,
    "cosine": losses.cosine,
}

#: Operators whose results are of any size, and those that only lay them out otherwise.
_SUMS = ("Add", "Conv", "Gemm", "MatMul")
_SAME_NUMBERS = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


class Labelled:
    """One output against one array of labels; of samples mixed from two, against those of both.

    `axis`: that of the classes where labels are their numbers, else `None`.
    """

    def __init__(
        self,
        asked: TrainingLoss,
        output: str,
        network: Network,
        data: TrainingData,
        trial: Sequence[Batch],
        in_place_of: str | None = None,
    ) -> None:
        """`trial`: some samples, as many at once as the network takes. `in_place_of`: the output that is made of this
        one, and does not learn. Reads all labels once.

        Raises DataError for labels that cannot be the output's, RecipeError where it is not clear how to compare.
        """
        self.fingerprint = f"{asked.model_dump_json()} {output}"
        self.output, self.labels = output, _array(asked, output, data)
        self.outputs: tuple[str, ...] = (output,)
        self.inside: tuple[str, ...] = ()
        self.in_place: dict[str, tuple[str, ...]] = {} if in_place_of is None else {in_place_of: self.outputs}
        self._device = network.device
        found = _tried(network, output, trial)
        some = np.concatenate([batch.labels[self.labels] for batch in trial])
        kind = _kind(output, found, some) if asked.kind == "auto" else asked.kind
        axis = _class_axis(found, some) if kind == "cross_entropy" else None
        for labels in data.whole.stored_labels(self.labels):
            _check(kind, axis, output, found, labels)
        self.axis = axis
        shares = False
        if kind == "cross_entropy":
            shares = losses.are_shares(found, axis or 1)
            self._rows: _Rows = partial(losses.cross_entropy, axis=axis or 1, shares=shares)
        elif kind == "binary":
            shares = bool(((found >= 0) & (found <= 1)).all()) and not _is_sum(network, output)
            self._rows = partial(losses.binary, shares=shares)
        else:
            self._rows = NUMBERS[kind]
        self.said = {output: f"{kind}_shares" if shares else kind}

    def answers(self, batch: Batch, feeds: Mapping[str, Tensor], *, inside: bool = False) -> dict[str, Tensor]:
        """Its labels."""
        made = {"labels": self._tensor(batch.labels[self.labels])}
        if isinstance(batch, TrainingBatch) and batch.share is not None:
            made["partners"] = self._tensor(batch.partners[self.labels])
            made["share"] = torch.from_numpy(batch.share.copy()).to(self._device)
        return made

    def loss(self, found: Mapping[str, Tensor], answers: Mapping[str, Tensor]) -> Tensor:
        """The mean over the samples."""
        rows = self._against(found[self.output], answers["labels"])
        if "share" in answers:
            share = answers["share"]
            rows = share * rows + (1 - share) * self._against(found[self.output], answers["partners"])
        return rows.mean()

    def _against(self, found: Tensor, labels: Tensor) -> Tensor:
        return self._rows(found, labels if self.axis is not None else labels.reshape(found.shape))

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(array.astype(np.float32 if self.axis is None else np.int64)).to(self._device)


def float_outputs(model: ir.Model) -> list[str]:
    """Those that can learn, by name."""
    return [info.name for info in io.outputs(model) if info.floating]


def _array(asked: TrainingLoss, output: str, data: TrainingData) -> str:
    """Which labels they are: as asked, of the output's name, called `labels`, or the only ones."""
    names = data.whole.label_names
    if asked.labels is not None:
        if asked.labels not in names:
            raise DataError(
                "data.unknown-labels",
                f"the training data have no labels `{asked.labels}`",
                hint=nearest(asked.labels, names, what="its labels"),
                option=("data", "training", "labels"),
            )
        return asked.labels
    for name in (output, "labels", *names[: len(names) == 1]):
        if name in names:
            return name
    raise DataError(
        "data.unknown-labels",
        f"which labels are those of `{output}`?",
        hint="name them with `labels` in its loss, or like the output; " + nearest(output, names, what="labels"),
        option=("data", "training", "labels"),
    )


def _tried(network: Network, output: str, trial: Sequence[Batch]) -> Tensor:
    """The output for some samples. Raises RecipeError where it does not count them on its axis 0."""
    parts = []
    for batch in trial:
        with torch.no_grad():
            one = network.run(proof.tensors(batch.feeds, network.device), (output,))[output]
        if not one.is_floating_point() or not one.dim() or len(one) != batch.count:
            raise RecipeError(
                "train.loss-output",
                f"`{output}` is {list(one.shape)} for {batch.count} samples: labels need floats, a row per sample",
                hint=nearest(output, float_outputs(network.model), what="outputs of floats"),
            )
        parts.append(one.float())
    return torch.cat(parts) if len({one.shape[1:] for one in parts}) == 1 else parts[0]


def _kind(output: str, found: Tensor, labels: Array) -> str:
    """What whole numbers and floats usually mean."""
    if labels.dtype.kind in "biu" and found.dim() == 2 and found.shape[1] > 1 and labels.ndim == 1:
        return "cross_entropy"
    if labels.dtype.kind == "f" and _same(found, labels):
        return "mse"
    raise RecipeError(
        "train.which-loss",
        f"labels {list(labels.shape)} of {labels.dtype} and `{output}` {list(found.shape)}: how to compare them?",
        hint="give `losses: [{kind: …}]`",
        option=("losses",),
    )


def _class_axis(found: Tensor, labels: Array) -> int | None:
    """Where the classes are: behind the samples, else at the end; `None` where labels have that axis themselves."""
    rest = labels.shape[1:]
    if found.dim() > 1 and rest == found.shape[2:]:
        return 1
    return found.dim() - 1 if found.dim() > 2 and rest == found.shape[1:-1] else None


def _same(found: Tensor, labels: Array) -> bool:
    """Whether a sample's label has the shape of its output, but for axes of length 1."""
    first, second = ([size for size in shape[1:] if size != 1] for shape in (found.shape, labels.shape))
    return first == second


def _check(kind: str, axis: int | None, output: str, found: Tensor, labels: Array) -> None:
    """Raise DataError unless these labels can be compared with the output."""
    if labels.dtype.kind not in "biuf" or not np.isfinite(labels).all():
        what = f"are of type {labels.dtype}" if labels.dtype.kind not in "biuf" else "hold NaN or infinity"
        raise _wrong(f"labels for `{output}` {what}", "leave these samples out, or mend them")
    if kind == "cross_entropy" and (found.dim() < 2 or found.shape[axis or 1] < 2):
        raise _wrong(f"`{output}` has no classes", "for one number per sample the loss is `kind: binary`")
    if axis is not None:
        check_labels(labels, found.shape[axis], name="training", whose=f"`{output}`")
    elif not _same(found, labels):
        wanted = "its shape" if kind != "cross_entropy" else "whole numbers without the axis of classes, or its shape"
        raise _wrong(
            f"a label for `{output}` is {list(labels.shape[1:])}, a sample of the output {list(found.shape[1:])}",
            f"`{kind}` needs labels of {wanted}",
        )
    elif kind == "cross_entropy" and not losses.are_shares(torch.from_numpy(labels.astype(np.float64))):
        raise _wrong(
            f"labels for `{output}` are neither class numbers nor shares of classes that add up to 1",
            "where several classes hold at once the loss is `kind: binary`",
        )
    elif kind == "binary" and not ((labels >= 0) & (labels <= 1)).all():
        raise _wrong(
            f"labels for `{output}` run from {labels.min():g} to {labels.max():g}", "`binary` needs 0, 1 or shares"
        )


def _wrong(said: str, hint: str) -> DataError:
    return DataError("data.labels", said, hint=hint, option=("data", "training", "labels"))


def _is_sum(network: Network, output: str) -> bool:
    """Whether a layer adds it up: then it is no probability, even where its first values are from 0 to 1."""
    made = {value.name: node for node in network.model.graph for value in node.outputs}
    node = made.get(output)
    while node is not None and node.op_type in _SAME_NUMBERS and node.inputs[0] is not None:
        node = made.get(node.inputs[0].name)
    return node is not None and node.op_type in _SUMS
