"""What onnxruntime really runs: int8 kernels counted, and layers that int8 makes slower found by measurement."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from time import perf_counter_ns, thread_time_ns

import numpy as np
import onnx
import onnx_ir as ir

from lepton_cli import cache
from lepton_cli.errors import check_room
from lepton_cli.machine import machine
from lepton_cli.model import io
from lepton_cli.quantize.choose import Choice
from lepton_cli.quantize.details import Placement, Returned, Speed
from lepton_cli.quantize.effort import EFFORTS
from lepton_cli.runtime import Session, Values
from lepton_cli.step import Context
from lepton_cli.timing import compare as timing
from lepton_cli.timing.bursts import Clock

#: Operators of the optimised graph that compute with 8 bits.
INT8 = (
    "QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantize", "QAttention", "QEmbed", "MatMulNBits",
    "GatherBlockQuantized",
)  # fmt: skip
MATRIX = frozenset({"Conv", "FusedConv", "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "ConvTranspose", "Attention"})
#: Least gain for a layer to be returned to float.
GAIN = 1.03
#: A gain counts when three quarters of the visits show it: on a busy machine the median alone is luck. Nothing more is
#: timed once nine in ten show twice of it.
CAUTIOUS, EVIDENT = 0.25, 0.1
#: Seconds that one comparison may take; it ends before at this half-width of the intervals.
SECONDS, PRECISION = 1.0, 0.02
#: Visits at least, and runs of a burst.
LEAST, RUNS = 5, 10
#: A trial is made where a profile shows that it could gain, if it is wrong by this factor: profiling costs time itself.
DOUBT = 1.2
#: What a layer must lose at least to be returned, as a share of the float model's time: less is noise of the profiler.
LEAST_LOSS = 0.005


def placement(model: ir.Model, context: Context) -> Placement:
    """Kernels of onnxruntime's optimised graph."""
    with tempfile.TemporaryDirectory(dir=context.workdir) as folder:
        path = Path(folder) / "optimised.onnx"
        Session(io.payload(model, context.workdir), threads=context.threads, optimised_path=path)
        graph = onnx.load(path, load_external_data=False).graph
    counts = Counter(node.op_type for node in graph.node)
    return Placement(
        int8=sum(count for op, count in counts.items() if op.startswith(INT8)),
        in_float=sum(count for op, count in counts.items() if op in MATRIX),
        qdq_left=min(counts["QuantizeLinear"], counts["DequantizeLinear"]),
        operators=dict(counts.most_common(12)),
    )


