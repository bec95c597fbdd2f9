"""What is known before anything is tried, against files, counts and timings of models that are made."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lepton_cli.errors import LeptonError, StepError
from lepton_cli.graph import cost as node_cost
from lepton_cli.graph import shapes
from lepton_cli.measure import size
from lepton_cli.prune import prospects
from lepton_cli.prune.allocate import Table
from lepton_cli.prune.prospects import Prospects
from lepton_cli.quantize import static
from lepton_cli.recipe.tuning import Space
from lepton_cli.tune import known
from lepton_cli.tune.candidate import Point
from lepton_cli.tune.known import Bounds, Foresight, Proposal
from lepton_cli.tune.space import SearchSpace, Traits, derive
from tests.prune.foreseen import length, looked_at, written

TRAITS = Traits(
    convolutions=True, products=True, transformer=True, quantized=False, prunable=True, calibrated=True, labelled=True,
    provider="cpu", tables=(), goal="size", max_drop=0.01,
)  # fmt: skip


def macs(model: ir.Model) -> dict[str, int]:
    size = {"x": (2, *map(int, model.graph.inputs[0].shape[1:]))}  # type: ignore[index]
    return node_cost.macs(model, shapes.concrete(model, size))


def weights(model: ir.Model) -> int:
    """Elements of all float tensors."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(one.size for one in tensors if one is not None and one.dtype == ir.DataType.FLOAT)


class Watch:
    """A model takes the time of its multiply-accumulates, and half of that in int8."""

    asked: Counter[str] = Counter()

    def __init__(self, reference: ir.Model, *_: object) -> None:
        self.whole = sum(macs(reference).values())
        self.asked["made"] += 1

    def ratios(self, candidates: Sequence[Callable[[], ir.Model]], seconds: float) -> tuple[np.ndarray, np.ndarray]:
        models = [candidate() for candidate in candidates]
        self.asked["timed"] += len(models)
        return np.array([sum(macs(one).values()) / self.whole * _speed(one) for one in models]), np.zeros(len(models))


def _speed(model: ir.Model) -> float:
    return 0.5 if any(node.op_type == "QuantizeLinear" for node in model.graph) else 1.0


@dataclasses.dataclass
class Case:
    """A network with all its parts, and how often what takes long was asked for."""

    known: Foresight
    space: SearchSpace
    found: Prospects
    model: ir.Model
    asked: Counter[str]
    written: Callable[[ir.Model, str], ir.Model]

    def point(self, **chosen: Any) -> Point:
        return self.space.point({"round_to": 1, **chosen}, pruned=True)

    def file(self, proposal: Proposal) -> int:
        """Bytes of what the proposal makes."""
        model = self.model if proposal.prospect is None else self.found.cut(proposal.prospect)
        return length(self.written(model, str(proposal.point["precision"])))


@pytest.fixture(name="case")
def _case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    return made(tmp_path, monkeypatch)


def made(folder: Path, monkeypatch: pytest.MonkeyPatch, *, timed: bool = False, prunable: bool = True) -> Case:
    found, given = looked_at("residual", folder)
    model, asked = found.plan.model, Counter[str]()
    places = [np.unique(np.append(np.arange(0, len(one.levels), 3), len(one.levels) - 1)) for one in found.tables]
    found.tables = [Table(one.levels[at], one.loss[at]) for one, at in zip(found.tables, places, strict=True)]

    def take() -> ir.Model:
        asked["model"] += 1
        return model

    def look(*_: object) -> Prospects | None:
        asked["prospects"] += 1
        return found if prunable else None

    plain = Prospects.choose

    def choose(self: Prospects, parts: Any) -> Any:
        asked["choose"] += 1
        return plain(self, parts)

    @contextlib.contextmanager
    def alone() -> Iterator[None]:
        asked["alone"] += 1
        yield

    class Own(Watch):
        pass

    Own.asked = asked
    monkeypatch.setattr(prospects, "prospects", look)
    monkeypatch.setattr(Prospects, "choose", choose)
    monkeypatch.setattr(known, "Stopwatch", Own)
    space = derive(Space(precision=("int8", "float", "fp16", "dynamic")), TRAITS)
    whole = size.measure(None, given.original, macs=macs(given.original), compress=False)
    one = Foresight(take, space, given, whole, metadata={}, timed=timed, macs=macs, alone=alone)
    return Case(one, space, found, model, asked, lambda model, precision: written(model, precision, given))


