"""What is measured, on a clock that the test winds, and what is decided from given times."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.quantize import choose, qdq, speed
from lepton_cli.quantize.choose import Choice
from lepton_cli.quantize.speed import Kernel
from lepton_cli.quantize.targets import TARGETS
from lepton_cli.steps.base import Context
from tests.quantize.builders import Graph, context, images, mlp, residual_net, rows

FEEDS = {"x": rows(1).feeds["x"]}


@pytest.fixture
def here(tmp_path: Path) -> Context:
    return context(rows(), tmp_path)


class Clock:
    """Time passes only while a fake session runs: `costs[k]` nanoseconds for each run of the k-th model."""

    def __init__(self, costs: list[Callable[[int], float]]) -> None:
        self.now, self.costs = 0.0, costs
        self.runs: list[int] = []

    def perf_counter(self) -> float:
        return self.now / 1e9

    def perf_counter_ns(self) -> int:
        return int(self.now)

    def session(self, model: Any, threads: int) -> Any:
        """`model` is the number of the model."""
        return Run(self, model)


@dataclasses.dataclass
class Run:
    clock: Clock
    number: int
    count: int = 0

    def run(self, feeds: Any) -> None:
        assert feeds is FEEDS
        self.clock.now += self.clock.costs[self.number](self.count)
        self.clock.runs.append(self.number)
        self.count += 1


Wind = Callable[..., Clock]


@pytest.fixture
def wind(monkeypatch: pytest.MonkeyPatch) -> Wind:
    """A clock for models of these costs; `compare` is given the numbers of models instead of models."""

    def start(*costs: float | Callable[[int], float]) -> Clock:
        clock = Clock([cost if callable(cost) else (lambda count, cost=cost: cost) for cost in costs])
        monkeypatch.setattr(speed, "time", clock)
        monkeypatch.setattr(speed, "Session", clock.session)
        monkeypatch.setattr(speed.io, "payload", lambda model, workdir: model)
        return clock

    return start


def compare(here: Context, count: int, **options: Any) -> list[float]:
    return speed.compare(list(range(count)), FEEDS, here, **options)  # type: ignore[arg-type]


def test_twice_as_slow_is_half_as_fast_in_either_order(wind: Wind, here: Context) -> None:
    wind(1000, 2000, 500)
    assert compare(here, 3) == [1.0, 0.5, 2.0]
    wind(2000, 1000)
    assert compare(here, 2) == [1.0, 2.0]
    wind(1000, 1000)
    assert compare(here, 2) == [1.0, 1.0]


def test_a_slowly_changing_machine_cancels_out_in_the_pairs(wind: Wind, here: Context) -> None:
    """Every round costs more than the one before, for both."""
    clock = wind(lambda count: 1000.0 * (1 + count // 4), lambda count: 3000.0 * (1 + count // 4))
    ratios = compare(here, 2)
    assert ratios[0] == 1.0
    assert ratios[1] == pytest.approx(1 / 3, abs=0.04)
    assert len(clock.runs) == 2 * (3 + 24 * 4)


def test_the_fastest_of_three_runs_counts_and_the_first_is_not_timed(wind: Wind, here: Context) -> None:
    """Three runs to warm up, then four in each round: one more to warm, three timed."""
    spiky = [9e5, 7000.0, 1000.0, 8000.0]
    wind(lambda count: spiky[(count - 3) % 4], 2000)
    assert compare(here, 2)[1] == 0.5
    first = [1.0, 7000.0, 1000.0, 8000.0]
    wind(lambda count: first[(count - 3) % 4], 2000)
    assert compare(here, 2)[1] == 0.5


def test_the_median_and_other_quantiles_of_the_rounds(wind: Wind, here: Context) -> None:
    """8 rounds: the second model takes 1000, 1250, 2000, ... by turns."""

    def cost(count: int) -> float:
        return [1000.0, 1250.0, 2000.0, 4000.0][(count - 3) // 4 % 4] if count >= 3 else 1000.0

    shares = np.sort([1.0, 0.8, 0.5, 0.25] * 2)
    for quantile in (0.25, 0.5, 0.75):
        wind(1000, cost)
        found = compare(here, 2, rounds=8, quantile=quantile)
        position = quantile * 7
        below = int(position)
        expected = shares[below] + (position - below) * (shares[min(below + 1, 7)] - shares[below])
        assert found[1] == pytest.approx(expected)
        assert found[0] == 1.0
    wind(1000, cost)
    assert compare(here, 2, rounds=8)[1] == pytest.approx(0.65), "the median is the default"


@pytest.mark.parametrize(
    ("cost", "seconds", "rounds", "expected"),
    [
        (1000.0, 2.0, 24, 24),
        (1000.0, 2.0, 7, 7),
        (1e6, 0.08, 24, 10),
        (1e6, 0.0799, 24, 9),
        (1e9, 2.0, 24, 5),
        (0.0, 2.0, 24, 24),
    ],
)
def test_slow_models_get_fewer_rounds(
    cost: float, seconds: float, rounds: int, expected: int, wind: Wind, here: Context
) -> None:
    """A round of two models is eight runs; three each are timed to know that. Five rounds at least."""
    clock = wind(cost, cost)
    with np.errstate(all="ignore"):
        compare(here, 2, seconds=seconds, rounds=rounds)
    assert len(clock.runs) == 2 * 3 + expected * 2 * 4


def test_rounds_and_seconds_have_defaults(wind: Wind, here: Context) -> None:
    assert (speed.ROUNDS, speed.SECONDS) == (24, 2.0)
    clock = wind(1e7, 1e7)
    compare(here, 2)
    assert len(clock.runs) == 2 * 3 + 24 * 8
    clock = wind(2e7, 2e7)
    compare(here, 2)
    assert len(clock.runs) == 2 * 3 + 12 * 8


def test_the_models_take_turns_in_an_order_of_the_seed(wind: Wind, here: Context) -> None:
    clock = wind(1000, 1000, 1000)
    compare(here, 3, rounds=12)
    assert clock.runs[:9] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    turns = [clock.runs[start : start + 4] for start in range(9, len(clock.runs), 4)]
    assert all(len(set(turn)) == 1 for turn in turns)
    order = [turn[0] for turn in turns]
    rounds = [tuple(order[start : start + 3]) for start in range(0, len(order), 3)]
    assert len(rounds) == 12
    assert all(sorted(one) == [0, 1, 2] for one in rounds)
    assert len(set(rounds)) > 2
    again = wind(1000, 1000, 1000)
    compare(here, 3, rounds=12)
    assert again.runs == clock.runs
    other = wind(1000, 1000, 1000)
    compare(dataclasses.replace(here, seed=1), 3, rounds=12)
    assert other.runs != clock.runs


def test_a_profile_is_the_median_of_each_kernel(tmp_path: Path, here: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[dict[str, Any]] = [
        {"cat": "Node", "name": "a_kernel_time", "dur": duration, "args": {"op_name": "Conv"}}
        for duration in (5, 1, 100)
    ]
    events += [
        {"cat": "Node", "name": "b_kernel_time", "dur": 4, "args": {"op_name": "QGemm"}},
        {"cat": "Node", "name": "a_fence_before", "dur": 9, "args": {"op_name": "Conv"}},
        {"cat": "Session", "name": "c_kernel_time", "dur": 9, "args": {"op_name": "Conv"}},
        {"dur": 1},
    ]
    (tmp_path / "events.json").write_text(json.dumps(events))
    runs = []

    class Profiled:
        def __init__(self, model: Any, *, threads: int, profile_prefix: Path) -> None:
            assert threads == 1
            assert profile_prefix.parent.parent == tmp_path
            self.raw = self

        def run(self, feeds: Any) -> None:
            runs.append(feeds)

        def end_profiling(self) -> str:
            return str(tmp_path / "events.json")

    monkeypatch.setattr(speed, "Session", Profiled)
    assert speed.profile(mlp(), FEEDS, here) == {"a": Kernel("Conv", 5.0), "b": Kernel("QGemm", 4.0)}
    assert len(runs) == 20
    speed.profile(mlp(), FEEDS, here, runs=2)
    assert len(runs) == 22


@pytest.mark.parametrize(
    ("operator", "int8"),
    [("QLinearConv", True), ("QGemm", True), ("MatMulIntegerToFloat", True), ("ConvInteger", True),
     ("DynamicQuantizeMatMul", True), ("QAttention", True), ("QEmbedLayerNormalization", True), ("MatMulNBits", True),
     ("GatherBlockQuantized", True), ("Conv", False), ("MatMul", False), ("QuantizeLinear", False),
     ("FusedMatMul", False)],
)  # fmt: skip
def test_kernels_of_8_bits_are_known_by_their_names(operator: str, int8: bool) -> None:
    assert Kernel(operator, 1.0).int8 is int8


def test_a_profile_names_the_kernels_that_really_run(here: Context) -> None:
    kernels = speed.profile(mlp(), FEEDS, here, runs=2)
    assert {kernel.operator for kernel in kernels.values()} >= {"FusedGemm", "Gemm"}
    assert all(kernel.microseconds >= 0 for kernel in kernels.values())


def quantized(model: ir.Model, choice: Choice | None = None) -> ir.Model:
    choice = choice or chosen(model)
    ranges = {name: ((0.0, 3.0) if name in relus(model) else (-3.0, 3.0)) for name in choose.activations(model, choice)}
    return qdq.write(model, qdq.Plan(TARGETS["x86"], choice, ranges))


def relus(model: ir.Model) -> set[str]:
    return {node.outputs[0].name or "" for node in model.graph if node.op_type == "Relu"}


def chosen(model: ir.Model) -> Choice:
    return choose.candidates(model, {node.name or "" for node in model.graph})


def test_what_onnxruntime_makes_of_a_graph_is_counted(here: Context) -> None:
    graph = Graph()
    x = graph.op("Relu", graph.linear(graph.take("x", ["b", 32]), 32, 32))
    x = graph.op("Erf", graph.linear(x, 32, 32))
    model = graph.model(graph.op("Softmax", graph.op("MatMul", x, graph.constant(np.eye(32, dtype=np.float32)))))
    float_ones = speed.placement(model, here)
    assert (float_ones["int8"], float_ones["float"], float_ones["qdq_left"]) == (0, 3, 0)
    assert float_ones["operators"] == {"FusedGemm": 1, "Gemm": 1, "Erf": 1, "MatMul": 1, "Softmax": 1}
    choice = chosen(model).without(["MatMul_4"], "", model)
    assert choice.anchors == {"Gemm_0", "Gemm_2"}
    placed = speed.placement(quantized(model, choice), here)
    assert (placed["int8"], placed["float"], placed["qdq_left"]) == (2, 1, 0)
    assert placed["operators"]["QGemm"] == 2
    assert list(placed["operators"].values()) == sorted(placed["operators"].values(), reverse=True)


def test_pairs_that_no_kernel_took_are_counted(here: Context) -> None:
    graph = Graph()
    x = graph.take("x", ["b", 32])
    steps = [graph.constant(np.float32(0.1)), graph.constant(np.uint8(3))]
    y = graph.op("DequantizeLinear", graph.op("QuantizeLinear", x, *steps), *steps)
    z = graph.op("DequantizeLinear", graph.op("QuantizeLinear", graph.op("Erf", y), *steps), *steps)
    again = graph.op("QuantizeLinear", graph.op("Erf", z), *steps)
    placed = speed.placement(graph.model(graph.op("Cast", again, to=1)), here)
    assert (placed["qdq_left"], placed["float"], placed["int8"]) == (2, 0, 0)


def kernels(**microseconds: float) -> dict[str, Kernel]:
    return {name: Kernel("QGemm", value) for name, value in microseconds.items()}


def floats(**microseconds: float) -> dict[str, Kernel]:
    return {name: Kernel("Gemm", value) for name, value in microseconds.items()}


@pytest.fixture
def profiles(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Kernel]]:
    """What `profile` finds, call by call."""
    given: list[dict[str, Kernel]] = []
    monkeypatch.setattr(speed, "profile", lambda *arguments, **options: given.pop(0))
    return given


def test_layers_slower_by_more_than_a_tenth_lose_the_worst_first(
    profiles: list[dict[str, Kernel]], here: Context
) -> None:
    model = mlp()
    choice = dataclasses.replace(chosen(model), anchors=frozenset({"Gemm_0", "MatMul_2"}))
    profiles += [kernels(Gemm_0=15.0, MatMul_2=30.0, Gemm_5=90.0), floats(Gemm_0=10.0, MatMul_2=10.0, Gemm_5=1.0)]
    lost = speed.losing(model, model, choice, FEEDS, here)
    assert list(lost.items()) == [("MatMul_2", 20.0), ("Gemm_0", 5.0)]
    profiles += [kernels(Gemm_0=11.0, MatMul_2=11.1), floats(Gemm_0=10.0, MatMul_2=10.0)]
    assert list(speed.losing(model, model, choice, FEEDS, here)) == ["MatMul_2"]
    profiles += [kernels(Gemm_0=9.0), floats(Gemm_0=10.0, MatMul_2=1.0)]
    assert speed.losing(model, model, choice, FEEDS, here) == {}, "faster, and one without an int8 kernel"
    profiles += [kernels(Gemm_0=9.0, MatMul_2=100.0), floats(Gemm_0=10.0)]
    assert speed.losing(model, model, choice, FEEDS, here) == {}, "none without a float kernel"


@pytest.mark.parametrize(
    ("name", "operator", "found"),
    [
        ("Gemm_0", "QGemm", True),
        ("Gemm_0_token_7", "QLinearMatMul", True),
        ("Gemm_01", "QGemm", False),
        ("Gemm_0_quant", "QGemm", False),
        ("Gemm_0", "Gemm", False),
    ],
)
def test_int8_kernels_keep_the_name_of_their_node(name: str, operator: str, found: bool) -> None:
    others = {"Gemm_0_other": Kernel("QGemm", 1.0), name: Kernel(operator, 7.0)}
    assert speed._int8(others, "Gemm_0") == (7.0 if found else None)


@pytest.mark.parametrize(
    ("name", "operator", "found"),
    [
        ("Conv_0", "Conv", True),
        ("Conv_0_nchwc", "Conv", True),
        ("fused Conv_0", "FusedConv", True),
        ("t1", "FusedGemm", True),
        ("t1_nchwc", "Conv", True),
        ("Conv_0", "QLinearConv", False),
        ("Conv_0", "Reorder", False),
        ("nchwc_Conv_0", "Conv", False),
    ],
)
def test_float_kernels_carry_the_name_of_the_node_or_its_tensors(name: str, operator: str, found: bool) -> None:
    assert speed._plain({name: Kernel(operator, 7.0)}, ["Conv_0", "t0", "t1"]) == (7.0 if found else None)


def test_the_first_of_the_names_decides() -> None:
    both = {"t1": Kernel("Gemm", 1.0), "Conv_0": Kernel("Conv", 7.0)}
    assert speed._plain(both, ["Conv_0", "t1"]) == 7.0
    assert speed._plain(both, ["t1", "Conv_0"]) == 1.0


def test_tensors_of_a_layer_reach_through_what_is_fused_behind_it() -> None:
    graph = Graph()
    x = graph.conv(graph.take("x", ["b", 3, 8, 8]), 3, 16)
    y = graph.op("Add", x, graph.constant(np.float32(1)))
    z = graph.op("Sigmoid", y)
    model = graph.model(graph.op("Mul", z, z), graph.op("Tanh", graph.conv(y, 16, 16)))
    first, _, _, _, _, second, *_ = model.graph
    assert speed._tensors(first) == ["t0", "t1", "t2"], "two read t2"
    assert speed._tensors(second) == ["t5", "t6"], "Tanh is not fused"


class Model(ir.Model):
    """Carries the choice it was written from."""

    choice: Choice


@dataclasses.dataclass
class Trial:
    """A fake writer and comparison: `cost` gives the time of a choice; int8 kernels are those of its anchors."""

    model: ir.Model
    cost: Callable[[frozenset[str]], float]
    float_cost: float
    #: Anchors without a kernel of 8 bits, and those that onnxruntime quantizes though they are float.
    unfused: frozenset[str] = frozenset()
    requantized: frozenset[str] = frozenset()
    times: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    compared: list[tuple[float, float]] = dataclasses.field(default_factory=list)

    def write(self, choice: Choice) -> ir.Model:
        made = Model(ir.Graph([], [], nodes=[]), ir_version=8)
        made.choice = choice
        return made

    def time(self, model: ir.Model) -> float:
        return self.cost(model.choice.anchors) if isinstance(model, Model) else self.float_cost

    def compare(self, models: list[ir.Model], feeds: Any, context: Context, quantile: float = 0.5) -> list[float]:
        self.compared.append((len(models), quantile))
        first, second = map(self.time, models)
        return [1.0, first / second]

    def profile(self, model: ir.Model, feeds: Any, context: Context, runs: int = 20) -> dict[str, Kernel]:
        if not isinstance(model, Model):
            return {name: Kernel("Conv", plain) for name, (_, plain) in self.times.items()}
        int8 = (model.choice.anchors | self.requantized) - self.unfused
        return {
            name: Kernel("QLinearConv", slow) if name in int8 else Kernel("Conv", plain)
            for name, (slow, plain) in self.times.items()
        }


@pytest.fixture
def decide(monkeypatch: pytest.MonkeyPatch, here: Context) -> Callable[..., Any]:
    def run(
        model: ir.Model, times: dict[str, tuple[float, float]], **options: Any
    ) -> tuple[Choice, dict[str, Any], Trial]:
        """Each layer costs its int8 time when chosen and its float time otherwise, unless `cost` is given."""

        def cost(anchors: frozenset[str]) -> float:
            int8 = anchors | options.get("requantized", frozenset())
            return sum(slow if name in int8 else plain for name, (slow, plain) in times.items())

        trial = Trial(
            model, options.pop("cost", cost), sum(plain for _, plain in times.values()), times=times, **options
        )
        monkeypatch.setattr(speed, "compare", trial.compare)
        monkeypatch.setattr(speed, "profile", trial.profile)
        choice, measured = speed.faster_choice(model, chosen(model), trial.write, FEEDS, here)
        return choice, measured, trial

    return run


@pytest.fixture
def net() -> ir.Model:
    """Conv_0, Conv_2, Conv_4, Conv_8, Conv_10 of two residual blocks."""
    return residual_net()


CONVS = ["Conv_0", "Conv_2", "Conv_4", "Conv_7", "Conv_9"]


def test_layers_that_pay_are_kept(decide: Callable[..., Any], net: ir.Model) -> None:
    choice, measured, trial = decide(net, dict.fromkeys(CONVS, (10.0, 20.0)))
    assert choice == chosen(net)
    assert measured == {"speedup": 2.0, "returned": []}
    assert trial.compared[-1] == (2, 0.5), "the median in the end"
    assert {quantile for _, quantile in trial.compared[:-1]} == {0.25}, "trials must gain in three of four rounds"


def test_layers_that_lose_are_returned(decide: Callable[..., Any], net: ir.Model) -> None:
    times = dict.fromkeys(CONVS, (10.0, 20.0)) | {"Conv_4": (50.0, 20.0), "Conv_9": (40.0, 20.0)}
    choice, measured, _ = decide(net, times)
    assert choice.anchors == set(CONVS) - {"Conv_4", "Conv_9"}
    assert measured == {
        "speedup": round(100 / 70, 3),
        "returned": [{"nodes": ["Conv_4", "Conv_9"], "gain": round(120 / 70, 3)}],
    }
    assert [(one.node, one.reason) for one in choice.kept if one.op == "Conv"] == [
        ("Conv_4", "float is faster here (measured)"), ("Conv_9", "float is faster here (measured)")
    ]  # fmt: skip
    again, _, _ = decide(net, times)
    assert again == choice


def test_where_all_losers_together_do_not_gain_the_worst_alone_is_tried(
    decide: Callable[..., Any], net: ir.Model
) -> None:
    times = dict.fromkeys(CONVS, (10.0, 20.0)) | {"Conv_4": (50.0, 20.0), "Conv_9": (40.0, 20.0)}

    def cost(anchors: frozenset[str]) -> float:
        return 100.0 if "Conv_4" in anchors else 90.0 if "Conv_9" in anchors else 99.0

    choice, measured, _ = decide(net, times, cost=cost)
    assert choice.anchors == set(CONVS) - {"Conv_4"}
    assert measured["returned"] == [{"nodes": ["Conv_4"], "gain": 1.111}]


def test_a_single_loser_is_tried_once(decide: Callable[..., Any], net: ir.Model) -> None:
    times = dict.fromkeys(CONVS, (10.0, 20.0)) | {"Conv_9": (40.0, 20.0)}
    _, measured, trial = decide(net, times, cost=lambda anchors: 100.0)
    assert measured["returned"] == []
    prefixes = [count for count in speed.PREFIXES if count < len(CONVS)]
    assert len(trial.compared) == 1 + len(prefixes) + 1


@pytest.mark.parametrize(("better", "returned"), [(100 / 1.03, True), (100 / 1.029, False)])
def test_a_layer_is_returned_for_three_percent(
    better: float, returned: bool, decide: Callable[..., Any], net: ir.Model
) -> None:
    times = dict.fromkeys(CONVS, (10.0, 20.0)) | {"Conv_9": (40.0, 20.0)}
    choice, _, _ = decide(net, times, cost=lambda anchors: 100.0 if "Conv_9" in anchors else better - 1e-9)
    assert ("Conv_9" not in choice.anchors) == returned


def test_the_first_layers_are_tried_in_float_together(decide: Callable[..., Any], net: ir.Model) -> None:
    """No layer loses alone, but the first two bring much when both are float, and a third one more."""
    times = dict.fromkeys(CONVS, (10.0, 10.0))

    def cost(anchors: frozenset[str]) -> float:
        return 100.0 - 30.0 * (not {"Conv_0", "Conv_2"} & anchors) - 10.0 * ("Conv_4" not in anchors)

    choice, measured, _ = decide(net, times, cost=cost)
    assert choice.anchors == {"Conv_7", "Conv_9"}
    assert [entry["nodes"] for entry in measured["returned"]] == [["Conv_0", "Conv_2"], ["Conv_4"]]


def test_the_last_layer_is_never_returned_by_a_prefix(decide: Callable[..., Any], net: ir.Model) -> None:
    times = dict.fromkeys(CONVS, (10.0, 10.0))
    choice, measured, _ = decide(net, times, cost=lambda anchors: 10.0 + 20.0 * len(anchors))
    assert choice.anchors == {"Conv_9"}
    assert [len(entry["nodes"]) for entry in measured["returned"]] == [1, 1, 1, 1]


def test_all_convolutions_are_no_prefix(decide: Callable[..., Any]) -> None:
    graph = Graph()
    x = graph.op("Flatten", graph.conv(graph.take("x", ["b", 3, 4, 4]), 3, 4))
    model = graph.model(graph.linear(x, 64, 16))
    times = dict.fromkeys(["Conv_0", "Gemm_3"], (10.0, 10.0))
    choice, measured, trial = decide(model, times, cost=lambda anchors: 10.0 + 20.0 * len(anchors))
    assert choice.anchors == {"Conv_0", "Gemm_3"}
    assert (measured["returned"], len(trial.compared)) == ([], 1)


def test_prefixes_are_counted_over_convolutions(decide: Callable[..., Any]) -> None:
    model = mlp()
    times = dict.fromkeys(["Gemm_0", "MatMul_2"], (10.0, 10.0))
    choice, measured, trial = decide(model, times, cost=lambda anchors: 10.0 + 20.0 * len(anchors))
    assert len(trial.compared) == 1
    assert choice == chosen(model)
    assert measured["speedup"] == round(20 / 50, 3)


def test_all_layers_are_not_returned_at_once(decide: Callable[..., Any], net: ir.Model) -> None:
    """All lose: the choice may not become empty, so the worst alone is tried, then the first ones."""
    times = {name: (30.0 + i, 20.0) for i, name in enumerate(CONVS)}
    choice, measured, _ = decide(net, times)
    assert choice.anchors
    assert measured["returned"][0]["nodes"] == ["Conv_9"]


def test_layers_without_an_int8_kernel_gain_nothing_from_the_rounding(
    decide: Callable[..., Any], net: ir.Model
) -> None:
    times = dict.fromkeys(CONVS, (10.0, 20.0))
    choice, measured, _ = decide(net, times, unfused=frozenset({"Conv_2"}))
    assert choice.anchors == set(CONVS) - {"Conv_2"}
    assert [one.reason for one in choice.kept if one.node == "Conv_2"] == [
        "onnxruntime finds no int8 kernel for it in this place"
    ]
    assert measured["returned"] == []
    choice, measured, trial = decide(net, times, unfused=frozenset(CONVS))
    assert choice.anchors == frozenset()
    assert measured == {"speedup": 1.0, "returned": []}
    assert trial.compared == []
    del times["Conv_4"]
    choice, _, _ = decide(net, times, unfused=frozenset({"Conv_4"}))
    assert "Conv_4" in choice.anchors, "a layer that is nowhere to be found says nothing"


def test_layers_that_onnxruntime_quantizes_by_itself_stay_ours(decide: Callable[..., Any], net: ir.Model) -> None:
    times = dict.fromkeys(CONVS, (10.0, 20.0)) | {"Conv_4": (50.0, 20.0), "Conv_9": (40.0, 20.0)}
    choice, measured, _ = decide(net, times, requantized=frozenset({"Conv_9"}))
    assert choice.anchors == set(CONVS) - {"Conv_4"}
    assert measured["returned"][0]["nodes"] == ["Conv_4"]
    assert [one.node for one in choice.kept if one.op == "Conv"] == ["Conv_4"]
    choice, measured, _ = decide(net, times, requantized=frozenset({"Conv_9", "Conv_4"}))
    assert (choice, measured["returned"]) == (chosen(net), [])


def test_the_real_measurements_fit_together(tmp_path: Path) -> None:
    """No fake: a model is measured and some choice comes out."""
    model = residual_net()
    data = images(2)
    choice, measured = speed.faster_choice(
        model, chosen(model), lambda choice: quantized(model, choice), {"x": data.feeds["x"]}, context(data, tmp_path)
    )
    assert choice.anchors <= set(CONVS)
    assert measured["speedup"] > 0
