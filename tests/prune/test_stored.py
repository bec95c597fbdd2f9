"""Bytes foreseen, against the length of files that are made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.prune import prospects
from lepton_cli.prune.cost import CostModel, Form, Forms, build
from lepton_cli.prune.stored import stored
from lepton_cli.quantize.draft import filling
from lepton_cli.quantize.kernels import Filling
from tests.coupling.networks import Network, analysed
from tests.prune.foreseen import length, looked_at, steps, written

CASES = [
    ("convolutions", "float"),
    ("convolutions", "fp16"),
    ("convolutions", "int8"),
    ("convolutions", "weights8"),
    ("unfilled", "int8"),
    ("nested", "float"),
    ("residual", "float"),
    ("residual", "int8"),
    ("mlp", "int8"),
    ("mlp", "dynamic"),
    ("mlp", "weights4"),
    ("transformer", "float"),
    ("transformer", "fp16"),
    ("transformer", "int8"),
    ("transformer", "dynamic"),
    ("transformer", "weights8"),
    ("transformer", "weights4"),
    ("transformer", "zeros"),
]


@pytest.mark.parametrize(("network", "precision"), CASES)
def test_bytes_are_those_of_the_file_at_any_widths(network: str, precision: str, tmp_path: Path) -> None:
    """To the byte as the file is, within a hundredth at other widths and without branches, by call and by table."""
    close = (
        0.02 if (network, precision) == ("mlp", "weights4") else 0.01
    )  # one layer of two becomes too small for blocks, and what is said about it is not foreseen
    found, given = looked_at(network, tmp_path)
    file = written(found.plan.model, precision, given)
    price = found.stored(file, filling(steps(precision), file, given))
    full = prospects.full(found)
    assert price(full) == pytest.approx(length(file), abs=1e-6)
    random = np.random.default_rng(3)
    for trial in range(2):
        widths = np.array([random.choice(t.levels[t.levels >= t.levels[0] / 3]) for t in found.tables])
        if trial == 1 and found.columns.branches:
            widths[next(iter(found.columns.branches)) if network != "nested" else list(found.columns.branches)] = 0
        made = length(written(found.cut(found.prospect(widths)), precision, given))
        assert price(widths) == pytest.approx(made, rel=close, abs=60), widths
        for column, table in enumerate(found.tables):
            other = widths.copy()
            several = np.array([table.levels[0], table.levels[len(table.levels) // 2], table.levels[-1]])
            for level, value in zip(several, price.table(widths, column, several), strict=True):
                other[column] = level
                assert price(other) == pytest.approx(value, abs=1e-6)


def constants(model: ir.Model) -> int:
    """Bytes of all tensors but of shapes, which steps write once or for each reader."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(one.nbytes for one in tensors if one is not None and one.dtype != ir.DataType.INT64)


@pytest.mark.parametrize(
    ("network", "precision"),
    [
        ("convolutions", "float"),
        ("convolutions", "fp16"),
        ("convolutions", "weights8"),
        ("transformer", "dynamic"),
        ("transformer", "weights4"),
        ("transformer", "zeros"),
    ],
)
def test_constants_that_become_smaller_are_foreseen_to_the_byte(network: str, precision: str, tmp_path: Path) -> None:
    """Where nothing but widths changes: 100 of 128 inputs fill three blocks of 32 in part, and two pairs of zeros."""
    found, given = looked_at(network, tmp_path)
    file = written(found.plan.model, precision, given)
    price, full = found.stored(file, Filling()), prospects.full(found)
    for share in (0.4, 0.7, 0.95) if precision != "weights8" else (0.7, 0.95):
        widths = np.array([max(1, int(share * channels)) for channels in full])
        made = written(found.cut(found.prospect(widths)), precision, given)
        assert price(full) - price(widths) == pytest.approx(constants(file) - constants(made), abs=1e-6)


@pytest.mark.parametrize("precision", ["int8", "dynamic"])
def test_products_too_narrow_for_codes_stay_float(precision: str, tmp_path: Path) -> None:
    found, given = looked_at("mlp", tmp_path)
    file = written(found.plan.model, precision, given)
    price = found.stored(file, Filling())
    for widths in (np.array([128, 15]), np.array([16, 16])):
        made = length(written(found.cut(found.prospect(widths)), precision, given))
        # What is said about the codes of a layer goes too.
        assert price(widths) == pytest.approx(made, abs=1100), widths