@pytest.mark.parametrize("precision", ["float", "int8", "fp16"])
def test_a_draft_is_counted_to_the_byte(precision: str, case: Case) -> None:
    proposal = Proposal(case.point(precision=precision))
    before = case.known.figures(proposal)
    assert (before.told, before.drafted) == (False, False)
    assert before.bytes == {"float": 1.0, "int8": 0.27, "fp16": 0.5}[precision]
    assert case.known.draft(proposal) == ""
    after = case.known.figures(proposal)
    assert after.drafted
    assert after.bytes == case.file(proposal) / length(case.model)
    assert (after.parameters, after.macs, after.time) == pytest.approx((1.0, 1.0, 1.0), rel=0.01)


@pytest.mark.parametrize("precision", ["float", "int8"])
def test_figures_of_widths_are_told_without_a_draft(precision: str, case: Case) -> None:
    point = case.point(precision=precision)
    # Three channels less than blocks hold: in int8 zeros fill some, a twentieth of the file.
    prospect = case.found.prospect(np.array([table.levels[1] for table in case.found.tables]))
    proposal = Proposal(point, prospect)
    told = case.known.figures(proposal)
    assert (told.told, told.drafted) == (True, False)
    cut = case.found.cut(prospect)
    assert told.bytes == pytest.approx(case.file(proposal) / length(case.model), rel=0.01)
    assert told.macs == pytest.approx(sum(macs(cut).values()) / sum(macs(case.model).values()), rel=0.01)
    if precision == "float":  # in int8 biases and zeros are counted as the file has them
        assert told.parameters == pytest.approx(weights(cut) / weights(case.model), rel=0.01)
    case.known.draft(proposal)
    drafted = case.known.figures(proposal)
    assert drafted.drafted
    assert drafted.bytes == case.file(proposal) / length(case.model)
    assert drafted.macs == pytest.approx(told.macs, rel=0.05)


@pytest.mark.parametrize("precision", ["float", "int8"])
def test_widths_hold_every_bound(precision: str, case: Case) -> None:
    point = case.point(precision=precision)
    case.known.draft(Proposal(case.point(precision=precision)))
    whole = case.known.figures(Proposal(case.point(precision=precision))).bytes
    for bounds in (
        Bounds(bytes=0.6 * whole),
        Bounds(macs=0.4567),
        Bounds(bytes=0.8 * whole, macs=0.5),
        Bounds(bytes=0.5 * whole, macs=0.9, parameters=0.6),
    ):
        prospect = case.known.widths(point, bounds)
        assert prospect is not None
        cut = case.found.cut(prospect)
        # Before its draft a file is known within a hundredth.
        assert case.file(Proposal(point, prospect)) <= 1.01 * bounds.bytes * length(case.model)
        assert sum(macs(cut).values()) <= bounds.macs * sum(macs(case.model).values())
        if precision == "float":
            assert weights(cut) <= 1.001 * bounds.parameters * weights(case.model)
        loosest = max(
            sum(macs(cut).values()) / sum(macs(case.model).values()) / bounds.macs,
            case.file(Proposal(point, prospect)) / length(case.model) / bounds.bytes,
            weights(cut) / weights(case.model) / bounds.parameters,
        )
        assert loosest > 0.8  # and no more goes than must


def test_no_widths_where_all_channels_hold_or_none_do(case: Case) -> None:
    point = case.point(precision="float")
    assert case.known.widths(point, Bounds()) is None
    assert case.known.widths(point, Bounds(bytes=1.01, macs=1.0)) is None
    assert case.asked["choose"] == 0
    least = case.known.floor(point, "bytes")
    assert least is not None
    assert case.known.widths(point, Bounds(bytes=0.98 * least)) is None
    assert case.known.widths(point, Bounds(bytes=1.02 * least)) is not None


