"""The page of claims: what the field says, what was tried, what came of it. It reads `claims.json` and nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from tutelage.errors import RunDirError
from tutelage.files.atomic import write_text
from tutelage.report.charts import Bar, Point, bar_chart, point_chart
from tutelage.report.figures import MISSING
from tutelage.report.markup import Markup, Section, h, join, table
from tutelage.report.page import page

Json: TypeAlias = Mapping[str, Any]
NO_VERDICT = "no verdict from so few seeds"
VERDICTS = {
    "seen here": "good",
    "contradicted here": "bad",
    "not distinguishable here": "missing",
    NO_VERDICT: "missing",
}
"""Each verdict with its style; in this order they are counted."""


@dataclass(frozen=True)
class Scale:
    """How values are shown: multiplied by `factor`, or as the change in per cent that a difference of logarithms is."""

    unit: str
    factor: float
    decimals: int
    of_logarithms: bool = False

    def __call__(self, value: float) -> float:
        """Return a value in the unit that is shown."""
        return 100 * math.expm1(value) if self.of_logarithms else self.factor * value

    def text(self, value: float) -> str:
        """Return a value as text, without its unit."""
        return f"{self(value):,.{self.decimals}f}"


_SCALES = {
    "points": Scale("points", 100.0, 1),
    "percent": Scale("%", 100.0, 1),
    "tokens per second": Scale("tokens per second", 1.0, 0),
}
"""Units that are not shown as they are kept; others are, with three decimals."""
_RELATIVE = Scale("%", 1.0, 1, of_logarithms=True)
RULE = (
    "Each difference is between two arms with the same seed, over all seeds; with the seed change lessons, order, new embeddings, questions "
    "and text. Its interval is Student's, at 95 %. A difference that is expected to be higher or lower is seen where the whole interval "
    "lies on that side of zero and the mean is at least the smallest difference that matters; it is contradicted where the whole "
    "interval lies on the other side. What is expected to be the same is seen where the whole interval lies within that smallest difference. "
    "Anything else is not distinguishable. A claim of several predictions is seen where all are, and contradicted where one is."
)


def read_claims(path: str | Path) -> Json:
    """Return the content of a `claims.json`.

    Raises: RunDirError when it is not one; FileNotFoundError when there is no file.
    """
    try:
        found = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise _damaged(path) from error
    if not isinstance(found, dict) or not isinstance(found.get("claims"), list):
        raise _damaged(path)
    return found


def write_claims_page(found: Json, out: str | Path) -> None:
    """Write the page as one HTML file."""
    top = join(
        [
            h("p", {"class": "kicker"}, "tutelage claims"),
            h("h1", None, "Claims of supervised fine-tuning, tried in a small world"),
            h("p", {"class": "lead"}, counted(found)),
            h("p", None, made(found)),
            h("p", {"class": "soft"}, RULE),
        ]
    )
    sections = [_overview(found), *(_section(claim, found["measures"]) for claim in found["claims"])]
    write_text(out, page("claims", top, sections))


def counted(found: Json) -> str:
    """Return in words how many claims got which verdict."""
    verdicts = [verdict_text(claim) for claim in found["claims"]]
    parts = [f"{verdicts.count(verdict)} {verdict}" for verdict in VERDICTS if verdict in verdicts]
    return f"{len(verdicts)} claims: {', '.join(parts)}."


def verdict_text(judged: Json) -> str:
    """Return the verdict on a claim or a prediction."""
    return str(judged["verdict"] or NO_VERDICT)


def made(found: Json) -> str:
    """Return in words how, when and on what the runs were made."""
    return (
        f"Each arm is trained from the base model that ships, on {found['lessons']:,} lessons of the small world unless it says otherwise, "
        f"with {found['seeds']} seeds. Made on {found['date']} on {found['machine']} with {found['versions']}: {found['command']}"
    )


def difference_text(prediction: Json, measures: Json) -> str:
    """Return a difference with its interval in the unit of its measure, such as `+4.2 points (+1.0 to +7.4)`."""
    found = prediction["difference"]
    if found is None or found["low"] is None:
        return MISSING
    scale = _scale_of(prediction, measures)
    mean, low, high = (f"{scale(found[end]):+,.{scale.decimals}f}" for end in ("mean", "low", "high"))
    return f"{mean} {scale.unit} ({low} to {high})"


def margin_text(prediction: Json, measures: Json) -> str:
    """Return the smallest difference that matters, in the unit of the measure."""
    scale = _scale_of(prediction, measures)
    return f"{scale(prediction['margin']):.{scale.decimals}f} {scale.unit}"


def prediction_text(prediction: Json, measures: Json) -> str:
    """Return what was predicted, such as `right answers: leaky lower than apart`."""
    title = measures[prediction["measure"]]["title"]
    expectation = prediction["expectation"]
    link = "as" if expectation == "the same" else "than"
    return f"{title}: {prediction['treated']} {expectation} {link} {prediction['control']}"


def value_text(figure: Json | None, measure: str, measures: Json) -> str:
    """Return the mean of an arm with its interval, or that nothing was measured."""
    if figure is None:
        return MISSING
    scale = scale_of(measure, measures)
    mean = scale.text(figure["mean"])
    return mean if figure["low"] is None else f"{mean} ({scale.text(figure['low'])} to {scale.text(figure['high'])})"


def shown_measures(claim: Json) -> list[str]:
    """Return the measures that a claim's tables show: those drawn and those predicted, each once."""
    return list(dict.fromkeys([*claim["plot"]["measures"], *(one["measure"] for one in claim["predictions"])]))


