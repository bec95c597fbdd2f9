"""How long work reports where it is; the command line draws it, everything else only calls it."""

from __future__ import annotations

from typing import Protocol


class Stage(Protocol):
    """One running piece of work; use as a context manager."""

    def advance(self, count: int = 1) -> None:
        """`count` more units are done."""

    def note(self, text: str) -> None:
        """A short result shown when the stage has ended, such as `21 of 23 layers`."""

    def __enter__(self) -> Stage: ...

    def __exit__(self, *exc: object) -> None: ...


class Progress(Protocol):
    """Starts stages and passes on remarks."""

    def stage(self, name: str, total: int | None = None) -> Stage:
        """Begin a stage of `total` units (`None`: unknown)."""

    def say(self, text: str) -> None:
        """A remark that is good to know."""

    def warn(self, text: str) -> None:
        """A remark the user should see now; it belongs in the report too."""


class _SilentStage:
    def advance(self, count: int = 1) -> None: ...

    def note(self, text: str) -> None: ...

    def __enter__(self) -> _SilentStage:
        return self

    def __exit__(self, *exc: object) -> None: ...


class Silent:
    """Progress that shows nothing: for tests and for use as a library."""

    def stage(self, name: str, total: int | None = None) -> Stage:
        return _SilentStage()

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...
