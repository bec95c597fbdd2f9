"""What two networks have in common inside is found where blocks end, with the channels that are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from lepton_cli.data.dataset import Batch
from lepton_cli.graph.edit import set_weight
from lepton_cli.model import io
from lepton_cli.train.features import MOST, features, joints
from lepton_cli.train.loop import Lesson
from lepton_cli.train.network import Network
from lepton_cli.train.spec import Distill, TrainingBudget
from lepton_cli.train.steps import distill
from lepton_cli.train.teacher import INSIDE, Teacher
from lepton_cli.train.together import Together, WeightedTask
from tests.quantize.builders import Graph, residual_net
from tests.train.test_distill import around, damaged, told

IMAGES = np.random.default_rng(4).normal(size=(8, 3, 16, 16)).astype(np.float32)


def wide(kept: np.ndarray | None = None, seed: int = 0) -> ir.Model:
    """Convolution, ReLU (`t1`), convolution, pooling; `kept`: the channels of the first one that are left."""
    random = np.random.default_rng(seed)
    first, second = random.normal(size=(12, 3, 3, 3)), random.normal(size=(5, 12, 3, 3)) / 10
    if kept is not None:
        first, second = first[kept], second[:, kept]
    graph = Graph()
    y = graph.op("Conv", graph.take("x", ["b", 3, 16, 16]), graph.constant(first.astype(np.float32)))
    y = graph.op("Conv", graph.op("Relu", y), graph.constant(second.astype(np.float32)))
    return graph.model(graph.op("Flatten", graph.op("GlobalAveragePool", y)))


def test_joints_are_where_blocks_end() -> None:
    made = Network(residual_net())
    names = {node.name: node.outputs[0].name for node in made.model.graph}
    ends = [name for name in names if name.startswith(("Relu", "Flatten"))]
    # Of each block the second ReLU; the first is beside the shortcut.
    first, second, third = ([names[name]] for name in (ends[0], ends[2], ends[4]))
    pooled = [names[name] for name in names if name.startswith(("GlobalAveragePool", "Flatten"))]
    assert [row[-len(end) :] for row, end in zip(joints(made), (first, second, third + pooled), strict=True)] == [
        first,
        second,
        third + pooled,
    ]
    found = features(made, made, [{"x": IMAGES}])
    assert [one.name for one in found] == first + second + third


def test_what_only_measures_or_masks_is_no_way_past_a_joint() -> None:
    graph = Graph()
    x, mask = graph.take("x", ["b", 6]), graph.take("mask", ["b", 6])
    first = graph.linear(x, 6, 6)
    size = graph.op("Shape", first)
    masked = graph.op("Mul", first, mask)
    second = graph.linear(masked, 6, 6)
    third = graph.linear(graph.op("Mul", graph.op("Reshape", second, size), mask), 6, 2)
    made = Network(graph.model(third))
    assert joints(made) == [[first, masked], [second, "t4", "t5"]]


def test_two_ways_have_no_joint_until_they_meet() -> None:
    graph = Graph()
    stem = graph.linear(graph.take("x", ["b", 6]), 6, 6)
    left, right = graph.linear(stem, 6, 4), graph.linear(stem, 6, 4)
    both = graph.op("Concat", left, right, axis=1)
    assert joints(Network(graph.model(graph.linear(both, 8, 2)))) == [[stem], [both]]


def test_the_channels_that_pruning_left_are_found() -> None:
    kept = np.array([1, 2, 5, 6, 10])
    student, teacher = Network(damaged(wide(kept), 0.05)), Network(wide())
    (found,) = features(student, teacher, [{"x": IMAGES}])
    assert (found.name, found.axis) == ("t1", 1)
    assert found.channels is not None
    assert found.channels.tolist() == kept.tolist()
    theirs, mine = (net.run({"x": torch.from_numpy(IMAGES)}, ["t1"])["t1"].detach() for net in (teacher, student))
    expected = theirs.numpy()[:, kept]
    np.testing.assert_array_equal(found.of(theirs).numpy(), expected)
    share = np.square(mine.numpy() - expected).mean() / np.square(expected).mean()
    assert float(found.loss(mine, found.of(theirs))) == pytest.approx(share, rel=1e-4)


def test_the_same_shape_needs_no_telling_apart() -> None:
    (found,) = features(Network(wide(seed=1)), Network(wide()), [{"x": IMAGES}])
    assert found.channels is None


def test_channels_that_are_not_told_apart_are_left_out() -> None:
    twice = wide(np.array([3, 3, 7]))  # two channels of the student are the same one of the teacher
    assert features(Network(twice), Network(wide()), [{"x": IMAGES}]) == ()
    few = [{"x": IMAGES[:1, :, :8, :8]}]  # 36 numbers a channel for 12 of them
    assert features(Network(wide(np.array([1, 4]))), Network(wide()), few) == ()


def test_other_names_and_more_channels_have_nothing_in_common() -> None:
    assert features(Network(wide()), Network(wide(np.array([1, 4]))), [{"x": IMAGES}]) == ()
    assert features(Network(wide()), Network(residual_net()), [{"x": IMAGES}]) == ()


def test_few_of_many_are_taken_evenly() -> None:
    graph = Graph()
    y = graph.take("x", ["b", 3, 8, 8])
    for _ in range(28):
        y = graph.conv(y, 3, 3)
    network = Network(graph.model(graph.op("Relu", y)))
    found = [one.name for one in features(network, network, [{"x": IMAGES[:, :, :8, :8]}])]
    every = [row[-1] for row in joints(network)]
    assert len(every) == 27
    assert found == [every[place] for place in (6, 12, 19, 26)]
    assert len(found) == MOST


class _Pictures:
    def batch(self, step: int, size: int) -> Batch:
        return Batch({"x": IMAGES[:size] * (step + 1)}, {}, 0)


def test_a_step_sees_what_is_inside_and_the_judge_does_not() -> None:
    kept = np.array([1, 2, 5, 6, 10])
    student, batch = Network(damaged(wide(kept), 0.05)), Batch({"x": IMAGES}, {}, 0)
    parts = [Teacher(wide(), student, [{"x": IMAGES}], inside=inside) for inside in (False, True)]
    without, with_inside = (Lesson(Together([WeightedTask(one, 0.5)]), _Pictures(), [batch]) for one in parts)
    outputs = with_inside.judge(student)
    assert outputs == pytest.approx(without.judge(student), rel=1e-6)
    teacher, shares = Network(wide()), []
    for scale in (1, 2):
        given = {"x": torch.from_numpy(IMAGES * scale)}
        theirs, mine = (net.run(given, ["t1"])["t1"].detach().numpy() for net in (teacher, student))
        shares.append(np.square(mine - theirs[:, kept]).mean())
    for step, share in enumerate(shares):  # as the outputs' on the first samples, ten times, and as it is on others
        more = with_inside.learn(student, step, 8) - without.learn(student, step, 8)
        assert more == pytest.approx(INSIDE * outputs * share / shares[0], rel=1e-3)


def test_distill_teaches_what_is_inside(tmp_path: Path) -> None:
    """What no output shows is learnt where it counts, and only there."""
    graph = Graph()
    x = graph.op("Unsqueeze", graph.take("x", ["b", 8]), graph.constant(np.array([1])))
    hidden = graph.linear(x, 8, 6, gemm=False)
    unseen = graph.op("Mul", graph.linear(hidden, 6, 6, gemm=False), graph.constant(np.zeros((1, 1, 6), np.float32)))
    original = graph.model(unseen)
    name = "w2"
    right = original.graph.initializers[name].const_value
    assert right is not None
    broken, wrong = (
        io.clone(original),
        right.numpy() + 0.2 * np.random.default_rng(1).normal(size=(8, 6)).astype(np.float32),
    )
    set_weight(broken.graph.initializers[name], wrong)
    left = {}
    for inside in ("auto", "none"):
        options = Distill(budget=TrainingBudget(epochs=40), features=inside, keep="last", exclude=("Mul*",))
        outcome = distill(broken, options, around(original, tmp_path))
        assert told(outcome).features == ((hidden,) if inside == "auto" else ())
        found = outcome.model.graph.initializers[name].const_value
        assert found is not None
        left[inside] = np.abs(found.numpy() - right.numpy()).mean() / np.abs(wrong - right.numpy()).mean()

    assert left["none"] == 1
    assert left["auto"] < 0.1
