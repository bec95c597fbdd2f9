"""Set single weights to zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from lepton_cli.steps.base import Context, Outcome
from lepton_cli.steps.base import Params as BaseParams
from lepton_cli.values import Percent

if TYPE_CHECKING:
    import onnx_ir as ir


class Params(BaseParams):
    """Set single weights to zero: shrinks the compressed file only, speeds nothing up in onnxruntime."""

    step: Literal["prune.weights"]
    sparsity: Percent | None = Field(default=None, description="Share of the weights to zero, such as `80 %`")
    threshold: float | None = Field(default=None, ge=0, description="Zero everything whose importance is below this")
    pattern: str | None = Field(
        default=None, pattern=r"^[0-9]+:[0-9]+$", description="N:M, such as `2:4`: N of every M stay"
    )
    importance: Literal["l1", "l2", "zscore", "hessian"] | None = Field(
        default=None, description="Ranking of weights; default: hessian with calibration data, else l1"
    )
    scope: Literal["global", "layer"] = Field(default="layer", description="One ranking for all layers, or one each")


def apply(model: ir.Model, params: Params, context: Context) -> Outcome:
    """Set single weights to zero."""
    from lepton_cli.prune.weights import prune

    return prune(model, params, context)