@pytest.mark.parametrize("precision", ["float", "int8"])
def test_the_floor_is_what_nothing_can_be_below(precision: str, case: Case) -> None:
    point = case.point(precision=precision)
    case.found.tables = [  # below that there is next to nothing left of so small a file
        Table(one.levels[one.levels >= one.levels[0] / 4], one.loss[one.levels >= one.levels[0] / 4])
        for one in case.found.tables
    ]
    narrowest = np.array([table.levels[-1] for table in case.found.tables])
    smallest = Proposal(point, case.found.prospect(narrowest))
    assert case.known.floor(point, "bytes") == pytest.approx(case.file(smallest) / length(case.model), rel=0.02)
    cut = case.found.cut(case.found.prospect(narrowest))
    work = sum(macs(cut).values()) / sum(macs(case.model).values())
    assert case.known.floor(point, "macs") == pytest.approx(work, rel=0.01)


@pytest.mark.parametrize("heavier", [1.25, 0.8])
def test_tables_are_corrected_by_the_last_draft(heavier: float, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a draft is larger than told, others will be, less may be promised, and more must go."""
    point = case.point(precision="float")
    bounds = Bounds(bytes=0.6)
    first = case.known.widths(point, bounds)
    assert first is not None
    other = Proposal(point, case.found.prospect(np.array([table.levels[1] for table in case.found.tables])))
    told, floor = case.known.figures(Proposal(point, first)).bytes, case.known.floor(point, "bytes")
    before = case.known.figures(other).bytes
    assert case.known.off(point, "bytes") == 1.0
    plain = size.measure

    def weighed(path: Any, model: ir.Model, **options: Any) -> Any:
        found = plain(path, model, **options)
        return found.model_copy(update={"file": round(heavier * found.file)})

    monkeypatch.setattr(size, "measure", weighed)
    case.known.draft(Proposal(point, first))
    drafted = case.known.figures(Proposal(point, first)).bytes
    off = case.known.off(point, "bytes")
    assert off == drafted / told == pytest.approx(heavier, rel=0.01)
    assert case.known.off(point, "macs") == pytest.approx(1.0, rel=0.01)
    assert case.known.off(case.point(precision="fp16"), "bytes") == 1.0
    assert case.known.figures(other).bytes == pytest.approx(off * before)
    assert floor is not None
    assert case.known.floor(point, "bytes") == pytest.approx(off * floor)
    second = case.known.widths(point, bounds)
    assert second is not None
    assert heavier * case.file(Proposal(point, second)) <= 1.01 * bounds.bytes * length(case.model)
    assert heavier * case.file(Proposal(point, second)) >= 0.8 * bounds.bytes * length(case.model)
    assert (second.parameters < first.parameters) == (heavier > 1)


def test_what_cannot_be_drafted_is_said_once(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def fail(*_: object) -> None:
        tried.append(1)
        raise StepError("quantize.no-kernel", "there is no kernel", cause="opset 7")

    monkeypatch.setattr(static, "quantize", fail)
    whole = Proposal(case.point(precision="int8"))
    for _ in range(2):
        assert case.known.draft(whole) == "there is no kernel: opset 7"
    assert len(tried) == 1
    assert case.known.draft_failed(whole)
    assert not case.known.draft_failed(Proposal(case.point(precision="float")))
    assert not case.known.figures(whole).drafted
    with pytest.raises(LeptonError) as found:
        case.known.widths(case.point(precision="int8"), Bounds(bytes=0.1))
    assert found.value.code == "tune.not-drafted"
    assert "there is no kernel" in (found.value.cause or "")
    assert len(tried) == 1


@pytest.mark.parametrize("broken", [False, True])
def test_nothing_is_told_of_a_model_without_channels_that_can_go(
    broken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = made(tmp_path, monkeypatch, prunable=False)
    if broken:

        def fail(*_: object) -> None:
            raise StepError("prune.unknown-shapes", "no shapes")

        monkeypatch.setattr(prospects, "prospects", fail)
    point = case.point(precision="float")
    assert case.known.floor(point, "bytes") is None
    assert case.known.widths(point, Bounds(bytes=0.5)) is None
    assert case.known.draft(Proposal(point)) == ""


def test_nothing_is_computed_twice(case: Case) -> None:
    point = case.point(precision="int8")
    for _ in range(2):
        for importance in ("hessian", "activation"):
            for bounds in (Bounds(bytes=0.2), Bounds(bytes=0.2, macs=0.7)):
                assert case.known.widths(case.point(precision="int8", importance=importance), bounds) is not None
    assert case.asked["prospects"] == 2
    assert case.asked["choose"] == 4
    # Looked at by two rankings, and drafted once in int8: no ranking changes the unpruned file.
    assert case.asked["model"] == 3
    prospect = case.known.widths(point, Bounds(bytes=0.2))
    for calibration in (None, "minmax"):
        case.known.draft(Proposal(case.point(precision="int8", calibration=calibration), prospect))
    assert case.asked["model"] == 4
    other = Proposal(case.point(precision="int8", importance="activation"), prospect)
    assert not case.known.figures(other).drafted, "other channels lose another part"
    assert case.known.draft(other) == ""
    assert case.known.figures(other).drafted
    assert case.asked["model"] == 4
    assert case.asked["timed"] == case.asked["alone"] == 0


def test_drafts_are_timed_where_times_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, against one reference; times of widths are those of the tables, scaled to the draft of the whole."""
    case = made(tmp_path, monkeypatch, timed=True)
    asked = []

    class Half:
        """Half of what widths are, less a tenth of the whole that is no width's."""

        def __call__(self, widths: np.ndarray) -> float:
            full = prospects.full(case.found)
            return 0.1 + 0.4 * float(np.sum(widths) / np.sum(full))

        def table(self, widths: np.ndarray, group: int, levels: np.ndarray) -> np.ndarray:
            return self(widths) + 0.4 * (levels - widths[group]) / np.sum(prospects.full(case.found))

    def times(self: Prospects, options: Any, quantize: Any, seconds: float) -> Half:
        asked.append((options.timed_as, quantize is None))
        return Half()

    monkeypatch.setattr(Prospects, "times", times)
    point = case.point(precision="int8")
    whole = Proposal(point)
    case.known.draft(whole)
    assert case.known.figures(whole).time == pytest.approx(0.5, rel=0.02)
    widths = np.array([table.levels[len(table.levels) // 2] for table in case.found.tables])
    proposal = Proposal(point, case.found.prospect(widths))
    told = case.known.figures(proposal)
    assert told.time == pytest.approx(case.known.figures(whole).time * Half()(widths) / 0.5)
    assert asked == [("int8", False)]
    case.known.draft(proposal)
    cut = case.found.cut(case.found.prospect(widths))
    work = sum(macs(cut).values()) / sum(macs(case.model).values())
    assert case.known.figures(proposal).time == pytest.approx(0.5 * work, rel=0.1)
    assert case.known.off(point, "time") == pytest.approx(case.known.figures(proposal).time / told.time)
    assert (case.asked["made"], case.asked["timed"]) == (1, 2)
    assert case.asked["alone"] == 3
    case.known.widths(case.point(precision="float"), Bounds(time=0.7))
    assert asked == [("int8", False), ("float", True)]


def test_bounds_are_never_rounded_up() -> None:
    cases = {0.123456: 0.1234, 0.00359999: 0.003599, 0.25: 0.25, 0.29: 0.29, 0.3: 0.3, 1.0: 1.0, 2.34567: 2.345}
    for share, wanted in cases.items():
        assert known._floored(share) == pytest.approx(wanted, rel=1e-9)
    assert known._floored(0.0) == known._floored(-1.0) == pytest.approx(1e-4)


def test_losses_of_drafts_correct_those_of_tables_of_their_kind(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured three times as much as the table says: so is the next foretold, where a branch goes in both or none."""
    point = case.point(precision="int8")
    first, second = (case.known.widths(point, Bounds(bytes=share)) for share in (0.2, 0.15))
    assert first is not None
    assert second is not None
    monkeypatch.setattr(Prospects, "loss", lambda self, prospect: 3 * prospect.loss)
    assert case.known.figures(Proposal(point, second)).loss == pytest.approx(second.loss)
    assert case.known.draft(Proposal(point, first)) == ""
    assert case.known.figures(Proposal(point, first)).loss == pytest.approx(3 * first.loss)
    expected = (3 if bool(first.dropped) == bool(second.dropped) else 1) * second.loss
    assert case.known.figures(Proposal(point, second)).loss == pytest.approx(expected)
