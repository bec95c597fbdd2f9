"""What models predict, class by class: who is right, flipped samples, and signs of a wrong preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_cli.data.groups import Groups
from lepton_cli.measure.metrics import predictions
from lepton_cli.measure.results import Confusion, Flip
from lepton_cli.measure.rows import Counts, count

FLIPS_KEPT = 50
_CONFUSIONS_KEPT = 50
#: Fewer samples say nothing about a suspicious accuracy.
_ENOUGH = 20


class Predictions:
    """Predicted class, confidence and label of every sample, for each model."""

    def __init__(self, output: str, names: Sequence[str] = ()) -> None:
        """`names`: class names by class number where the data knows them, empty for a class without one."""
        self.output, self.names = output, names
        self.classes = 0
        self._outputs: dict[str, list[NDArray[Any]]] = {}
        self._found: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {}
        self._labels: list[NDArray[Any]] = []

    def add(self, outputs: dict[str, NDArray[Any]], labels: NDArray[Any] | None) -> None:
        """One batch: the class output of every model, and the labels."""
        if labels is not None:
            self._labels.append(labels)
        for arm, output in outputs.items():
            if output.size == len(output):
                # One number per sample: whether it is a probability or a logit shows only in all of them.
                self._outputs.setdefault(arm, []).append(output.reshape(-1))
                self.classes = max(self.classes, 2)
            else:
                self._found.setdefault(arm, []).append(predictions(output))
                self.classes = output[0].size

    def of(self, arm: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """Predicted classes and confidences, each of shape (samples,)."""
        if arm in self._outputs:
            return predictions(np.concatenate(self._outputs[arm]))
        parts = self._found[arm]
        return np.concatenate([p for p, _ in parts]), np.concatenate([c for _, c in parts])

    @property
    def labels(self) -> NDArray[Any] | None:
        """All labels, shape (samples,)."""
        return np.concatenate(self._labels) if self._labels else None

    def name(self, number: int) -> str:
        """What a class is called: its number where it has no name."""
        return (self.names[number] if 0 <= number < len(self.names) else "") or str(int(number))

    def flips(self, reference: str, other: str) -> tuple[tuple[Flip, ...], int]:
        """Samples whose class changed, the original's most confident first (50 at most), and how many there are."""
        before, confidence = self.of(reference)
        after, _ = self.of(other)
        changed = np.flatnonzero(before != after)
        first = changed[np.argsort(-confidence[changed], kind="stable")][:FLIPS_KEPT]
        labels = self.labels
        flips = tuple(
            Flip(
                sample=int(i),
                label=None if labels is None else self.name(labels[i]),
                original=self.name(before[i]),
                compressed=self.name(after[i]),
                confidence=float(confidence[i]),
            )
            for i in first
        )
        return flips, len(changed)

    def counts(self, reference: str, other: str, groups: Groups | None = None) -> tuple[Counts, ...]:
        """Of each true class, or of each group, how many samples either model gets right; empty without labels."""
        labels = self.labels
        if labels is None:
            return ()
        which = labels if groups is None else groups.codes[: len(labels)]
        known, found = count(self.of(reference)[0] == labels, self.of(other)[0] == labels, which)
        names = [self.name(number) if groups is None else groups.names[number] for number in known]
        return tuple(
            Counts(name, int(both), int(lost), int(won), int(neither))
            for name, (both, lost, won, neither) in zip(names, found, strict=True)
        )

    def confusions(self, reference: str, other: str) -> tuple[Confusion, ...]:
        """Pairs of true and wrongly predicted class with their counts, the most changed first; empty without labels."""
        labels = self.labels
        if labels is None:
            return ()
        counts: dict[tuple[int, int], list[int]] = {}
        for position, arm in enumerate((reference, other)):
            predicted = self.of(arm)[0]
            wrong = predicted != labels
            pairs, numbers = np.unique(np.stack([labels[wrong], predicted[wrong]]), axis=1, return_counts=True)
            for true, guess, number in zip(*pairs, numbers, strict=True):
                counts.setdefault((int(true), int(guess)), [0, 0])[position] = int(number)
        ranked = sorted(counts.items(), key=lambda item: (-abs(item[1][1] - item[1][0]), -item[1][1], item[0]))
        return tuple(
            Confusion(label=self.name(true), predicted=self.name(guess), original=before, compressed=after)
            for (true, guess), (before, after) in ranked[:_CONFUSIONS_KEPT]
        )

    def suspicions(self, arm: str) -> list[str]:
        """Signs that the data does not fit the model, in words."""
        labels = self.labels
        if labels is None or len(labels) < _ENOUGH or len(np.unique(labels)) < 2:
            return []
        predicted, _ = self.of(arm)
        accuracy = float((predicted == labels).mean())
        if len(np.unique(predicted)) == 1:
            return [
                f"`{arm}` predicts class {int(predicted[0])} for all {len(labels)} samples: check the preprocessing "
                "(scale 1/255 or not, mean and std, layout)"
            ]
        shifted = {shift: float((predicted == labels + shift).mean()) for shift in (1, -1)}
        shift, best = max(shifted.items(), key=lambda item: item[1])
        right = f"`{arm}` is right on {100 * accuracy:.3g} % of the samples"
        if best > max(0.3, 3 * accuracy):
            return [
                f"{right}, but on {100 * best:.3g} % when the labels are shifted by {shift:+d}: labels and outputs "
                f"count classes differently (a background class?): `label_offset: {shift}` in the data corrects it"
            ]
        chance = 1 / max(2, self.classes)
        if accuracy < min(1.5 * chance, chance + 0.1):
            return [
                f"{right}, near chance ({100 * chance:.3g} %): check the preprocessing before trusting any comparison. "
                "Usual causes: values 0 to 255 where 0 to 1 is wanted or the reverse (`scale: 1/255`), missing "
                "`mean`/`std`, BGR against RGB (`channels`), NHWC against NCHW (`layout`), labels in another order"
            ]
        return []
