"""Charts as SVG: drawn in per cent of the width, so that they fit a phone without shrinking their text.

Every chart has a title and a description for screen readers; the page shows the same numbers as a table. Colours are
classes (`before`, `after`, `worse`), set by the page for light and dark.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from markupsafe import Markup, escape

from lepton_cli.report import words

_Row = TypeVar("_Row")

_ROW = 40
#: Rows in one drawing; longer charts are several drawings, side by side where there is room.
_CHUNK = 12
#: Letters of a name, and of name and value together: a phone shows no more on one line.
_NAME, _LEAST, _LINE = 34, 18, 43


@dataclasses.dataclass(frozen=True)
class Bar:
    """One labelled line of a bar chart: `bars` are (class, length in any unit)."""

    name: str
    value: str
    bars: tuple[tuple[str, float], ...]


def bars(title: str, description: str, rows: Sequence[Bar]) -> Markup:
    """Horizontal bars from a common zero at the left, one or two per row."""
    largest = max((length for row in rows for _, length in row.bars), default=0.0) or 1.0
    drawings: list[Markup] = []
    for numbered, part in _chunks(title, rows):
        body = [line for index, row in enumerate(part) for line in _bar_row(index * _ROW, row, largest)]
        drawings.append(svg(numbered, description, _ROW * len(part), body))
    return joined(drawings)


def _bar_row(top: int, row: Bar, largest: float) -> Iterable[Markup]:
    yield _labels(top, row.name, row.value)
    height = 9 if len(row.bars) == 1 else 6
    for index, (style, length) in enumerate(row.bars):
        width = 100 * max(length, 0.0) / largest
        y = top + 20 + index * (height + 1)
        yield Markup('<rect class="track" x="0" y="{}" width="100%" height="{}" rx="2"/>').format(y, height)
        yield Markup('<rect class="{}" x="0" y="{}" width="{:.2f}%" height="{}" rx="2"/>').format(
            style, y, width, height
        )


@dataclasses.dataclass(frozen=True)
class Swing:
    """One line of a chart of changes: a bar from zero to `amount`, and the interval around its end."""

    name: str
    value: str
    style: str
    amount: float
    low: float
    high: float


def diverging(title: str, description: str, rows: Sequence[Swing], scale: float) -> Markup:
    """Bars to the left (losses) and right (gains) of a middle line, all from `-scale` to `scale`, in shares of 1."""
    drawings: list[Markup] = []
    for numbered, part in _chunks(title, rows):
        body = [line for i, row in enumerate(part) for line in _diverging_row(i * _ROW, row, scale)]
        bottom = _ROW * len(part)
        body.append(Markup('<line class="axis" x1="50%" x2="50%" y1="18" y2="{}"/>').format(bottom - 6))
        for at, anchor, share in ((0, "start", -scale), (50, "middle", 0.0), (100, "end", scale)):
            label = Markup('<text class="tick" x="{}%" y="{}" text-anchor="{}">{}</text>')
            body.append(label.format(at, bottom + 8, anchor, f"{100 * share:+.0f} pp" if share else "0"))
        drawings.append(svg(numbered, description, bottom + 14, body))
    return joined(drawings)


def _diverging_row(top: int, row: Swing, scale: float) -> Iterable[Markup]:
    def at(amount: float) -> float:
        return 50 + 50 * min(1.0, max(-1.0, amount / scale))

    left, right = sorted((50.0, at(row.amount)))
    yield _labels(top, row.name, row.value)
    yield Markup('<rect class="track" x="0" y="{}" width="100%" height="10" rx="2"/>').format(top + 20)
    yield Markup('<rect class="{}" x="{:.2f}%" y="{}" width="{:.2f}%" height="10" rx="2"/>').format(
        row.style, left, top + 20, right - left
    )
    yield Markup('<line class="range" x1="{0:.2f}%" x2="{1:.2f}%" y1="{2}" y2="{2}"/>').format(
        at(row.low), at(row.high), top + 25
    )


@dataclasses.dataclass(frozen=True)
class Sample:
    """Raw times of one model, in seconds."""

    name: str
    style: str
    median: float
    times: tuple[float, ...]


_STRIP = 74
_BINS = 72


def distributions(title: str, description: str, samples: Sequence[Sample]) -> Markup:
    """Histograms above each other on one time axis."""
    drawn = [sample for sample in samples if sample.times]
    if not drawn:
        return Markup("")
    start, end = time_axis(drawn)
    body = [line for i, sample in enumerate(drawn) for line in _strip(i * _STRIP, sample, start, end)]
    bottom = _STRIP * len(drawn)
    return joined([svg(title, description, bottom + 26, [*body, *_axis(bottom, start, end)])])


def time_axis(samples: Sequence[Sample]) -> tuple[float, float]:
    """From zero where the models differ much, to the 98th percentile or three medians: outliers must not flatten all.

    Every sample has times. Runs beyond the end are not drawn.
    """
    fastest = min(min(sample.times) for sample in samples)
    end = 1.06 * max(min(_quantile(sample.times, 0.98), 3 * sample.median) for sample in samples)
    return (0.0 if fastest < 0.55 * end else max(0.0, fastest - 0.1 * (end - fastest))), end


def _strip(top: int, sample: Sample, start: float, end: float) -> Iterable[Markup]:
    counts = [0] * _BINS
    for time in sample.times:
        index = int((time - start) / (end - start) * _BINS)
        if index < _BINS:
            counts[max(index, 0)] += 1
    highest = max(counts) or 1
    base = top + _STRIP - 8
    yield _labels(top, sample.name, f"median {words.value(sample.median, 'time')}")
    for index, count in enumerate(counts):
        if count:
            height = max(1.0, 40 * count / highest)
            yield Markup('<rect class="{}" x="{:.2f}%" y="{:.1f}" width="{:.2f}%" height="{:.1f}"/>').format(
                sample.style, 100 * index / _BINS, base - height, 100 / _BINS, height
            )
    middle = 100 * (sample.median - start) / (end - start)
    yield Markup('<line class="median" x1="{0:.2f}%" x2="{0:.2f}%" y1="{1}" y2="{2}"/>').format(middle, top + 20, base)
    yield Markup('<line class="axis" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(base)


def _axis(top: int, start: float, end: float) -> Iterable[Markup]:
    """About four round times below the strips."""
    for time in ticks(start, end):
        at = 100 * (time - start) / (end - start)
        anchor = "start" if at < 4 else "end" if at > 96 else "middle"
        mark = Markup('<line class="axis" x1="{0:.2f}%" x2="{0:.2f}%" y1="{1}" y2="{2}"/>')
        yield mark.format(at, top - 8, top - 3)
        label = Markup('<text class="tick" x="{:.2f}%" y="{}" text-anchor="{}">{}</text>')
        yield label.format(at, top + 12, anchor, f"{time * 1e3:.6g} ms")


_CURVE = 150


def curve(title: str, description: str, points: Sequence[tuple[float, float]], chosen: int) -> Markup:
    """A line through points (x from zero on, y), number `chosen` of them marked; the scale of y at the left."""
    right = points[-1][0] or 1.0
    low, high = min(y for _, y in points), max(y for _, y in points)
    bottom = 0.0 if low < 0.55 * high else low - 0.1 * (high - low or high)
    height = (high - bottom) or 1.0
    places = [(100 * x / right, 20 + (_CURVE - 30) * (1 - (y - bottom) / height)) for x, y in points]
    body = [
        Markup('<line class="curve" x1="{:.2f}%" y1="{:.1f}" x2="{:.2f}%" y2="{:.1f}"/>').format(*one, *other)
        for one, other in itertools.pairwise(places)
    ]
    body += [
        Markup('<circle class="{}" cx="{:.2f}%" cy="{:.1f}" r="{}"/>').format(
            "after" if index == chosen else "before", x, y, 5 if index == chosen else 3
        )
        for index, (x, y) in enumerate(places)
    ]
    base = Markup('<line class="axis" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(_CURVE - 8)
    label = Markup('<text class="tick" x="{}" y="{}" text-anchor="{}">{}</text>')
    body += [base, label.format("0", 12, "start", f"{high:.4g}"), label.format("0", _CURVE + 6, "start", "0")]
    body.append(label.format("100%", _CURVE + 6, "end", f"{right:,.0f}"))
    return joined([svg(title, description, _CURVE + 12, body)])


def ticks(start: float, end: float) -> list[float]:
    """Three to six round numbers within the range."""
    raw = (end - start) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(start / step - 1e-9)
    return [index * step for index in range(first, math.floor(end / step + 1e-9) + 1)]


def _labels(top: int, name: str, value: str) -> Markup:
    whole = words.printable(name)
    return Markup(
        '<text class="name" x="0" y="{0}">{1}<title>{2}</title></text>'
        '<text class="value" x="100%" y="{0}" text-anchor="end">{3}</text>'
    ).format(top + 14, shortened(whole, min(_NAME, max(_LEAST, _LINE - len(value)))), whole, value)


def shortened(name: str, longest: int = _NAME) -> str:
    """The end of a long node name, from a separator on: `…/attention/self/query/MatMul` tells more than its start.

    Of what is written in words the start tells more.
    """
    if len(name) <= longest:
        return name
    if " " in name:
        return f"{name[: longest - 1].rstrip(', (')}…"
    end = name[1 - longest :]
    cuts = [at for separator in "/." if 0 <= (at := end.find(separator)) < 14]
    return f"…{end[cuts[0] if cuts else 0 :]}"


def svg(title: str, description: str, height: float, body: Iterable[Markup]) -> Markup:
    """A drawing as wide as the page."""
    return Markup('<svg role="img" width="100%" height="{0:.0f}"><title>{1}</title><desc>{2}</desc>{3}</svg>').format(
        height, title, description, Markup("").join(body)
    )


def _chunks(title: str, rows: Sequence[_Row]) -> Iterator[tuple[str, Sequence[_Row]]]:
    """The rows in parts of equal height, each with the title of its drawing."""
    count = math.ceil(len(rows) / _CHUNK)
    size = math.ceil(len(rows) / count) if count else 1
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield (title if count == 1 else f"{title}, rows {start + 1} to {start + len(part)} of {len(rows)}"), part


def joined(drawings: Sequence[Markup]) -> Markup:
    """Drawings side by side where there is room."""
    return Markup('<div class="chart">{}</div>').format(Markup("").join(drawings)) if drawings else escape("")


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
