"""What fine-tuning did to the model: the findings in plain words, every change with its interval, the answers side by side."""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.report.answers import answer_text
from tutelage.report.charts import Bar, Interval, Series, bar_chart, interval_chart, line_chart
from tutelage.report.figures import MISSING, count, number, percent
from tutelage.report.markup import Markup, Section, h, join, table
from tutelage.report.records import AnswerPair, Changed, Contrasted, Effect, Finding, TokenShift

_SAME = "not distinguishable"
_GOOD, _BAD, _NEUTRAL = 2, 3, 0


def effect_section(effect: Effect) -> Section:
    """Return the comparison of a tuned model with its base."""
    why = (
        f"The tuned model against its base, {effect.base}, on data that it was not trained on. Intervals are 95 %, over documents or "
        "prompts; a change that could be chance is called not distinguishable."
    )
    charts = [
        _relative_changes(effect.figures),
        _shares(effect.figures),
        *(_shift(effect.shift) if effect.shift is not None else ()),
    ]
    body = [
        h("p", {"class": "why"}, why),
        _findings(effect.findings),
        h("div", {"class": "charts"}, charts),
        _figures(effect.figures),
        _contrasts(effect.contrasts),
        _answers(effect.answers),
    ]
    return Section("effect", "What it did to the model", join(body), label="Effect")


def _findings(findings: Sequence[Finding]) -> Markup:
    if not findings:
        return h("p", {"class": "good"}, "Nothing went further than it may.")
    return h("ol", {"class": "findings"}, (_finding(finding) for finding in findings))


def _finding(finding: Finding) -> Markup:
    size = f" ({number(finding.size, 2)} times what is told)" if finding.size is not None else ""
    rows = h("p", {"class": "why"}, f"Training rows: {', '.join(finding.rows)}") if finding.rows else None
    return h(
        "li",
        None,
        h("b", None, finding.title),
        h("span", {"class": "why"}, size),
        h("p", None, finding.detail),
        rows,
        h("p", None, h("b", {"class": "good"}, "Try: "), finding.mend),
    )


def _relative_changes(figures: Sequence[Changed]) -> Markup:
    rows = []
    for one in figures:
        if one.unit == "share" or not one.base or one.difference is None or one.low is None or one.high is None:
            continue
        low, middle, high = (100 * value / one.base for value in (one.low, one.difference, one.high))
        rows.append((one.title, Interval(low, middle, high, f"{middle:+.1f} %", _colour(one))))
    return interval_chart("Change from the base", rows, x_label="% of the base's figure", note="95 % intervals")


def _shares(figures: Sequence[Changed]) -> Markup:
    shares = [one for one in figures if one.unit == "share"]
    rows = [
        (
            one.title,
            [_share(one.base, 6), _share(one.tuned, 0), *([_share(one.data, 1)] if one.data is not None else [])],
        )
        for one in shares
    ]
    names = [("base", 6), ("tuned", 0), ("the data's own answers", 1)]
    return bar_chart("Shares", rows, x_label="%", names=names, top=100)


def _share(value: float | None, colour: int) -> Bar:
    return Bar(None, MISSING, colour) if value is None else Bar(100 * value, percent(value), colour)


def _shift(shift: TokenShift) -> list[Markup]:
    kinds = (
        ("the base's own choice", shift.unshifted),
        ("among its first three", shift.marginal),
        ("beyond", shift.shifted),
    )
    ranks = bar_chart(
        "What it says, as the base would rank it",
        [(name, [_share(value, 0)]) for name, value in kinds],
        x_label="% of the tokens of its answers",
        top=100,
        note="arXiv 2312.01552",
    )
    kl = Series("KL", list(range(1, len(shift.by_position) + 1)), shift.by_position, marks=True)
    where = line_chart(
        "Where in an answer it left the base",
        [kl],
        x_label="token of the answer",
        y_label="KL(tuned || base), nats",
        note="mean over answers",
        from_zero=True,
    )
    return [ranks, where]


def _figures(figures: Sequence[Changed]) -> Markup | None:
    if not figures:
        return None
    header = ("figure", "unit", "base", "tuned", "change (95 % interval)", "the data's own answers", "items")
    rows = (
        (
            one.title,
            one.unit,
            number(one.base),
            number(one.tuned),
            change_text(one),
            number(one.data) if one.data is not None else "",
            count(one.items),
        )
        for one in figures
    )
    return table(header, rows, numeric=(2, 3, 5, 6))


def _contrasts(contrasts: Sequence[Contrasted]) -> Markup | None:
    if not contrasts:
        return None
    header = ("trained rows against held-out rows", "unit", "held out", "trained", "difference (95 % interval)")
    rows = (
        (
            one.title,
            one.unit,
            number(one.held_out),
            number(one.trained),
            _interval(one.trained, one.held_out, one.low, one.high, one.direction),
        )
        for one in contrasts
    )
    return table(header, rows, numeric=(2, 3))


def change_text(one: Changed) -> Markup | str:
    """Return a change with its interval, coloured where one way is better."""
    css = {_GOOD: "good", _BAD: "bad"}.get(_colour(one))
    return _interval(one.tuned, one.base, one.low, one.high, one.direction, css)


def _interval(
    after: float | None,
    before: float | None,
    low: float | None,
    high: float | None,
    direction: str,
    css: str | None = None,
) -> Markup | str:
    if after is None or before is None or low is None or high is None:
        return MISSING
    interval = f"({number(low, 3)} to {number(high, 3)})"
    if direction == _SAME:
        return h("span", {"class": "missing"}, f"{_SAME} {interval}")
    return h("span", {"class": css}, f"{number(after - before, 3)} {interval}")


def _colour(one: Changed) -> int:
    if one.direction == _SAME or one.better not in ("lower", "higher"):
        return _NEUTRAL
    return _GOOD if (one.direction == "up") == (one.better == "higher") else _BAD


def _answers(answers: Sequence[AnswerPair]) -> Markup | None:
    if not answers:
        return None
    header = ("prompt", "row", "the data's answer", "base", "tuned")
    rows = (
        (h("div", {"class": "wide"}, one.prompt), one.where, *(answer_text(t) for t in (one.data, one.base, one.tuned)))
        for one in answers
    )
    summary = h("summary", None, f"{count(len(answers))} held-out prompts with all answers")
    return h("details", None, summary, table(header, rows))
