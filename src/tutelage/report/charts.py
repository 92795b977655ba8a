"""Plots as inline SVG: no plotting library, no network, readable in both colour schemes and on paper.

Colours come from the page's style sheet (`c0` ... `c7`), dashes tell lines apart without colour. A missing value is a
gap in the line. Values for the tooltip travel in `data-chart`, which assets/page.js reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tutelage.report.figures import number
from tutelage.report.markup import Markup, h, join
from tutelage.report.ticks import log_ticks, nice_step, nice_ticks, tick_label

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 10, 44
NUM_COLOURS = 8
_MAX_POINTS = 400


@dataclass(frozen=True)
class Series:
    """One line. `faint` is drawn thin behind the others and does not set the range; `marks` puts a dot on each value."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: int = 0
    faint: bool = False
    marks: bool = False


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic map from values in [low, high] to pixels between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of `value`; a value outside the range sits on the edge."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, self._inside(value)))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """Return round values inside the range."""
        return log_ticks(self.low, self.high) if self.log else nice_ticks(self.low, self.high, count)

    def _inside(self, value: float) -> float:
        return min(max(value, self.low), self.high)


def line_chart(
    title: str, series: Sequence[Series], *, x_label: str, y_label: str, note: str = "", from_zero: bool = False
) -> Markup:
    """Return a figure with lines over a common x axis; one without any finite value says that nothing was measured."""
    if not any(_finite(s.y) for s in series):
        return empty_chart(title, note)
    x_axis = _x_axis(series)
    y_axis = _y_axis(series, from_zero)
    ordered = sorted(series, key=lambda s: not s.faint)
    drawing = [
        *_grid(x_axis, y_axis, x_label, y_label),
        *(_line(s, x_axis, y_axis) for s in ordered),
        h("line", {"class": "cursor", "x1": 0, "x2": 0, "y1": TOP, "y2": HEIGHT - BOTTOM}),
    ]
    data = {
        "kind": "line",
        "x": x_label,
        "series": [
            {"name": s.name, "colour": s.colour % NUM_COLOURS, "points": _tooltip_points(s, x_axis, y_axis)}
            for s in series
        ],
    }
    legend = [(s.name, s.colour, s.faint) for s in series] if len(series) > 1 else []
    return _figure(title, drawing, _describe(title, series), note=note, legend=legend, data=data)


def histogram(
    title: str, edges: Sequence[float], counts: Sequence[float], *, x_label: str, y_label: str, note: str = ""
) -> Markup:
    """Return bars of equal width, one a bin; the labels are the edges of the bins, which may be spaced in any way."""
    if not counts or len(edges) != len(counts) + 1 or sum(counts) == 0:
        return empty_chart(title, note)
    x_axis = Axis(0, len(counts), LEFT, WIDTH - RIGHT)
    y_axis = Axis(0, max(counts) * 1.05, HEIGHT - BOTTOM, TOP)
    every = max(1, math.ceil(len(edges) / 9))
    labels = [(float(i), tick_label(edges[i])) for i in range(0, len(edges), every)]
    bars = [
        h("rect", {"class": "bar c0", "x": _px(x_axis(i) + 0.5), "width": _px(x_axis(i + 1) - x_axis(i) - 1), "y": _px(y_axis(n)), "height": _px(y_axis(0) - y_axis(n)), "data-tip": f"{number(edges[i])} to {number(edges[i + 1])}: {n:,.0f}"})
        for i, n in enumerate(counts)
    ]  # fmt: skip
    total = sum(counts)
    description = (
        f"Histogram of {x_label}: {total:,.0f} in {len(counts)} bins from {number(edges[0])} to {number(edges[-1])}."
    )
    return _figure(title, [*_grid(x_axis, y_axis, x_label, y_label, x_labels=labels), *bars], description, note=note)


@dataclass(frozen=True)
class Bar:
    """One horizontal bar; `low` and `high` are the ends of its interval, `label` is printed at its end."""

    value: float | None
    label: str
    colour: int = 0
    low: float | None = None
    high: float | None = None


def bar_chart(
    title: str, rows: Sequence[tuple[str, Sequence[Bar]]], *, x_label: str, names: Sequence[tuple[str, int]] = (), top: float | None = None, note: str = ""
) -> Markup:  # fmt: skip
    """Return groups of horizontal bars; `names` (name, colour) fill the legend; `top` fixes the end of the axis."""
    highest = max((bar.high or bar.value or 0 for _, bars in rows for bar in bars), default=0)
    if not rows or (top is None and highest <= 0):
        return empty_chart(title, note)
    label_width = min(210, 16 + 6.6 * max(len(name) for name, _ in rows))
    thickness, gap = 15, 12
    height = TOP + sum(len(bars) * thickness + gap for _, bars in rows) + BOTTOM
    axis = Axis(0, top if top is not None else highest, label_width, WIDTH - RIGHT - 96)
    drawing = [_vertical(axis(t), TOP, height - BOTTOM, tick_label(t)) for t in axis.ticks(5)]
    y = TOP + gap / 2
    for name, bars in rows:
        middle = y + len(bars) * thickness / 2
        drawing.append(
            h("text", {"class": "name", "x": _px(label_width - 8), "y": _px(middle + 4)}, _shorten(name, 30))
        )
        for bar in bars:
            drawing += _horizontal_bar(axis, bar, y, thickness - 2)
            y += thickness
        y += gap
    drawing.append(h("text", {"class": "label", "x": _px((axis.start + axis.end) / 2), "y": _px(height - 8)}, x_label))
    description = "; ".join(f"{name}: {', '.join(bar.label for bar in bars)}" for name, bars in rows)
    legend = [(name, colour, False) for name, colour in names]
    return _figure(title, drawing, description, note=note, legend=legend, height=height)


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its interval, and what is printed at its end."""

    low: float
    value: float
    high: float
    label: str
    colour: int = 0


