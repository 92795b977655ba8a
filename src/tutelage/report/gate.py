"""What the gate watched, with its budgets: text that is forgotten, habits that grow, answers that are no longer right."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from tutelage.report.charts import Series, line_chart
from tutelage.report.markup import Markup
from tutelage.report.records import Run, divide

BUDGET_COLOUR = 6
HABITS = {
    "repeats": "Words that answers repeat",
    "begin_alike": "Answers that begin alike",
    "end_alike": "Answers that end alike",
}


def gate_charts(run: Run) -> list[Markup]:
    """Return a curve of everything that was watched; none of what was not."""
    return [*_forgetting_chart(run), *_style_charts(run), *_instruction_chart(run)]


def _budget(run: Run, name: str) -> float | None:
    value = run.setting(f"train.gate.{name}")
    return float(value) if isinstance(value, int | float) else None


def _forgetting_chart(run: Run) -> list[Markup]:
    budget = _budget(run, "forgetting")
    if budget is None or not run.evaluations:
        return []
    before = run.evaluations[0].probed.text_loss
    ratios = [divide(e.probed.text_loss, before) for e in run.evaluations]
    rises = [None if ratio is None else 100 * (ratio - 1) for ratio in ratios]
    series = _with_budget(run, "rise", rises, [100 * budget for _ in rises])
    note = "loss on held-out plain text above what it was before training; train.gate.forgetting is the budget"
    return [line_chart("Forgetting", series, x_label="step", y_label="%", note=note)]


def _style_charts(run: Run) -> list[Markup]:
    """A habit is beyond its budget where it is so far above both the data's own and its own lowest value so far."""
    budget = _budget(run, "style")
    if budget is None:
        return []
    charts = []
    for name, title in HABITS.items():
        seen = [e.probed.habits.get(name, (None, None)) for e in run.evaluations]
        known = [(share, data) for share, data in seen if share is not None and data is not None]
        if len(known) < len(seen) or not known:
            continue
        lowest = accumulate((share for share, _ in known), min)
        limits = [100 * (max(low, data) + budget) for low, (_, data) in zip(lowest, known, strict=True)]
        series = _with_budget(run, "model", [100 * share for share, _ in known], limits)
        series.append(Series("held-out answers", series[0].x, [100 * data for _, data in known], colour=2))
        note = "of answers to held-out prompts; train.gate.style is the budget"
        charts.append(line_chart(title, series, x_label="step", y_label="%", note=note, from_zero=True))
    return charts


def _instruction_chart(run: Run) -> list[Markup]:
    budget = _budget(run, "instruction")
    shares = [e.probed.right_share for e in run.evaluations]
    known = [share for share in shares if share is not None]
    if budget is None or not known or len(known) < len(shares):
        return []
    limits = [100 * max(0.0, most - budget) for most in accumulate(known, max)]
    series = _with_budget(run, "right", [100 * share for share in known], limits)
    note = "of tasks that code can score; train.gate.instruction is how far it may fall below its highest"
    return [line_chart("Right answers", series, x_label="step", y_label="%", note=note)]


def _with_budget(run: Run, name: str, values: Sequence[float | None], limits: Sequence[float]) -> list[Series]:
    steps = [e.step for e in run.evaluations]
    return [Series(name, steps, values, marks=True), Series("budget", steps, limits, colour=BUDGET_COLOUR)]
