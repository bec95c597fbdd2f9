"""The models of a comparison on one provider at one batch size: checked once, then opened fresh in each round."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from lepton_cli.errors import MeasurementError, ModelError
from lepton_cli.measure.arms import InputNames, Payload, feeds_for, misfit
from lepton_cli.runtime import CPU, Session, Values, provider_name
from lepton_cli.timing.compare import Opener, Warm


class Unsupported(MeasurementError):
    """The reference itself cannot run this batch size."""


@dataclasses.dataclass
class Case:
    """All arms at one provider and batch size."""

    arms: Mapping[str, Payload]
    provider: str
    batch: int
    threads: int
    feeds: Values
    input_names: InputNames
    placement: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    fallback: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    #: Arms that are left out where they do not run.
    optional: frozenset[str] = frozenset()
    #: What tells it from others besides provider and batch size, in words.
    beside: str = ""

    def check(self) -> None:
        """One run of every arm; optional ones that do not run are dropped. Raises ProviderError, Unsupported for the
        reference, MeasurementError for others.
        """
        provider_name(self.provider)
        if not self.feeds and self.batch > 1:
            raise Unsupported("measure.batch", "the model takes one sample at a time")
        for position, (name, payload) in enumerate(list(self.arms.items())):
            try:
                session = self.session(payload)
                feeds = feeds_for(session, self.feeds, self.input_names.get(name))
            except (ModelError, MeasurementError):
                if name not in self.optional:
                    raise
                self._drop(name)
                continue
            reason = misfit(session.inputs, feeds)
            if not reason:
                try:
                    session.run(feeds)
                except ModelError as error:
                    reason = error.cause or error.message
            if reason and name in self.optional:
                self._drop(name)
                continue
            if reason and position == 0:
                raise Unsupported("measure.batch", reason)
            if reason:
                raise MeasurementError(
                    "measure.run",
                    f"`{name}` cannot run batch {self.batch} on {self.provider}, which the original can",
                    cause=reason,
                )
            self.placement[name] = session.placement()
            self.fallback[name] = () if session.provider_name == CPU else session.fallback()

    def _drop(self, name: str) -> None:
        self.arms = {arm: payload for arm, payload in self.arms.items() if arm != name}

    def session(self, payload: Payload) -> Session:
        return Session(payload, provider=self.provider, threads=self.threads)

    def openers(self) -> list[Opener]:
        """What creates a fresh session of each arm, in their order."""

        def opener(name: str, payload: Payload) -> Opener:
            def create() -> Warm:
                session = self.session(payload)
                feeds = feeds_for(session, self.feeds, self.input_names.get(name))
                return Warm(session.caller(feeds), session.device_caller(feeds))

            return create

        return [opener(name, payload) for name, payload in self.arms.items()]