def scale_of(measure: str, measures: Json) -> Scale:
    """Return how values of a measure are shown."""
    unit = str(measures[measure]["unit"])
    return _SCALES.get(unit, Scale(unit, 1.0, 3))


def _scale_of(prediction: Json, measures: Json) -> Scale:
    """Return how a difference is shown; that of logarithms in per cent."""
    return _RELATIVE if prediction["relative"] else scale_of(prediction["measure"], measures)


def _overview(found: Json) -> Section:
    rows = [
        (
            h("a", {"href": f"#{claim['name']}"}, claim["claim"]),
            _verdict(claim),
        )
        for claim in found["claims"]
    ]
    return Section("overview", "All claims", table(("claim", "verdict"), rows))


def _section(claim: Json, measures: Json) -> Section:
    body = [
        h("p", {"class": "lead"}, claim["claim"]),
        h("p", None, h("b", None, _verdict(claim))),
        h("p", None, claim["done"]),
        _predictions(claim["predictions"], measures),
        h("div", {"class": "charts"}, chart(claim, measures)),
        _arms(claim, measures),
        h("p", {"class": "soft"}, f"Claimed in: {claim['source']}. Made with: {claim['command']}"),
    ]
    return Section(claim["name"], claim["name"].replace("-", " ").capitalize(), join(body), claim["name"])


def _verdict(judged: Json) -> Markup:
    text = verdict_text(judged)
    return h("span", {"class": VERDICTS[text]}, text)


def _predictions(predictions: Sequence[Json], measures: Json) -> Markup:
    header = ("prediction", "difference (95 % interval)", "smallest that matters", "seeds", "verdict")
    rows = (
        (
            prediction_text(one, measures),
            difference_text(one, measures),
            margin_text(one, measures),
            str(one["difference"]["seeds"]) if one["difference"] else "0",
            _verdict(one),
        )
        for one in predictions
    )
    return table(header, rows, numeric=(3,))


def _arms(claim: Json, measures: Json) -> Markup:
    wanted = shown_measures(claim)
    header = ("arm", *(f"{measures[key]['title']}, {scale_of(key, measures).unit}" for key in wanted))
    rows = ((arm["name"], *(value_text(arm["figures"][key], key, measures) for key in wanted)) for arm in claim["arms"])
    return table(header, rows, numeric=range(1, len(wanted) + 1))


def chart(claim: Json, measures: Json) -> Markup:
    """Return the plot of a claim: every arm, as bars or as points."""
    keys = claim["plot"]["measures"]
    return _points(claim, keys, measures) if claim["plot"]["is_scatter"] else _bars(claim, keys, measures)


def _bars(claim: Json, keys: Sequence[str], measures: Json) -> Markup:
    rows = [
        (arm["name"], [_bar(arm["figures"][key], key, colour, measures) for colour, key in enumerate(keys)])
        for arm in claim["arms"]
    ]
    names = [(measures[key]["title"], colour) for colour, key in enumerate(keys)] if len(keys) > 1 else []
    title = "Every arm" if names else measures[keys[0]]["title"].capitalize()
    note = "mean over seeds, with the 95 % interval"
    return bar_chart(title, rows, x_label=scale_of(keys[0], measures).unit, names=names, note=note)


def _bar(figure: Json | None, key: str, colour: int, measures: Json) -> Bar:
    if figure is None:
        return Bar(None, MISSING, colour)
    scale = scale_of(key, measures)
    low, high = (None if figure[end] is None else max(0.0, scale(figure[end])) for end in ("low", "high"))
    return Bar(scale(figure["mean"]), scale.text(figure["mean"]), colour, low, high)


def _points(claim: Json, keys: Sequence[str], measures: Json) -> Markup:
    up, across = keys
    points = [
        Point(arm["name"], _ends(arm["figures"][across], across, measures), _ends(arm["figures"][up], up, measures))
        for arm in claim["arms"]
        if arm["figures"][across] is not None and arm["figures"][up] is not None
    ]
    return point_chart(
        "Every arm",
        points,
        x_label=f"{measures[across]['title']}, {scale_of(across, measures).unit}",
        y_label=f"right, {scale_of(up, measures).unit}"
        if up == "right"
        else f"{measures[up]['title']}, {scale_of(up, measures).unit}",
        note="mean over seeds, with 95 % intervals both ways",
    )


def _ends(figure: Json, key: str, measures: Json) -> tuple[float, float, float]:
    """Return low, mean and high in the unit that is shown; of a single seed, the mean three times."""
    scale = scale_of(key, measures)
    mean = scale(figure["mean"])
    low, high = (mean if figure[end] is None else scale(figure[end]) for end in ("low", "high"))
    return low, mean, high


def _damaged(path: str | Path) -> RunDirError:
    return RunDirError(
        f"{path} is not a file of claims", mend="`tutelage claims` writes it anew from the runs that it keeps"
    )