def interval_chart(title: str, rows: Sequence[tuple[str, Interval]], *, x_label: str, note: str = "") -> Markup:
    """Return one line for each interval, on both sides of zero."""
    if not rows:
        return empty_chart(title, note)
    label_width = min(250, 16 + 6.6 * max(len(name) for name, _ in rows))
    thickness = 24
    height = TOP + thickness * len(rows) + BOTTOM
    ends = [end for _, row in rows for end in (row.low, row.high, 0.0)]
    low, high = min(ends), max(ends)
    pad = 0.05 * (high - low) or 1.0
    axis = Axis(low - pad, high + pad, label_width, WIDTH - RIGHT - 70)
    drawing = [_vertical(axis(tick), TOP, height - BOTTOM, tick_label(tick)) for tick in axis.ticks(5)]
    drawing.append(
        h("line", {"class": "axis", "x1": _px(axis(0)), "x2": _px(axis(0)), "y1": TOP, "y2": _px(height - BOTTOM)})
    )
    for place, (name, row) in enumerate(rows):
        y = TOP + thickness * (place + 0.5)
        left, middle, right = (_px(axis(value)) for value in (row.low, row.value, row.high))
        drawing += [
            h("text", {"class": "name", "x": _px(label_width - 8), "y": _px(y + 4)}, _shorten(name, 36)),
            h(
                "path",
                {"class": "interval", "d": f"M{left} {_px(y)}H{right}M{left} {_px(y - 4)}v8M{right} {_px(y - 4)}v8"},
            ),
            h("circle", {"class": f"dot c{row.colour}", "cx": middle, "cy": _px(y), "r": 4, "data-tip": row.label}),
            h("text", {"class": "value", "x": _px(axis(row.high) + 6), "y": _px(y + 4)}, row.label),
        ]
    drawing.append(h("text", {"class": "label", "x": _px((axis.start + axis.end) / 2), "y": _px(height - 8)}, x_label))
    description = "; ".join(f"{name}: {row.label}" for name, row in rows)
    return _figure(title, drawing, description, note=note, height=height)


@dataclass(frozen=True)
class Point:
    """A named point; `x` and `y` are the low end of its interval, its value, and the high end."""

    name: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]


def point_chart(title: str, points: Sequence[Point], *, x_label: str, y_label: str, note: str = "") -> Markup:
    """Return named points in two dimensions, each with its interval both ways."""
    if not points:
        return empty_chart(title, note)
    x_axis = _padded_axis([value for point in points for value in point.x], LEFT, WIDTH - RIGHT)
    y_axis = _padded_axis([value for point in points for value in point.y], HEIGHT - BOTTOM, TOP)
    drawing = _grid(x_axis, y_axis, x_label, y_label)
    for place, point in enumerate(points):
        (left, x, right), (low, y, high) = map(x_axis, point.x), map(y_axis, point.y)
        cross = f"M{_px(left)} {_px(y)}H{_px(right)}M{_px(x)} {_px(low)}V{_px(high)}"
        tip = f"{point.name}: {number(point.x[1])}, {number(point.y[1])}"
        drawing += [
            h("path", {"class": "interval", "d": cross}),
            h("circle", {"class": f"dot c{place % NUM_COLOURS}", "cx": _px(x), "cy": _px(y), "r": 5, "data-tip": tip}),
        ]
    description = "; ".join(f"{p.name}: {number(p.x[1])} across, {number(p.y[1])} up" for p in points)
    legend = [(point.name, place, False) for place, point in enumerate(points)]
    return _figure(title, drawing, f"{title}. {description}.", note=note, legend=legend)