def test_what_is_stored_by_blocks_or_not_at_all_is_a_cost_of_its_own() -> None:
    """Two layers 4 -> 6 -> 5, by hand: the first along blocks of four, the second in codes from twenty elements on, and
    in codes from a side of three on."""
    n = Network()
    x = n.node("Relu", n.node("MatMul", n.input("x", "batch", 4), n.weight(4, 6)))
    _, coupling = analysed(n.model(n.node("MatMul", x, n.weight(6, 5))))
    (group,) = [one for one in coupling.groups if one.channels == 6]
    first, second = [("w0", 0), ("w0", 1)], [("w1", 0), ("w1", 1)]
    terms = [(24.0, first, (4, 6)), (32.0, first, (4, 6)), (30.0, second, (6, 5)), (30.0, second, (6, 5))]
    forms = [None, Form((1, 4)), Form(elements=20, bytes=4.0), Form(side=3, bytes=2.0)]
    price = build(terms, 7.0, coupling, [group], forms)

    def wanted(width: int) -> float:
        blocks = 4 * 4 * -(-width // 4)
        few = 5 * width * (4 if 5 * width < 20 else 1)
        thin = 5 * width * (2 if width < 3 else 1)
        return 7 + 4 * width + blocks + few + thin

    levels = np.arange(6, -1, -1)
    assert [price(np.array([width])) for width in levels] == [wanted(width) for width in levels]
    assert price.table(np.array([5]), 0, levels).tolist() == [wanted(width) for width in levels]
    assert price.terms(levels[:, None]).sum(axis=1).tolist() == [wanted(width) - 7 for width in levels]
    assert price.without(np.array([6])).tolist() == [7.0]


def test_forms_need_not_touch_a_group() -> None:
    """An axis that stays counts as often as it is long, also for what is too small."""
    forms = Forms(np.array([[8.0]]), np.array([[0.0]]), np.array([30 / 10]), np.array([4.0 * 10]))
    price = CostModel(1.0, np.array([10.0]), np.zeros((1, 1)), np.array([0]), np.array([0]), np.array([1.0]), forms)
    assert [price(np.array([width])) for width in (16, 9, 8, 3, 2, 0)] == [161, 161, 81, 81, 81, 1]


def test_zeros_fill_the_cheapest_chains_first() -> None:
    """A twentieth of all codes is the most: of 1, 5 and 12 channels that lack, what costs least as a whole."""
    filling = Filling()
    channels, each = np.array([[15.0, 11.0, 4.0, 32.0]]), np.array([[30.0, 4.0, 5.0, 100.0]])
    for codes, added in ((399, 0), (400, 20), (999, 20), (1000, 50), (2199, 50), (2200, 110), (9999, 110)):
        assert filling.added(channels, each, np.array([float(codes)])) == added


@pytest.mark.parametrize("prefer", ["speed", "size"])
def test_zeros_are_foreseen_where_the_step_adds_some(prefer: str, tmp_path: Path) -> None:
    found, given = looked_at("residual", tmp_path)
    options = steps("int8")[0].model_copy(update={"prefer": prefer, "target": "x86-vnni"})
    file = written(found.plan.model, "int8", given)
    assert len(filling((options,), file, given).chains) == (4 if prefer == "speed" else 0)
    assert filling(steps("dynamic"), file, given).chains == ()
    arm = options.model_copy(update={"target": "arm"})
    assert filling((arm,), file, given).chains == ()


def test_a_whole_node_takes_its_bytes_with_it(tmp_path: Path) -> None:
    """What is foreseen of all nodes is all of the file but for its frame and its inputs and outputs."""
    found, given = looked_at("convolutions", tmp_path)
    file = written(found.plan.model, "int8", given)
    price = stored(found.plan, file)
    widths = np.array([group.channels for group in found.plan.groups])
    names = [node.name or "" for node in found.plan.model.graph]
    alone = sum(price.of([name])(widths) for name in names)
    assert price.of(names)(widths) == pytest.approx(alone)
    proto = ir.to_proto(file)
    del proto.graph.node[:], proto.graph.initializer[:], proto.graph.value_info[:]
    assert length(file) - alone == pytest.approx(proto.ByteSize(), abs=0.01 * length(file))
