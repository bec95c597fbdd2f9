"""Steps in an order that cannot work are refused where the recipe is read, with the order that does."""

from __future__ import annotations

from typing import Any

import pytest

from lepton_cli.errors import RecipeError
from lepton_cli.recipe.load import from_dict

PRUNE = {"step": "prune.channels", "target": {"params": "50 %"}}


def read(*steps: str | dict[str, Any]) -> None:
    from_dict({"version": 1, "steps": [{"step": one} if isinstance(one, str) else one for one in steps]})


@pytest.mark.parametrize(
    ("steps", "hint"),
    [
        (("quantize.static", PRUNE), "put `prune.channels` before `quantize.static`"),
        (("quantize.dynamic", "simplify", PRUNE), "put `prune.channels` before `quantize.dynamic`"),
        (("quantize.dynamic", "convert.fp16"), "leave one out"),
        (("convert.fp16", "quantize.static"), "undoes `convert.fp16`"),
        (("quantize.static", "quantize.static"), "join the two steps"),
        (("quantize.static", "distill"), "it is `quantize.aware` that trains"),
        (("quantize.aware", "quantize.static"), "put it behind `quantize.static`"),
        (("quantize.static", "quantize.aware", PRUNE), "put `prune.channels` before `quantize.static`"),
        (("quantize.aware", PRUNE), "put `prune.channels` before `quantize.aware`"),
    ],
)
def test_wrong_orders(steps: tuple[str | dict[str, Any], ...], hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(*steps)
    assert caught.value.code == "recipe.order"
    assert caught.value.option == ("steps", len(steps) - 1)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    "steps",
    [
        (PRUNE, "quantize.static", "quantize.dynamic", "quantize.weights", "quantize.weights", "simplify"),
        ("quantize.dynamic", "quantize.static"),
        ("quantize.weights", "convert.fp16"),
        ("convert.fp16", "quantize.weights"),
        (PRUNE, "distill", "quantize.static", "quantize.aware"),
        ("quantize.static", {**PRUNE, "if_possible": True}),
    ],
)
def test_orders_that_work(steps: tuple[str | dict[str, Any], ...]) -> None:
    read(*steps)
