"""Orders of steps that cannot work, whatever the model: said when a recipe is read."""

from __future__ import annotations

from collections.abc import Sequence

from lepton_cli.errors import RecipeError
from lepton_cli.recipe.source import Path, SourceMap
from lepton_cli.step import Options

_INT8 = ("quantize.static", "quantize.dynamic")
_PRUNED = "channels are taken from float weights: put `prune.channels` before `{earlier}`"
_HALF = (
    "int8 operators read and return float32, so `{earlier}` and `convert.fp16` do not go together: leave one out; "
    "for the weights that stay float there is `quantize.weights` with `bits: 8`"
)
_UNDONE = "`{later}` computes in float32 what it leaves, which undoes `convert.fp16`: leave that out"
_ONCE = "one `quantize.static` takes all nodes, so that neighbours share int8: join the two steps"
_CODES = "`{earlier}` trains what was quantized: put it behind `{later}`"
_FLOAT = "behind `{earlier}` it is `quantize.aware` that trains: take that, or put `{later}` before"
#: Earlier step, later step, what to do instead.
_WRONG = {
    **{(step, "prune.channels"): _PRUNED for step in _INT8},
    **{(step, "convert.fp16"): _HALF for step in _INT8},
    **{("convert.fp16", step): _UNDONE for step in _INT8},
    ("quantize.static", "quantize.static"): _ONCE,
    ("quantize.static", "distill"): _FLOAT,
    ("quantize.aware", "prune.channels"): _PRUNED,
    ("quantize.aware", "quantize.static"): _CODES,
}


def check_order(steps: Sequence[Options], source: SourceMap, at: Path = ("steps",)) -> None:
    """Raise RecipeError for a step that cannot follow one before it. Steps that may be left out are no error."""
    for number, later in enumerate(steps):
        for earlier in steps[:number]:
            said = _WRONG.get((earlier.step, later.step))
            if said is None or earlier.if_possible or later.if_possible:
                continue
            raise RecipeError(
                "recipe.order",
                f"`{later.step}` cannot follow `{earlier.step}`",
                where=source.place((*at, number)),
                hint=said.format(earlier=earlier.step, later=later.step),
                option=(*at, number),
            )