def _padded_axis(values: Sequence[float], start: float, end: float) -> Axis:
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.1 * abs(high) or 0.5
    return Axis(low - pad, high + pad, start, end)


def empty_chart(title: str, note: str = "") -> Markup:
    """Return the place of a chart for which there are no values."""
    caption = h("figcaption", None, title, h("small", None, note) if note else None)
    return h("figure", {"class": "chart"}, caption, h("p", {"class": "missing"}, "not measured"))


def smooth(sums: Sequence[float | None], weights: Sequence[float | None], half_window: int) -> list[float | None]:
    """Return the weighted mean over a centred window: sum of `sums` over sum of `weights`, never a mean of means.

    A step without a finite value counts for nothing in its neighbours' windows.

    Example:
        >>> smooth([1.0, 8.0], [1.0, 2.0], 1)
        [3.0, 3.0]
    """
    top, bottom = [0.0], [0.0]
    for total, weight in zip(sums, weights, strict=True):
        usable = total is not None and weight is not None and math.isfinite(total) and math.isfinite(weight)
        top.append(top[-1] + (total or 0.0 if usable else 0.0))
        bottom.append(bottom[-1] + (weight or 0.0 if usable else 0.0))
    smoothed: list[float | None] = []
    for i in range(len(sums)):
        first, last = max(0, i - half_window), min(len(sums), i + half_window + 1)
        weight = bottom[last] - bottom[first]
        smoothed.append((top[last] - top[first]) / weight if weight > 0 else None)
    return smoothed


def thin(points: Sequence[tuple[float, float | None]], limit: int = _MAX_POINTS) -> list[tuple[float, float | None]]:
    """Return at most about `limit` points of a long line, keeping the lowest and highest of each stretch and all gaps' ends."""
    if len(points) <= limit:
        return list(points)
    stretch = math.ceil(2 * len(points) / limit)
    kept: list[tuple[float, float | None]] = []
    for first in range(0, len(points), stretch):
        part = points[first : first + stretch]
        known = [p for p in part if p[1] is not None]
        chosen = {min(known, key=_value), max(known, key=_value)} if known else {part[0]}
        if known and len(known) < len(part):
            chosen.add(next(p for p in part if p[1] is None))
        kept += sorted(chosen, key=lambda p: p[0])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _value(point: tuple[float, float | None]) -> float:
    return point[1] if point[1] is not None else math.nan


def _finite(values: Sequence[float | None]) -> list[float]:
    return [v for v in values if v is not None and math.isfinite(v)]


def _x_axis(series: Sequence[Series]) -> Axis:
    values = [x for s in series for x in s.x]
    low, high = min(values), max(values)
    return Axis(low, high, LEFT, WIDTH - RIGHT) if low < high else Axis(low - 0.5, high + 0.5, LEFT, WIDTH - RIGHT)


