"""Text that is read: error rates of characters and words, and how outputs become text."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lepton_cli.data.dataset import Array
from lepton_cli.errors import DataError, MissingExtraError, RecipeError
from lepton_cli.measure.formula import Formula, KeptColumns, mean, of_sums, shape_of
from lepton_cli.measure.spec import AccuracySpec


def cer(spec: AccuracySpec) -> Formula:
    """Character error rate: insertions, deletions, substitutions (Levenshtein 1966) over the characters there are."""
    return _rate(spec, str)


def wer(spec: AccuracySpec) -> Formula:
    """Word error rate: the same of words, which white space separates."""
    return _rate(spec, str.split)


def exact(spec: AccuracySpec) -> Formula:
    """Share of samples that are read without any error."""
    read = Reader(spec)
    return Formula(
        lambda output, labels: np.array([[float(one == other)] for one, other in _pairs(read(output), labels)]),
        mean,
        proportion=True,
        takes_text=True,
    )


def _rate(spec: AccuracySpec, units: Callable[[str], Sequence[str]]) -> Formula:
    read = Reader(spec)

    def keep(output: Array, labels: Array) -> KeptColumns:
        distance = _distance(spec.metric)
        pairs = [(units(one), units(other)) for one, other in _pairs(read(output), labels)]
        return np.array([[distance(one, other), len(other)] for one, other in pairs], dtype=np.float64)

    def value(columns: KeptColumns) -> Array:
        edits, length = np.moveaxis(columns.sum(axis=-2), -1, 0)
        return np.asarray(edits / length)

    return Formula(keep, value, takes_text=True, resampled=of_sums(value), share=lambda share: 1 - share)


def _distance(metric: str) -> Callable[[Sequence[str], Sequence[str]], int]:
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as error:
        raise MissingExtraError("text", "rapidfuzz", f"`metric: {metric}`") from error
    return Levenshtein.distance


def _pairs(texts: Sequence[str], labels: Array) -> Iterator[tuple[str, str]]:
    """What is read beside what is written, without white space around. Raises DataError where nothing is written."""
    if len(texts) != labels.size:
        raise DataError(
            "data.labels",
            f"{len(texts)} texts are read, and labels are {shape_of(labels)}: one a sample",
            option=("labels",),
        )
    for sample, (one, other) in enumerate(zip(texts, labels.reshape(-1).tolist(), strict=True)):
        if not str(other).strip():
            raise DataError(
                "data.labels",
                f"the text of sample {sample} of a batch is empty: nothing could be read right",
                hint="leave such samples out of the evaluation data",
                option=("labels",),
            )
        yield one.strip(), str(other).strip()


class Reader:
    """Outputs as text: strings, token ids, or CTC scores, of which the best of every step is taken."""

    def __init__(self, spec: AccuracySpec) -> None:
        self._file, self._blank = spec.alphabet, spec.blank

    def __call__(self, output: Array) -> list[str]:
        """One text a sample.

        Strings `[N]`; token ids `[N, S]`, of which those below 0 and the blank are nothing; scores `[N, T, classes]`,
        where repeated classes are one and the blank is nothing (Graves et al. 2006).

        Raises DataError for other outputs, RecipeError for an alphabet that does not fit.
        """
        if output.dtype.kind in "OU":
            if output.size != len(output):
                raise DataError(
                    "data.labels", f"one text a sample is compared, not {shape_of(output)}", option=("output",)
                )
            return [str(one) for one in output.reshape(-1).tolist()]
        symbols: Sequence[str]
        blank: int | None
        if np.issubdtype(output.dtype, np.floating):
            if output.ndim != 3:
                raise DataError(
                    "data.labels",
                    f"scores {shape_of(output)} are no text: CTC scores are [N, T, classes]",
                    option=("output",),
                )
            symbols, blank = self._classes(output.shape[-1])
            best = output.argmax(axis=-1)
            kept = (best != blank) & (np.diff(best, axis=1, prepend=-1) != 0)
        else:
            symbols = self._alphabet
            blank = None if self._blank is None else self._number(len(symbols))
            best = output.reshape(len(output), -1)
            kept = (best >= 0) & (best != blank)
            if best.max(initial=-1) >= len(symbols):
                raise self._short(f"{len(symbols)} symbols, and the output names token {best.max()}")
        return ["".join(map(symbols.__getitem__, row[use].tolist())) for row, use in zip(best, kept, strict=True)]

    def _classes(self, count: int) -> tuple[list[str], int]:
        """The symbols of all classes, and which class is the blank, whose line may be missing."""
        symbols = list(self._alphabet)
        if len(symbols) not in (count, count - 1):
            raise self._short(
                f"{len(symbols)} symbols, and the output {count} classes: those of {count - 1} symbols and a blank"
            )
        blank = self._number(count)
        if len(symbols) < count:
            symbols.insert(blank, "")
        return symbols, blank

    def _number(self, count: int) -> int:
        """Of the blank, which is the first class unless the recipe says otherwise."""
        if isinstance(self._blank, str):
            if self._blank in self._alphabet:
                return self._alphabet.index(self._blank)
            raise RecipeError(
                "recipe.wrong-value",
                f"the alphabet has no symbol `{self._blank}`",
                hint="give the number of the blank's class: -1 is the last one",
                option=("blank",),
            )
        blank = self._blank or 0
        if not -count <= blank < count:
            raise RecipeError("recipe.wrong-value", f"of {count} classes none is number {blank}", option=("blank",))
        return blank % count

    def _short(self, said: str) -> RecipeError:
        return RecipeError(
            "recipe.wrong-value",
            f"the alphabet has {said}",
            hint="one symbol a line, in the order of the classes; a space is a line with a space",
            option=("alphabet",),
        )

    @functools.cached_property
    def _alphabet(self) -> tuple[str, ...]:
        if self._file is None:
            raise RecipeError(
                "recipe.wrong-value",
                "the output holds numbers, and nothing says which symbols they are",
                hint="`alphabet: FILE` with one symbol a line",
                option=("alphabet",),
            )
        try:
            lines = Path(self._file).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(
                "recipe.wrong-value", f"cannot read the alphabet {self._file}", cause=str(error), option=("alphabet",)
            ) from error
        lines = [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]
        if "" in lines:
            raise RecipeError(
                "recipe.wrong-value",
                f"line {lines.index('') + 1} of the alphabet {self._file} is empty",
                hint="a space is a line with a space",
                option=("alphabet",),
            )
        return tuple(lines)
