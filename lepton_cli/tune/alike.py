"""Evaluation data in which all samples have the same label, or get the same answer: nothing is measured on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lepton_cli.data.dataset import Array
from lepton_cli.measure import metrics
from lepton_cli.measure.accuracy import default_specs, label_name
from lepton_cli.measure.formula import class_scores
from lepton_cli.measure.spec import AccuracySpec
from lepton_cli.measure.stream import Results
from lepton_cli.metrics import CLASSIFYING, Metric
from lepton_cli.report import words

#: The arm of the results that is looked at.
ORIGINAL = "original"


class SameRows:
    """Whether all rows are the same."""

    def __init__(self, *, same: bool = True) -> None:
        self.first: Array | None = None
        self.same = same

    def add(self, rows: Array, count: int) -> None:
        """More rows, one for each of `count` samples; anything else is no row and differs."""
        self.same = self.same and len(rows) == count
        if self.same and count:
            self.first = rows[0] if self.first is None else self.first
            self.same = rows.shape[1:] == np.shape(self.first) and bool((rows == self.first).all())

    def constant(self, samples: int) -> bool:
        """Whether there is nothing to tell apart: of a single sample, where it has a single value too."""
        return self.same and self.first is not None and (samples > 1 or np.size(self.first) == 1)

    def value(self, names: Sequence[str]) -> str:
        """What all rows hold. `names`: of classes, by their number."""
        if self.first is None or np.size(self.first) != 1:
            return "the same"
        number = float(np.reshape(self.first, -1)[0])
        if not number.is_integer():
            return f"{number:.6g}"
        named = names[int(number)] if 0 <= number < len(names) else ""
        return f"{int(number)}" + (f" ({words.printable(named, 40)})" if named else "")


class Alike:
    """What one metric sees of the samples: labels and the original's answers, and whether either ever differs."""

    def __init__(
        self, metric: Metric, output: str, specs: Sequence[AccuracySpec], names: Mapping[str, Sequence[str]]
    ) -> None:
        """`specs`: what is measured, nothing where it follows from the labels; `names`: label -> names of classes."""
        self.metric, self.output = metric, output
        #: Whether each sample counts as right or wrong, and the metric is the share of the right ones.
        self.counts = False
        self._specs, self._names = specs, names
        self._labels, self._answers = SameRows(same=metric.source == "accuracy"), SameRows()
        self._label = ""
        self._classes = False
        self._decide: Callable[[Array], Array] | None = None
        #: One number per sample: whether they are probabilities or logits shows only in all of them.
        self._scores: list[Array] = []
        #: Number of classes of which any model names the right one.
        self._guessed = 0
        self._started = False

    @property
    def settled(self) -> bool:
        """Whether other samples would change nothing."""
        return self._started and not (self._labels.same or self._answers.same)

    def add(self, results: Results) -> None:
        """One batch."""
        outputs, labels = results.outputs[ORIGINAL], results.labels
        if not self._started:
            self._started = True
            self._start(outputs, labels, results.count)
        output = outputs.get(self.output)
        if self._labels.same:
            self._labels.add(self._own(labels, output), results.count)
        if output is None or not self._answers.same:
            return
        if self._decide is None:
            self._answers.add(output, results.count)
        elif output.size == results.count and self._classes and np.issubdtype(output.dtype, np.floating):
            self._scores.append(output.reshape(-1))
            scores, self._answers = np.concatenate(self._scores), SameRows()
            self._answers.add(self._decide(scores), len(scores))
        else:
            self._answers.add(self._decide(output), results.count)

    def _start(self, outputs: Mapping[str, Array], labels: Mapping[str, Array], count: int) -> None:
        first = next(iter(outputs))
        specs = [
            spec
            for spec in self._specs or default_specs(outputs, labels)
            if (spec.output or first) == self.output and spec.metric != "python"
        ]
        judged = self.metric.source == "accuracy"
        if judged:
            by_class = self.metric.by_class
            specs = [
                spec
                for spec in specs
                if (spec.metric in CLASSIFYING if by_class else spec.about.name == self.metric.name)
            ]
        spec = next((spec for spec in specs if metrics.formula(spec).takes_classes), specs[0] if specs else None)
        # The score of several metrics and functions of the recipe's own may mean anything.
        self._labels.same = judged and spec is not None
        output = outputs.get(self.output)
        self._answers.same = output is not None and (spec is not None or not judged)
        if spec is not None:
            self._label = label_name(spec, 0, self.output, tuple(labels))
            self._classes = metrics.formula(spec).takes_classes
        if output is None or self.metric.name == "fidelity.sqnr":
            return
        own = self._own(labels, output) if self._classes else None
        scored = judged and spec is not None and metrics.formula(spec).by_scores
        if (own is not None and not scored) or self.metric.name == "agreement":
            self._decide = metrics.decider(output, own, self.output)
        if judged and spec is not None and own is not None:
            self.counts = (metrics.formula(spec).proportion or self.metric.by_class) and own.ndim == 1
            if spec.metric == "topk" and not self.metric.by_class and np.issubdtype(output.dtype, np.floating):
                classes = class_scores(output, own).shape[-1]
                self._guessed = classes if classes <= spec.k else 0
        elif judged and spec is not None and metrics.formula(spec).takes_text:
            self.counts = metrics.formula(spec).proportion
        elif self._decide is not None:
            self.counts = self._decide(output).size == count

    def _own(self, labels: Mapping[str, Array], output: Array | None) -> Array:
        own = labels[self._label]
        return metrics.class_labels(own, output) if self._classes and output is not None else own

    def reason(self, samples: int) -> str:
        """Why the metric tells nothing about that many samples, all of which were seen; empty where it does."""
        names = self._names.get(self._label, ())
        if self._guessed:
            return f"of {self._guessed} classes any model names the right one"
        if self._labels.constant(samples):
            value = self._labels.value(names)
            every = f"all {samples:,} labels are {value}" if samples > 1 else f"the only label is {value}"
            return f"{every}, and any model that always answers so is perfect"
        if self._answers.constant(samples):
            every = f"all {samples:,} samples" if samples > 1 else "the only sample"
            value = self._answers.value(names if self._classes else ())
            return f"the original answers {value} for {every}, and any model that always does is as good"
        return ""
