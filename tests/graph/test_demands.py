"""What nodes ask of sizes: the pair that differs, by hand."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from lepton_cli.graph import demands

CASES: list[tuple[str, list[tuple[int, ...]], dict[str, Any], list[tuple[int, int]]]] = [
    ("MatMul", [(2, 7), (8, 3)], {}, [(7, 8)]),
    ("MatMul", [(2, 8), (8, 3)], {}, []),
    ("Gemm", [(7, 2), (3, 8)], {"transA": 1, "transB": 1}, [(7, 8)]),
    ("Gemm", [(2, 7), (8, 3)], {}, [(7, 8)]),
    ("Conv", [(1, 3, 9, 9), (8, 2, 3, 3)], {"group": 2}, [(3, 4)]),
    ("Conv", [(1, 4, 9, 9), (8, 2, 3, 3)], {"group": 2}, []),
    ("Conv", [(1, 2, 9, 2), (8, 2, 3, 3)], {}, [(2, 3)]),
    ("Conv", [(1, 2, 9, 2), (8, 2, 3, 3)], {"pads": [0, 1, 0, 0]}, []),
    ("Conv", [(1, 2, 9, 4), (8, 2, 3, 3)], {"dilations": [1, 2]}, [(4, 5)]),
    ("MaxPool", [(1, 2, 9, 2)], {"kernel_shape": [2, 3], "auto_pad": "SAME_UPPER"}, []),
    ("ConvTranspose", [(1, 3, 9), (4, 8, 3)], {}, [(3, 4)]),
    ("LSTM", [(5, 1, 7), (1, 16, 8), (1, 16, 4)], {}, [(7, 8)]),
    ("BatchNormalization", [(1, 3, 9), (4,)], {}, [(3, 4)]),
    ("LayerNormalization", [(1, 9, 3), (4,)], {}, [(3, 4)]),
    ("Add", [(2, 5), (3, 5)], {}, [(2, 3)]),
    ("Add", [(1, 5), (3, 5)], {}, []),
    ("Concat", [(2, 5), (3, 6)], {"axis": 1}, [(3, 2), (2, 3)]),
    ("Concat", [(2, 5), (2, 6)], {"axis": 1}, []),
    ("Squeeze", [(2, 5)], {"axes": [1]}, [(5, 1)]),
]


@pytest.mark.parametrize(("op", "shapes", "attributes", "wanted"), CASES)
def test_sizes_that_differ_where_they_have_to_be_equal(
    op: str, shapes: list[tuple[int, ...]], attributes: dict[str, Any], wanted: list[tuple[int, int]]
) -> None:
    values = [ir.Value(name=f"v{number}") for number in range(len(shapes))]
    node = ir.node(op, values, attributes)
    known = {f"v{number}": shape for number, shape in enumerate(shapes)}
    found = demands.unmet(node, known, {})
    assert len(found) == bool(wanted)
    assert not found or found[0] in wanted