def compare(
    models: Sequence[ir.Model],
    feeds: Values,
    context: Context,
    seconds: float = SECONDS,
    quantile: float = 0.5,
    wanted: float = 0.0,
    clock: Clock | None = None,
) -> list[float]:
    """Speed of each model relative to the first: the median (or `quantile`) over all visits.

    `wanted`: it ends as soon as no model shows this speed even in its best quarter of the visits, or all show twice the
    gain in nearly all of theirs. On one CPU thread its own time counts, which others that use the machine cannot
    lengthen by taking turns.
    """
    alone = context.threads == 1 and context.provider == "cpu"
    clock = clock or (thread_time_ns if alone else perf_counter_ns)

    def settled(found: timing.Rounds) -> bool:
        others = range(1, found.count)
        hopeless = all(found.ratio_quantile(index, CAUTIOUS) * wanted > 1 for index in others)
        return wanted > 0 and (
            hopeless or all(found.ratio_quantile(index, 1 - EVIDENT) * wanted**2 <= 1 for index in others)
        )

    def opener(model: ir.Model) -> timing.Opener:
        session = Session(io.payload(model, context.workdir), threads=context.threads)
        return lambda: timing.Warm(session.caller(feeds))

    rule = timing.StopRule(PRECISION, seconds, fewest=LEAST, share=0, setup=0, runs=RUNS)
    random = np.random.default_rng(context.seed)
    rounds = timing.compare([opener(model) for model in models], rule, random, clock=clock, answered=settled)
    return [1.0, *(1 / rounds.ratio_quantile(index, 1 - quantile) for index in range(1, rounds.count))]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What ran under one name of the optimised graph."""

    operator: str
    microseconds: float

    @property
    def int8(self) -> bool:
        """Whether it computes with 8 bits."""
        return self.operator.startswith(INT8)


def profile(model: ir.Model, feeds: Values, context: Context, runs: int = 20) -> dict[str, Kernel]:
    """Median time of every kernel, by the name that the optimised graph gives it."""
    with tempfile.TemporaryDirectory(dir=context.workdir) as folder:
        source = io.payload(model, context.workdir)
        session = Session(source, threads=context.threads, profile_prefix=Path(folder) / "profile")
        for _ in range(runs):
            session.run(feeds)
        written = session.raw.end_profiling()
        try:
            events = json.loads(Path(written).read_text())
        except ValueError:
            check_room(written)
            raise
    times: dict[str, list[float]] = defaultdict(list)
    operators: dict[str, str] = {}
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            name = name.removesuffix("_kernel_time")
            times[name].append(event["dur"])
            operators[name] = event["args"]["op_name"]
    return {name: Kernel(operators[name], float(np.median(found))) for name, found in times.items()}


def losing(model: ir.Model, choice: Choice, slow: Mapping[str, Kernel], fast: Mapping[str, Kernel]) -> dict[str, float]:
    """Anchors whose int8 kernel takes longer than the float one: name -> microseconds lost.

    `slow`, `fast`: profiles of the quantized and of the float model. Kernels are matched by name: int8 ones keep the
    node's, float ones carry the node's or its output tensor's.
    """
    lost = {}
    for node in model.graph:
        if node.name not in choice.anchors:
            continue
        int8 = _int8(slow, node.name or "")
        plain = _plain(fast, [node.name or "", *_tensors(node)])
        if int8 is not None and plain is not None and int8 - plain > max(0.1 * plain, LEAST_LOSS * _whole(fast)):
            lost[node.name or ""] = int8 - plain
    return dict(sorted(lost.items(), key=lambda item: -item[1]))


def _may_gain(slow: float | None, fast: float | None, whole: float) -> bool:
    """Whether microseconds `fast` in the place of `slow` could be a gain, if profiles are wrong by `DOUBT`."""
    if slow is None or fast is None:
        return True
    return whole > GAIN * (whole - (DOUBT * slow - fast))


def _until(kernels: Mapping[str, Kernel], node: ir.Node, int8: bool) -> float | None:
    """Microseconds of all that runs up to the kernel made from a node, that included: profiles are in order."""
    spent = 0.0
    for name, kernel in kernels.items():
        spent += kernel.microseconds
        one = {name: kernel}
        found = _int8(one, node.name or "") if int8 else _plain(one, [node.name or "", *_tensors(node)])
        if found is not None:
            return spent
    return None


def _whole(kernels: Mapping[str, Kernel]) -> float:
    return sum(kernel.microseconds for kernel in kernels.values())


def _int8(kernels: Mapping[str, Kernel], name: str) -> float | None:
    """Time of the int8 kernel made from node `name`: it keeps the name, or gets a number added to it."""
    for found, kernel in kernels.items():
        if kernel.int8 and (found == name or found.startswith(f"{name}_token_")):
            return kernel.microseconds
    return None


def _plain(kernels: Mapping[str, Kernel], names: Iterable[str]) -> float | None:
    """Time of the float matrix kernel that has one of the names."""
    for candidate in (candidate for name in names for candidate in (name, f"{name}_nchwc", f"fused {name}")):
        if candidate in kernels and kernels[candidate].operator in MATRIX:
            return kernels[candidate].microseconds
    return None


def _tensors(node: ir.Node) -> list[str]:
    """The node's output and those of the operators that onnxruntime may fuse behind it."""
    value = node.outputs[0]
    names = [value.name or ""]
    while len(uses := value.uses()) == 1:
        user = next(iter(uses)).node
        if user.op_type not in ("Relu", "Clip", "Add", "Sigmoid", "LeakyRelu", "HardSigmoid"):
            break
        value = user.outputs[0]
        names.append(value.name or "")
    return names


#: A choice and what was measured about it.
Decided = tuple[Choice, Speed]


