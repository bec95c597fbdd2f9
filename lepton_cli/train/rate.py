"""How fast to learn: the largest rate that a short trial survives. One step too high destroys a network."""

from __future__ import annotations

from collections.abc import Callable

from lepton_cli.train.loop import Mark, Trainer

#: Rates of AdamW that are tried, largest first.
RATES = (3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
#: Steps of a trial at most, and as a share of the whole training.
STEPS, SHARE = 30, 0.02
_LEAST_STEPS = 6


def probe(trainer: Callable[[float], Trainer], steps: int) -> tuple[float, list[tuple[float, Mark]]]:
    """The largest rate whose loss on the samples kept apart has not risen after a trial, and what was seen.

    `trainer`: begins anew, from the same parameters, at a rate. `steps`: of the whole training. Where every rate makes
    it worse, the smallest one is taken: later steps are smaller, and what is worse at the end is thrown away.
    """
    trial = max(_LEAST_STEPS, min(STEPS, round(steps * SHARE)))
    seen: list[tuple[float, Mark]] = []
    before: float | None = None
    for rate in RATES:
        one = trainer(rate)
        before = one.lesson.judge(one.network) if before is None else before
        for number in range(trial):
            one.step(number, rate * min(1.0, (number + 1) / (trial / 3)))
        seen.append((rate, Mark(trial, one.lesson.judge(one.network))))
        if seen[-1][1].loss <= before:
            break
    return seen[-1][0], seen
