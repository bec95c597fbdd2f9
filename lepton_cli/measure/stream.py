"""All models over a data set, batch by batch: nothing is kept, and every output is checked to be a number."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_cli.data.batching import layout
from lepton_cli.data.dataset import Batch, Dataset
from lepton_cli.data.labels import as_text
from lepton_cli.errors import LeptonError, MeasurementError
from lepton_cli.measure.arms import InputNames, NewOutputs, Payload, feeds_for, output_names
from lepton_cli.progress import Progress, Silent
from lepton_cli.runtime import Session


@dataclasses.dataclass(frozen=True)
class Results:
    """What all models made of one batch. `outputs[arm][output]`: samples on axis 0, named as the first model does."""

    outputs: dict[str, dict[str, NDArray[Any]]]
    labels: dict[str, NDArray[Any]]
    start: int
    count: int
    #: Those of `labels` that are stored as text, as they are written.
    texts: dict[str, NDArray[Any]]
    #: What the models were fed.
    fed: Batch


def run(
    arms: Mapping[str, Payload | Session],
    dataset: Dataset,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    limit: int | None = None,
    input_names: InputNames | None = None,
    new: NewOutputs | None = None,
    progress: Progress | None = None,
) -> Iterator[Results]:
    """Outputs of every model for every batch; an arm may be a session that is open already.

    `new`: by arm, outputs that are its own, whatever the first model has under these names.

    A model with a fixed batch size gets batches of that size, the last one filled up with copies whose results are
    dropped. Raises MeasurementError for NaN outputs, naming output and sample, and when a model fails to run.
    """
    sessions = {name: _open(name, payload, provider, threads) for name, payload in arms.items()}
    reference = next(iter(sessions.values()))
    names = {
        arm: output_names(reference, session) | {name: name for name in (new or {}).get(arm, ())}
        for arm, session in sessions.items()
    }
    size = dataset.fixed_batch  # known from the graph, which a session does not show
    if size is None:
        size = next((fixed for s in sessions.values() if (fixed := layout(s.inputs).fixed) is not None), None)
    total = min(dataset.count, limit) if limit else dataset.count
    with (progress or Silent()).stage("accuracy", total) as stage:
        for batch in dataset.batches(size, limit):
            count = batch.count
            feeds = batch.sized(size or count)
            outputs = {}
            for arm, session in sessions.items():
                found = _run(arm, session, feeds_for(session, feeds, (input_names or {}).get(arm)), names[arm])
                if size not in (None, count):
                    found = {name: value[:count] if len(value) == size else value for name, value in found.items()}
                _check_numbers(arm, found, batch.start)
                outputs[arm] = found
            texts = {name: as_text(batch.labels[name], dataset.class_names[name]) for name in dataset.text_labels}
            yield Results(outputs, batch.labels, batch.start, count, texts, batch)
            stage.advance(count)


def _open(name: str, payload: Payload | Session, provider: str, threads: int | None) -> Session:
    if isinstance(payload, Session):
        return payload
    try:
        return Session(payload, provider=provider, threads=threads)
    except LeptonError as error:
        error.note = error.note or f"while loading `{name}`"
        raise


def _run(arm: str, session: Session, feeds: dict[str, Any], names: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    try:
        found = session.run(feeds, list(names.values()))
    except LeptonError as error:
        raise MeasurementError("measure.run", f"`{arm}` cannot be run on the data", cause=error.cause) from error
    # Sequences and maps (outputs of some tree models) are no arrays: they cannot be compared.
    return {
        ours: np.atleast_1d(found[theirs]) for ours, theirs in names.items() if isinstance(found[theirs], np.ndarray)
    }


def _check_numbers(arm: str, outputs: Mapping[str, NDArray[Any]], start: int) -> None:
    for name, value in outputs.items():
        if not np.issubdtype(value.dtype, np.floating):
            continue
        broken = np.isnan(value)
        if broken.any():
            sample = start + int(np.argwhere(broken)[0][0])
            share = float(broken.mean())
            raise MeasurementError(
                "measure.nan",
                f"output `{name}` of `{arm}` contains NaN at sample {sample} ({100 * share:.3g} % of this batch)",
                hint="run `lepton compare` on the models before and after each step to find where it begins",
            )
