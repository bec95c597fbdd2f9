"""`.npz` and `.npy` files as a source: which array feeds which input."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from lepton_cli.data import batching
from lepton_cli.data.dataset import Array
from lepton_cli.data.labels import number_labels
from lepton_cli.data.npz import Member, read_npy, read_npz
from lepton_cli.data.source import MAX_CHUNK_BYTES, Chunk, file_digest, label_map, lengths_differ, nearest
from lepton_cli.data.spec import DataSpec
from lepton_cli.errors import DataError
from lepton_cli.tensors import TensorInfo

#: Arrays of these names are not taken for the only input.
LABEL_WORDS = frozenset({"label", "labels", "y", "target", "targets", "class", "classes"})


class ArraySource:
    """Arrays of an `.npz` or `.npy` file, mapped to model inputs and labels by `spec`. Raises DataError."""

    def __init__(self, path: Path, spec: DataSpec, inputs: Sequence[TensorInfo], name: str) -> None:
        self._path = path
        members = read_npy(path) if path.suffix == ".npy" else read_npz(path)
        labels = label_map(spec.labels)
        for key in labels.values():
            if key not in members:
                raise _unknown(key, members, path, "labels")
        self._labels = {label: members[key] for label, key in labels.items()}
        chosen = _choose(spec, inputs, members, {*labels.values(), *spec.groups}, path)
        found = {name: members[key] for name, key in chosen.items()}
        single = {info.name for info in inputs if batching.single(info)}
        once = {name for name, m in found.items() if not m.shape or (name in single and math.prod(m.shape) == 1)}
        #: Inputs whose one value goes with every sample of the others.
        self._shared = {name: _value(found[name]) for name in once if once < found.keys()}
        self._inputs = {name: member for name, member in found.items() if name not in self._shared}
        used = {member.key or path.name: member for member in (*self._inputs.values(), *self._labels.values())}
        for key, member in used.items():
            _check_usable(member, key)
        lengths = {key: member.shape[0] for key, member in used.items()}
        if len(set(lengths.values())) > 1:
            raise lengths_differ(name, lengths, str(path))
        self.count = next(iter(lengths.values()))
        self.label_names = tuple(self._labels)
        self._numbered = {
            label: _numbered(member, spec.label_type == "text")
            for label, member in self._labels.items()
            if member.dtype.kind in "US"
        }
        self.class_names: Mapping[str, tuple[str, ...]] = {
            label: classes for label, (_, classes) in self._numbered.items() if classes
        }
        self.text_labels = frozenset(self.class_names)
        self.notes: tuple[str, ...] = ()
        self.jumps = all(member.offset is not None for member in used.values())

    def chunks(self, indices: Sequence[int], size: int) -> Iterator[Chunk]:
        """See `Source`."""
        readers = [member.chunks(indices, size) for member in (*self._inputs.values(), *self._labels.values())]
        start = 0
        for arrays in zip(*readers, strict=True):
            inputs = dict(zip(self._inputs, arrays, strict=False))
            labels = dict(zip(self._labels, arrays[len(inputs) :], strict=True))
            rows = np.asarray(indices[start : start + size])
            labels.update({label: values[rows] for label, (values, _) in self._numbered.items()})
            inputs.update({name: np.broadcast_to(value, (len(rows),)) for name, value in self._shared.items()})
            start += len(rows)
            yield Chunk(inputs, labels)

    def digest(self, indices: Sequence[int]) -> str:
        """See `Source`: of the whole file."""
        return file_digest(self._path)


def _value(member: Member) -> Array:
    """The single value that all samples share."""
    (found,) = dataclasses.replace(member, shape=(1,)).chunks([0], 1)
    return found


def _numbered(member: Member, text: bool) -> tuple[Array, tuple[str, ...]]:
    """Class numbers and names of an array of text labels."""
    chunks = member.chunks(range(member.shape[0]), 4096)
    try:
        texts = [str(value) for chunk in chunks for value in np.char.asarray(chunk.reshape(-1)).astype(str)]
    except UnicodeError as error:
        raise DataError(
            "data.labels",
            f"labels `{member.key}` are bytes that are no ASCII text",
            where=member.where,
            hint="save them as text: labels.astype(str)",
            option=("labels",),
        ) from error
    return number_labels(texts, lambda row: f"{member.where}, sample {row}", text=text)


def _choose(
    spec: DataSpec, inputs: Sequence[TensorInfo], members: Mapping[str, Member], labels: set[str], path: Path
) -> dict[str, str]:
    """Model input -> array: as the recipe says, by equal names, or the only array for the only input."""
    chosen: dict[str, str] = {}
    for info in inputs:
        given = (spec.inputs or {}).get(info.name)
        if isinstance(given, tuple):
            raise DataError(
                "data.columns",
                f"input `{info.name}` names {len(given)} arrays: only tables join columns",
                where=str(path),
                option=("inputs", info.name),
            )
        key = given if given is not None else info.name
        candidates = [other for other in members if other not in labels and other.lower() not in LABEL_WORDS]
        if given is None and key not in members and len(inputs) == 1 and len(candidates) == 1:
            key = candidates[0]
        if key not in members:
            raise _unknown(key, members, path, "inputs", info.name if given is None else None)
        chosen[info.name] = key
    return chosen


def _unknown(key: str, members: Mapping[str, Member], path: Path, option: str, wanted: str | None = None) -> DataError:
    hint = nearest(key, members, what="arrays in the file")
    if wanted is not None:
        hint += f"   write `inputs: {{{wanted}: NAME}}`"
    return DataError(
        "data.unknown-array",
        f"{path.name} has no array `{key}`" + (f" for the model's input `{wanted}`" if wanted is not None else ""),
        hint=hint,
        option=(option,),
    )


def _check_usable(member: Member, key: str) -> None:
    if not member.shape:
        raise DataError(
            "data.scalar",
            f"array `{key}` is a single value, not a list of samples",
            where=member.where,
            hint="axis 0 of an array counts the samples; a single value goes with every sample of the others",
            option=("inputs",),
        )
    if member.row_bytes > MAX_CHUNK_BYTES:
        raise DataError(
            "data.too-large",
            f"one sample of array `{key}` has {member.row_bytes / 1e9:.1f} GB",
            where=member.where,
            option=("inputs",),
        )
