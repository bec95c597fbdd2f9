"""What every kind of data file offers: a number of samples, and chunks of them read in order."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from lepton_cli.data.dataset import Array
from lepton_cli.data.preprocess import Raw
from lepton_cli.errors import DataError

#: No chunk or sample that is read at once may be larger: declared sizes are not to be trusted.
MAX_CHUNK_BYTES = 1 << 32


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some stored samples: `inputs` by model input, `labels` by label name."""

    inputs: dict[str, Raw]
    labels: dict[str, Array]


class Source(Protocol):
    """Stored samples, before preprocessing."""

    #: Number of samples stored.
    count: int
    label_names: tuple[str, ...]
    #: For labels that are text: the sorted names, whose positions are the label numbers.
    class_names: Mapping[str, tuple[str, ...]]
    #: Labels that are stored as text, which their class names are.
    text_labels: frozenset[str]
    #: Remarks for the report.
    notes: tuple[str, ...]
    #: Whether any sample can be read without those before it.
    jumps: bool

    def chunks(self, indices: Sequence[int], size: int) -> Iterator[Chunk]:
        """The samples at ascending `indices`, `size` at a time. Raises DataError where the content is broken."""

    def digest(self, indices: Sequence[int]) -> str:
        """SHA-256 of the stored content that `indices` are read from."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def label_map(labels: str | dict[str, str] | None) -> dict[str, str]:
    """Label name -> array or column; labels without a name of their own are called `labels`."""
    if labels is None:
        return {}
    return {"labels": labels} if isinstance(labels, str) else dict(labels)


def nearest(word: str, words: Iterable[str], *, what: str = "") -> str:
    """A hint: the nearest right word, and all of them."""
    known = list(words)
    close = difflib.get_close_matches(word, known, 1)
    listed = ", ".join(f"`{name}`" for name in known[:12]) + (", …" if len(known) > 12 else "")
    return (f"did you mean `{close[0]}`?   " if close else "") + (f"{what}: {listed}" if known else f"{what}: none")


def unreadable(error: OSError, name: str) -> DataError:
    """The error for files that the operating system does not let us read."""
    return DataError(
        "data.unreadable",
        f"`{name}`: cannot read {error.filename or 'the data'}",
        cause=error.strerror or str(error),
        option=("data", name, "path"),
    )


def lengths_differ(name: str, lengths: Mapping[str, int], where: str) -> DataError:
    """The error for arrays whose numbers of samples differ."""
    listed = ", ".join(f"`{key}` {count}" for key, count in lengths.items())
    return DataError(
        "data.lengths",
        f"the arrays of `{name}` have different numbers of samples: {listed}",
        where=where,
        hint="axis 0 of every array counts the samples; a value that all share is stored as a single one",
        option=("inputs",),
    )
