"""A clock that only models move."""

from __future__ import annotations

from collections.abc import Callable

from lepton_cli.timing.compare import Opener, Warm


class FakeClock:
    """Nanoseconds; `model` gives something to time, whose runs move it on."""

    def __init__(self) -> None:
        self.now = 0
        #: What was called, in order.
        self.calls: list[str] = []
        #: How often sessions of each model were created.
        self.opened: dict[str, int] = {}

    def __call__(self) -> int:
        return self.now

    def call(self, name: str, seconds: Callable[[], float] | float) -> Callable[[], None]:
        """Something that takes so long; the time may be asked for at every run."""

        def run() -> None:
            self.calls.append(name)
            self.now += round((seconds() if callable(seconds) else seconds) * 1e9)

        return run

    def model(self, name: str, seconds: Callable[[], float] | float, device: float | None = None) -> Opener:
        """Opens sessions that take so long a run."""

        def open_() -> Warm:
            self.opened[name] = self.opened.get(name, 0) + 1
            on_device = None if device is None else self.call(f"{name} on the device", device)
            return Warm(self.call(name, seconds), on_device)

        return open_
