"""Fold constants, remove dead and duplicate parts, fold BatchNorm into Conv; results stay the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from lepton_cli.steps.base import Context, Outcome
from lepton_cli.steps.base import Params as BaseParams

if TYPE_CHECKING:
    import onnx_ir as ir


class Params(BaseParams):
    """Fold constants and BatchNorm, remove what is dead or held twice; outputs stay the same."""

    step: Literal["simplify"]
    fold_batch_norm: bool | None = Field(
        default=None, description="Fold BatchNormalization into Conv; default: yes, unless a later step re-estimates it"
    )


def apply(model: ir.Model, params: Params, context: Context) -> Outcome:
    """Fold constants, remove dead and duplicate parts, fold BatchNorm into Conv; results stay the same."""
    from lepton_cli.graph import simplify

    return simplify.run(model, params, context)
