"""What candidates begin with."""

from __future__ import annotations

import pytest

import lepton_cli as lepton
from lepton_cli.errors import RecipeError
from lepton_cli.prune.prospects import Prospect
from lepton_cli.recipe.tuning import Space
from lepton_cli.step import Options
from lepton_cli.tune.candidate import beginning
from lepton_cli.tune.space import derive
from tests.tune.test_space import CNN

CLEAN, PRUNE, INT8 = lepton.Simplify(), lepton.PruneChannels(), lepton.QuantizeStatic()
HEAD, TUNED = lepton.HeadAdd(at="h", name="digit", classes=3), lepton.Finetune()


@pytest.mark.parametrize(
    ("steps", "count"),
    [
        ((CLEAN, PRUNE, lepton.Distill(), INT8), 0),
        ((CLEAN,), 0),
        ((CLEAN, HEAD, TUNED, lepton.Fuse(), INT8), 3),
        ((TUNED, PRUNE, TUNED), 1),
        ((INT8, lepton.QuantizeAware()), 0),
        ((PRUNE.model_copy(update={"recover": ("distill",)}), INT8), 0),
        ((CLEAN, HEAD, CLEAN, TUNED), 4),
    ],
)
def test_what_teaches_before_anything_is_compressed(steps: tuple[Options, ...], count: int) -> None:
    assert beginning(steps) == steps[:count]


def test_a_head_behind_what_compresses() -> None:
    with pytest.raises(RecipeError) as caught:
        beginning((CLEAN, HEAD, PRUNE, HEAD))
    assert (caught.value.code, caught.value.option) == ("tune.late-head", ("steps", 3))


def test_every_candidate_begins_alike() -> None:
    plain, taught = derive(Space(), CNN), derive(Space(), CNN, (CLEAN, HEAD, TUNED))
    point = plain.point({"precision": "int8"}, pruned=True)
    half = Prospect({"g": 4}, (), 0.1, 0.5, 0.5)
    alone, behind = plain.candidate(point, half), taught.candidate(point, half)
    assert behind.steps == (CLEAN, HEAD, TUNED, *alone.steps)
    assert behind.key("s") != alone.key("s")
