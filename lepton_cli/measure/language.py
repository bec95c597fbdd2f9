"""Language models: how likely they find the tokens that follow."""

from __future__ import annotations

from functools import partial

import numpy as np

from lepton_cli.data.dataset import Array
from lepton_cli.errors import DataError
from lepton_cli.measure.formula import Formula, KeptColumns, check_range, class_scores, of_sums, shape_of
from lepton_cli.measure.spec import AccuracySpec

#: A label that is no token, in the data of most tools that train.
NO_TOKEN = -100
#: Scores that are turned into float64 at once.
_BLOCK = 1 << 22
#: A probability of 0 is one that float32 cannot hold.
_LEAST = float(np.finfo(np.float32).tiny)


def perplexity(spec: AccuracySpec) -> Formula:
    """e to the power of the mean negative log-likelihood of a token, over all tokens of all samples."""
    return Formula(
        partial(_likelihood, ignore=spec.ignore_index),
        _perplexity,
        takes_classes=True,
        by_scores=True,
        # The geometric mean of the tokens' probabilities.
        share=lambda value: 1 / value,
        resampled=of_sums(_perplexity),
        undefined="no label is a token that counts, or one has no likelihood at all",
    )


def _likelihood(output: Array, labels: Array, ignore: int | None) -> KeptColumns:
    """Of each sample the negative log-likelihood of its tokens, in nats, and their number.

    Output: scores before or after a softmax, `[N, S, tokens]` or `[N, tokens, S]`; labels `[N, S]`: what follows at
    each position. Raises DataError for other shapes and for labels that are no tokens.
    """
    if not np.issubdtype(output.dtype, np.floating) or output.ndim != labels.ndim + 1:
        raise DataError(
            "data.labels",
            f"perplexity wants scores of every token at every position, not {shape_of(output)} for labels of "
            f"{shape_of(labels)}",
            hint="outputs [N, S, tokens] and labels [N, S], the token that follows at each position",
            option=("output",),
        )
    scores = class_scores(output, labels)
    counted = (labels != NO_TOKEN) if ignore is None else (labels != NO_TOKEN) & (labels != ignore)
    tokens = scores.shape[-1]
    hint = f"`ignore_index` leaves labels out, and {NO_TOKEN} always is"
    check_range(labels[counted], tokens, hint=hint, option=("ignore_index",))
    rows, own = scores[counted], labels[counted]
    lost = np.empty(len(own))
    step = max(1, _BLOCK // tokens)
    for start in range(0, len(own), step):
        block = slice(start, start + step)
        lost[block] = _lost(rows[block].astype(np.float64), own[block])
    sums = np.zeros(labels.shape)
    sums[counted] = lost
    per_sample = [part.reshape(len(labels), -1).sum(axis=1) for part in (sums, counted)]
    return np.stack(per_sample, axis=1).astype(np.float64)


def _lost(scores: Array, own: Array) -> Array:
    """Negative log-likelihood of one token of each row."""
    mine = scores[np.arange(len(own)), own]
    if scores.min() >= 0 and np.allclose(scores.sum(axis=1), 1, atol=1e-3):
        return np.asarray(-np.log(np.maximum(mine, _LEAST)))
    top = scores.max(axis=1)
    return np.asarray(top + np.log(np.exp(scores - top[:, None]).sum(axis=1)) - mine)


def _perplexity(columns: KeptColumns) -> Array:
    lost, tokens = np.moveaxis(columns.sum(axis=-2), -1, 0)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.exp(lost / tokens))