def _y_axis(series: Sequence[Series], from_zero: bool) -> Axis:
    """Range of the solid lines; faint ones add all but their most extreme hundredth, so that one spike hides nothing."""
    values = [v for s in series if not s.faint for v in _finite(s.y)]
    for s in series:
        ordered = sorted(_finite(s.y)) if s.faint or not values else []
        values += ordered[len(ordered) // 100 : len(ordered) - len(ordered) // 100]
    low, high = min(values), max(values)
    if from_zero:
        low = min(low, 0.0)
    pad = 0.06 * (high - low) or 0.1 * abs(high) or 0.5
    low = low if from_zero and low == 0 else low - pad
    high += pad
    step = nice_step((high - low) / 20)
    return Axis(math.floor(low / step) * step, math.ceil(high / step) * step, HEIGHT - BOTTOM, TOP)


def _grid(
    x_axis: Axis, y_axis: Axis, x_label: str, y_label: str, *, x_labels: Sequence[tuple[float, str]] | None = None
) -> list[Markup]:
    bottom = HEIGHT - BOTTOM
    lines = []
    for tick in y_axis.ticks(5):
        y = _px(y_axis(tick))
        lines.append(h("line", {"class": "grid", "x1": LEFT, "x2": WIDTH - RIGHT, "y1": y, "y2": y}))
        lines.append(h("text", {"class": "tick y", "x": LEFT - 8, "y": _px(y_axis(tick) + 4)}, tick_label(tick)))
    for value, label in x_labels or [(t, tick_label(t)) for t in x_axis.ticks(7)]:
        x = _px(x_axis(value))
        lines.append(h("line", {"class": "axis", "x1": x, "x2": x, "y1": bottom, "y2": bottom + 4}))
        lines.append(h("text", {"class": "tick x", "x": x, "y": bottom + 17}, label))
    lines.append(h("line", {"class": "axis", "x1": LEFT, "x2": WIDTH - RIGHT, "y1": bottom, "y2": bottom}))
    middle = (TOP + bottom) / 2
    lines.append(h("text", {"class": "label", "x": (LEFT + WIDTH - RIGHT) / 2, "y": HEIGHT - 7}, x_label))
    lines.append(h("text", {"class": "label", "transform": f"translate(13 {middle}) rotate(-90)"}, y_label))
    return lines


def _line(series: Series, x_axis: Axis, y_axis: Axis) -> Markup:
    pieces: list[str] = []
    pen_down = False
    for x, y in thin(list(zip(series.x, _gaps(series.y), strict=True))):
        if y is None:
            pen_down = False
            continue
        pieces.append(f"{'L' if pen_down else 'M'}{_px(x_axis(x))} {_px(y_axis(y))}")
        pen_down = True
    colour = f"c{series.colour % NUM_COLOURS}"
    line = h("path", {"class": f"line {colour}{' faint' if series.faint else ''}", "d": "".join(pieces)})
    if not series.marks and len(_finite(series.y)) > 1:
        return line
    dots = (
        h("circle", {"class": f"dot {colour}", "cx": _px(x_axis(x)), "cy": _px(y_axis(y)), "r": 3})
        for x, y in zip(series.x, _gaps(series.y), strict=True)
        if y is not None
    )
    return join([line, *dots])


def _gaps(values: Sequence[float | None]) -> list[float | None]:
    return [v if v is not None and math.isfinite(v) else None for v in values]


def _tooltip_points(series: Series, x_axis: Axis, y_axis: Axis) -> list[list[float | str]]:
    """[x pixel, y pixel, x text, y text] of what the tooltip can show."""
    return [
        [round(x_axis(x), 1), round(y_axis(y), 1), f"{x:,.6g}", number(y)]
        for x, y in thin(list(zip(series.x, _gaps(series.y), strict=True)))
        if y is not None
    ]


def _describe(title: str, series: Sequence[Series]) -> str:
    parts = []
    for s in series:
        values = _finite(s.y)
        if not values:
            parts.append(f"{s.name}: not measured")
            continue
        lost = len(s.y) - len(values)
        gap = f", {lost} values missing" if lost else ""
        parts.append(f"{s.name}: from {number(values[0])} to {number(values[-1])}, lowest {number(min(values))}{gap}")
    return f"{title}. {'; '.join(parts)}."


def _horizontal_bar(axis: Axis, bar: Bar, y: float, thickness: float) -> list[Markup]:
    if bar.value is None:
        return [h("text", {"class": "value missing", "x": _px(axis.start + 4), "y": _px(y + thickness - 2)}, bar.label)]
    end = axis(bar.value)
    drawing = [
        h("rect", {"class": f"bar c{bar.colour}", "x": _px(axis.start), "y": _px(y), "width": _px(max(end - axis.start, 0.5)), "height": thickness, "data-tip": bar.label})
    ]  # fmt: skip
    middle = _px(y + thickness / 2)
    if bar.low is not None and bar.high is not None:
        low, high = _px(axis(bar.low)), _px(axis(bar.high))
        drawing.append(
            h("path", {"class": "interval", "d": f"M{low} {middle}H{high}M{low} {_px(y + 3)}v7M{high} {_px(y + 3)}v7"})
        )
        end = max(end, axis(bar.high))
    drawing.append(h("text", {"class": "value", "x": _px(end + 6), "y": _px(y + thickness - 2)}, bar.label))
    return drawing


def _vertical(x: float, top: float, bottom: float, label: str) -> Markup:
    line = h("line", {"class": "grid", "x1": _px(x), "x2": _px(x), "y1": top, "y2": bottom})
    return join([line, h("text", {"class": "tick x", "x": _px(x), "y": bottom + 15}, label)])


def _figure(
    title: str, drawing: Sequence[Markup], description: str, *, note: str = "", legend: Sequence[tuple[str, int, bool]] = (), data: object = None, height: float = HEIGHT
) -> Markup:  # fmt: skip
    caption = h("figcaption", None, title, h("small", None, note) if note else None)
    keys = (
        h("li", {"class": f"c{colour % NUM_COLOURS}{' faint' if faint else ''}"}, name)
        for name, colour, faint in legend
    )
    svg = h(
        "svg",
        {
            "viewBox": f"0 0 {WIDTH} {_px(height)}",
            "role": "img",
            "aria-label": description,
            "data-chart": json.dumps(data, separators=(",", ":")) if data is not None else None,
        },
        drawing,
    )
    return h("figure", {"class": "chart"}, caption, h("ul", {"class": "legend"}, keys) if legend else None, svg)


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
