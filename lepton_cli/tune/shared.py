"""Trials shared by several machines, in an Optuna storage (extra `tune`): a journal file, or a database."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lepton_cli.errors import MissingExtraError, OutputError, cause_of
from lepton_cli.report.trial import Trial
from lepton_cli.version import __version__

#: Trials are stored under these names in an Optuna study.
_TRIAL, _CLAIM, _VERSION = "lepton.trial", "lepton.claim", "lepton.version"


class SharedStore:
    """Trials in an Optuna storage, for several machines: a journal file, or the URL of a database.

    A machine that is lost leaves its claims behind; others try those candidates again after `STALE` seconds.
    """

    STALE = 1800.0

    def __init__(self, storage: str, search: str, base: Path) -> None:
        """Raises MissingExtraError without Optuna, OutputError for a storage that cannot be used."""
        optuna = _optuna("`tune.storage`")
        self._optuna = optuna
        try:
            backend: Any = storage
            if "://" not in storage:
                files = optuna.storages.journal
                backend = optuna.storages.JournalStorage(files.JournalFileBackend(str(base / storage)))
            earlier = optuna.get_all_study_summaries(backend, include_best_trial=False)
            self._study = optuna.create_study(storage=backend, study_name=f"lepton-{search}", load_if_exists=True)
        except Exception as error:  # whatever a file system or a database raises
            cause = cause_of(error)
            raise OutputError("tune.storage", f"the storage `{storage}` cannot be used", cause=cause) from error
        versions = {study.user_attrs.get(_VERSION) for study in earlier} - {None, __version__}
        if versions:
            raise OutputError(
                "tune.storage-version",
                f"the storage `{storage}` was written by lepton {', '.join(sorted(versions))}",
                cause=f"this is lepton {__version__}, and its trials are not comparable",
                hint="use the same version on every machine, or another storage",
            )
        self._study.set_user_attr(_VERSION, __version__)

    def trials(self) -> list[Trial]:
        """Every finished trial so far, oldest first."""
        found = []
        for stored in self._study.get_trials(deepcopy=False):
            text = stored.user_attrs.get(_TRIAL)
            if text is not None:
                with contextlib.suppress(ValidationError, TypeError):
                    found.append(Trial.model_validate_json(text))
        return found

    def add(self, trial: Trial) -> None:
        """Share a finished trial."""
        own = self._study.ask()
        own.set_user_attr(_TRIAL, json.dumps(json.loads(trial.model_dump_json(exclude_defaults=True))))
        self._study.tell(own, state=self._optuna.trial.TrialState.FAIL)

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Hold a candidate: of several claims the one with the lowest number counts."""
        own = self._study.ask()
        own.set_user_attr(_CLAIM, key)
        try:
            yield own.number == min(self._claims(key), default=own.number)
        finally:
            self._study.tell(own, state=self._optuna.trial.TrialState.FAIL)

    def _claims(self, key: str) -> Iterator[int]:
        import datetime

        running = (self._optuna.trial.TrialState.RUNNING,)
        now = datetime.datetime.now()
        for stored in self._study.get_trials(deepcopy=False, states=running):
            young = stored.datetime_start and (now - stored.datetime_start).total_seconds() < self.STALE
            if stored.user_attrs.get(_CLAIM) == key and young:
                yield stored.number


def _optuna(purpose: str) -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("tune", "optuna", purpose) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
