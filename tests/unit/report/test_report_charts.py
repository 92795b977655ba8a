"""Charts, ticks and figures."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.report.charts import Axis, Bar, Series, bar_chart, histogram, line_chart, smooth, thin
from tutelage.report.figures import compact, count, duration, number, percent, size
from tutelage.report.markup import Markup, escape, h
from tutelage.report.ticks import log_ticks, nice_ticks, tick_label

FINITE = st.floats(-1e9, 1e9, allow_nan=False)


@given(FINITE, st.floats(1e-6, 1e9), st.integers(2, 10))
def test_ticks_are_few_even_and_inside(low: float, width: float, wanted: int) -> None:
    high = low + width
    ticks = nice_ticks(low, high, wanted) if low < high else []
    slack = 1e-6 * max(abs(low), abs(high), 1)
    assert all(low - slack <= t <= high + slack for t in ticks)
    assert len(ticks) <= wanted + 2
    assert ticks == sorted(ticks)


def test_log_ticks_are_one_two_five() -> None:
    assert log_ticks(1, 20) == pytest.approx([1, 2, 5, 10, 20])
    assert log_ticks(1e-6, 1) == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1])


def test_labels_are_short() -> None:
    assert [tick_label(v) for v in (0, -2.5, 0.1, 999, 12_000, 2_500_000, 3e-4, 2.5e-5)] == [
        "0", "-2.5", "0.1", "999", "12k", "2.5M", "3e-4", "2.5e-5"
    ]  # fmt: skip


def test_an_axis_maps_its_ends_and_clamps_beyond() -> None:
    axis = Axis(0, 10, 100, 200)
    assert [axis(v) for v in (0, 5, 10, 99, -1)] == [100, 150, 200, 200, 100]
    assert Axis(1, 100, 0, 2, log=True)(10) == pytest.approx(1)


def test_smoothing_weighs_by_tokens_and_skips_what_is_unknown() -> None:
    assert smooth([10.0, 1.0], [10.0, 1.0], 1) == [1.0, 1.0]
    assert smooth([4.0, None, 8.0], [1.0, None, 3.0], 1) == [4.0, 3.0, 8.0 / 3.0]
    assert smooth([math.nan], [1.0], 0) == [None]
    assert smooth([], [], 3) == []


@given(st.lists(st.one_of(st.none(), FINITE), min_size=1, max_size=3000))
def test_thinning_keeps_the_ends_the_extremes_and_the_order(values: list[float | None]) -> None:
    points = list(enumerate(values))
    kept = thin([(float(x), y) for x, y in points], 100)
    known = [y for _, y in points if y is not None]
    kept_known = [y for _, y in kept if y is not None]
    assert len(kept) <= 160
    assert [x for x, _ in kept] == sorted({x for x, _ in kept})
    assert kept[-1][0] == len(values) - 1
    if known:
        assert (min(kept_known), max(kept_known)) == (min(known), max(known))


def test_a_gap_lifts_the_pen() -> None:
    chart = line_chart("t", [Series("a", [0, 1, 2, 3, 4], [1, 2, None, 2, math.nan])], x_label="x", y_label="y")
    path = chart.split(' d="')[1].split('"')[0]
    assert path.count("M") == 2
    assert "2 values missing" in chart


def test_one_spike_of_the_raw_values_does_not_flatten_the_smoothed() -> None:
    x = list(range(1000))
    raw = [1.0 + 0.001 * i for i in x]
    raw[500] = 1e6
    series = [Series("smooth", x, [1.0 + 0.001 * i for i in x]), Series("raw", x, raw, faint=True)]
    chart = line_chart("t", series, x_label="x", y_label="y")
    assert "1M" not in chart


@pytest.mark.parametrize("values", [[5.0], [5.0, 5.0], [0.0, 0.0], [1e-9, 2e-9], [-3.0, 4.0]])
def test_any_values_can_be_drawn(values: list[float]) -> None:
    chart = line_chart("t", [Series("a", range(len(values)), values)], x_label="x", y_label="y", from_zero=True)
    assert "NaN" not in chart and "nan" not in chart.split("aria-label")[0]
    assert "<svg" in chart


def test_charts_without_values_say_so() -> None:
    empty = [
        line_chart("t", [Series("a", [1], [None])], x_label="x", y_label="y"),
        line_chart("t", [], x_label="x", y_label="y"),
        histogram("t", [], [], x_label="x", y_label="y"),
        histogram("t", [0, 1], [0], x_label="x", y_label="y"),
        bar_chart("t", [], x_label="x"),
    ]
    assert all("not measured" in chart and "<svg" not in chart for chart in empty)


def test_a_bar_without_a_value_is_text_and_no_bar() -> None:
    chart = bar_chart("t", [("a", [Bar(None, "not measured"), Bar(50.0, "50 %", 1)])], x_label="x", top=100)
    assert chart.count('class="bar') == 1
    assert "not measured" in chart


def test_figures_say_what_was_not_measured() -> None:
    assert {f(None) for f in (count, number, compact, percent, size, duration)} == {"not measured"}
    assert number(math.inf) == "inf"
    assert (number(0.0), percent(0.0), count(0.0)) == ("0", "0.0 %", "0")
    assert (size(1536), size(12), duration(59.95), duration(3599.6)) == (
        "1.50 KiB",
        "12 bytes",
        "1 min 0 s",
        "1 h 0 min",
    )


@given(st.text())
def test_escaped_text_has_no_markup_and_can_be_written(text: str) -> None:
    shown = escape(text)
    shown.encode("utf-8")
    assert not set(shown) & set("<>\"'\x00\u202e")


def test_markup_passes_and_text_does_not() -> None:
    assert (
        h("p", {"title": 'a"b', "hidden": False}, Markup("<b>x</b>"), "<i>")
        == '<p title="a&quot;b"><b>x</b>&lt;i&gt;</p>'
    )