def decided_once(
    model: ir.Model,
    choice: Choice,
    target: str,
    activations: str,
    context: Context,
    decide: Callable[[], Decided],
    prefixes: Sequence[int] = EFFORTS["normal"].prefixes,
    prefer: str = "speed",
) -> Decided:
    """What `decide` says, or what it said before where everything that it depends on was the same.

    The clock decides which layers int8 does not pay for; decided once, a second run gives the same bytes.
    """
    if io.weight_bytes(model) >= io.EXTERNAL_ABOVE:
        return decide()
    key = cache.key(
        model=io.fingerprint(model),
        anchors=choice.anchors,
        between=choice.between,
        target=target,
        activations=activations,
        prefixes=list(prefixes),
        prefer=prefer,
        machine=machine(),
        provider=context.provider,
        batch=context.batch,
        threads=context.threads,
        data=None if context.calibration is None else context.calibration.fingerprint,
    )
    stored = context.cache.get("speed", key, "dropped", "measured")
    if stored is not None:
        for reason, nodes in stored["dropped"].items():
            choice = choice.without(nodes, reason, model)
        return choice, Speed.model_validate(stored["measured"])
    decided, measured = decide()
    dropped: dict[str, list[str]] = {}
    for decision in decided.kept:
        if decision.node in choice.anchors - decided.anchors:
            dropped.setdefault(decision.reason, []).append(decision.node)
    context.cache.put(
        "speed", key, {"dropped": dropped, "measured": measured.model_dump(mode="json", exclude_none=True)}
    )
    return decided, measured


def faster_choice(
    model: ir.Model,
    choice: Choice,
    write: Callable[[Choice], ir.Model],
    feeds: Values,
    context: Context,
    prefixes: Sequence[int] = EFFORTS["normal"].prefixes,
    given: ir.Model | None = None,
    bytes_count: bool = False,
) -> Decided:
    """The choice without the layers that measurably lose time, and what was measured.

    `given`: the model that `model` was prepared from, to which the speed is told; not what suits int8 better.
    `bytes_count`: layers stay in int8 where that saves a greater share of the bytes than it costs of the time.

    Tried: all layers whose int8 kernel is slower than the float one, then the first few layers of the graph, so many as
    `prefixes` says, where images are large and channels few.
    """
    made = write(choice)
    slow = profile(made, feeds, context)
    if unfused := _unfused(model, choice, slow):
        choice = choice.without(unfused, "onnxruntime finds no int8 kernel for it in this place", model)
        if not choice.anchors:
            return choice, Speed(speedup=1.0)
        made = write(choice)
        slow = profile(made, feeds, context)
    search = _Search(model, choice, made, write, feeds, context, bytes_count)
    fast, whole = profile(model, feeds, context), _whole(slow)
    lost = losing(model, choice, slow, fast)
    if lost and not search.attempt(list(lost)) and len(lost) > 1:
        search.attempt(list(lost)[:1])
    order = [node for node in model.graph if node.name in choice.anchors and node.op_type == "Conv"]
    for count in prefixes:
        first = order[:count]
        if count == len(first) < len(order) and _may_gain(
            _until(slow, first[-1], int8=True), _until(fast, first[-1], int8=False), whole
        ):
            search.attempt([node.name or "" for node in first])
    speedup = compare([model if given is None else given, search.made], feeds, context)[1]
    return search.choice, Speed(speedup=round(speedup, 3), returned=tuple(search.returned))


def _unfused(model: ir.Model, choice: Choice, kernels: Mapping[str, Kernel]) -> list[str]:
    """Layers that onnxruntime still computes in float: they gain nothing from the rounding around them."""
    return [
        node.name or ""
        for node in model.graph
        if node.name in choice.anchors
        and _int8(kernels, node.name or "") is None
        and _plain(kernels, [node.name or "", *_tensors(node)]) is not None
    ]


class _Search:
    """The fastest choice so far."""

    def __init__(
        self,
        model: ir.Model,
        choice: Choice,
        made: ir.Model,
        write: Callable[[Choice], ir.Model],
        feeds: Values,
        context: Context,
        bytes_count: bool,
    ) -> None:
        self.bytes_count = bytes_count
        self.model, self.choice, self.made, self.write = model, choice, made, write
        self.feeds, self.context = feeds, context
        self.returned: list[Returned] = []

    def attempt(self, names: list[str]) -> bool:
        """Return anchors `names` to float if that is faster; where bytes count, by more than it adds of them."""
        if not self.choice.anchors - set(names) or not self.choice.anchors & set(names):
            return False
        trial = self.choice.without(names, "float is faster here (measured)", self.model)
        made = self.write(trial)
        larger = io.weight_bytes(made) / io.weight_bytes(self.made) if self.bytes_count else 1.0
        wanted = GAIN * max(larger, 1.0)
        gain = compare([self.made, made], self.feeds, self.context, quantile=CAUTIOUS, wanted=wanted)[1]
        if gain < wanted:
            return False
        names = [name for name in names if name in self.choice.anchors]
        self.choice, self.made = trial, made
        self.returned.append(Returned(nodes=tuple(names), gain=round(gain, 3)))
        return True
