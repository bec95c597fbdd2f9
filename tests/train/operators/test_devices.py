"""On any device, and of mixed types, as autocast leaves them. torch's `meta` has no numbers, and mixes with tensors of
the CPU as little as a GPU's do.
"""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch

from lepton_cli.train.operators.call import call_of
from lepton_cli.train.operators.table import OPERATORS
from tests.train.operators import test_activations, test_arithmetic, test_indexing, test_movement, test_reductions
from tests.train.operators.oracle import cases, given

#: Inputs by place that say how, not what: sizes, axes, scales, bounds. They stay on the CPU.
SETTINGS = {
    **dict.fromkeys(("Reshape", "Expand", "Tile", "Split", "Squeeze", "Unsqueeze", "TopK", "CumSum", "CumProd"), (1,)),
    **dict.fromkeys(("OneHot", "Upsample", "Trilu", *test_reductions.REDUCTIONS), (1,)),
    **dict.fromkeys(("Slice", "Pad", "Resize", "Clip", "Dropout"), (1, 2, 3, 4)),
}
NAMES = {
    *(
        *test_arithmetic.NAMES,
        *test_activations.PLAIN,
        *test_activations.SOFT,
        *test_indexing.NAMES,
        "PRelu",
        "Dropout",
    ),
    *(*test_movement.NAMES, *test_reductions.REDUCTIONS, "ArgMax", "ArgMin", "TopK", "CumSum", "CumProd", "Einsum"),
    *("Resize", "Upsample", "GridSample", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
    # Results that depend on numbers, or are sizes.
} - {"NonZero", "Compress", "Unique", "Range", "ConstantOfShape", "Shape", "Size"}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_results_are_where_the_inputs_are(name: str) -> None:
    tried = 0
    for case in cases()[name]:
        assert case.data_sets
        try:
            tensors = given(case, case.data_sets[0][0])
            call = call_of(ir.from_proto(case.model).graph[0], case.model.opset_import[0].version)
            OPERATORS["", name](call, *tensors)
        except NotImplementedError:
            continue
        stay = SETTINGS.get(name, ())
        moved = [one if one is None or place in stay else one.to("meta") for place, one in enumerate(tensors)]
        made = OPERATORS["", name](call, *moved)
        for one in made if isinstance(made, tuple) else (made,):
            assert one is not None
            assert one.device.type == "meta"
        tried += 1
    assert tried


@pytest.mark.parametrize("name", sorted(NAMES))
def test_floats_of_two_types_meet(name: str) -> None:
    """One input of less precision than the others is no error."""
    for case in cases()[name]:
        assert case.data_sets
        try:
            tensors = given(case, case.data_sets[0][0])
            call = call_of(ir.from_proto(case.model).graph[0], case.model.opset_import[0].version)
            OPERATORS["", name](call, *tensors)
        except NotImplementedError:
            continue
        for place, one in enumerate(tensors):
            if one is not None and one.dtype == torch.float32:
                inputs = [*tensors[:place], one.bfloat16(), *tensors[place + 1 :]]
                with torch.autocast("cpu", torch.bfloat16):
                    OPERATORS["", name](call, *inputs)
                OPERATORS["", name](call, *inputs)
