"""The page of claims and its Markdown: every figure with its interval, nothing made up where nothing was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tutelage.errors import RunDirError
from tutelage.report.charts import Point, point_chart
from tutelage.report.claims import difference_text, read_claims, value_text, write_claims_page
from tutelage.report.claims_text import write_claims_text

MEASURES = {
    "right": {"title": "lessons answered right", "unit": "points"},
    "loss": {"title": "loss on answers", "unit": "nats per token"},
    "speed": {"title": "tokens per second", "unit": "tokens per second"},
}


def figure(mean: float, half: float | None = None) -> dict[str, float | int | None]:
    """Return a mean with its interval, as `claims.json` has it."""
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return {"mean": mean, "low": low, "high": high, "seeds": 1 if half is None else 3}


def prediction(
    measure: str, difference: object, *, relative: bool = False, verdict: str = "seen here"
) -> dict[str, object]:
    """Return a prediction, as `claims.json` has it."""
    return {
        "treated": "b <new>", "control": "a", "measure": measure, "expectation": "higher", "margin": 0.03,
        "relative": relative, "difference": difference, "verdict": verdict,
    }  # fmt: skip


def content(*, is_scatter: bool = False) -> dict[str, Any]:
    """Return a whole `claims.json` of one claim."""
    arms = [
        {"name": "a", "settings": {}, "figures": {"right": figure(0.5, 0.1), "loss": figure(0.2, 0.1), "speed": None}},
        {"name": "b <new>", "settings": {}, "figures": {"right": figure(0.9, 0.2), "loss": figure(0.1), "speed": None}},
    ]
    claim = {
        "name": "some-claim", "claim": "New is <better>.", "done": "Both were tried.", "source": "somebody",
        "verdict": "seen here", "command": "tutelage claims some-claim --seeds 3", "arms": arms, "predictions": [prediction("right", figure(0.4, 0.05))],
        "plot": {"measures": ["right", "loss"] if is_scatter else ["right"], "is_scatter": is_scatter},
    }  # fmt: skip
    return {
        "command": "tutelage claims some-claim --seeds 3", "date": "2026-01-02", "machine": "a machine, 2 cores", "versions": "x 1",
        "seeds": 3, "lessons": 900, "asked": 160, "measures": MEASURES, "claims": [claim],
    }  # fmt: skip


def test_a_share_is_told_in_points_a_ratio_in_per_cent_and_a_loss_as_it_is() -> None:
    assert difference_text(prediction("right", figure(0.4, 0.05)), MEASURES) == "+40.0 points (+35.0 to +45.0)"
    assert (
        difference_text(prediction("loss", figure(-0.2, 0.1)), MEASURES) == "-0.200 nats per token (-0.300 to -0.100)"
    )
    assert difference_text(prediction("speed", figure(0.0953, 0.0), relative=True), MEASURES).startswith("+10.0 %")
    assert value_text(figure(0.123, 0.01), "right", MEASURES) == "12.3 (11.3 to 13.3)"


def test_what_was_not_measured_says_so() -> None:
    assert difference_text(prediction("right", None), MEASURES) == "not measured"
    assert difference_text(prediction("right", figure(0.4)), MEASURES) == "not measured"
    assert value_text(None, "right", MEASURES) == "not measured"
    assert value_text(figure(0.5), "right", MEASURES) == "50.0"


@pytest.mark.parametrize("is_scatter", [False, True])
def test_the_page_has_claim_verdict_interval_and_one_plot(tmp_path: Path, is_scatter: bool) -> None:
    write_claims_page(content(is_scatter=is_scatter), tmp_path / "claims.html")
    html = (tmp_path / "claims.html").read_text()
    assert "New is &lt;better&gt;." in html
    assert "+40.0 points (+35.0 to +45.0)" in html
    assert html.count("<svg") == 1
    assert "b <new>" not in html
    assert "1 claims: 1 seen here." in html


def test_too_few_seeds_have_no_verdict(tmp_path: Path) -> None:
    found = content()
    found["claims"][0]["verdict"] = None
    write_claims_text(found, tmp_path / "claims.md")
    text = (tmp_path / "claims.md").read_text()
    assert "1 claims: 1 no verdict from so few seeds." in text
    assert "**No verdict from so few seeds.**" in text


def test_the_markdown_has_the_command_and_the_figures(tmp_path: Path) -> None:
    write_claims_text(content(), tmp_path / "claims.md")
    text = (tmp_path / "claims.md").read_text()
    assert "$ tutelage claims some-claim --seeds 3" in text
    assert (
        "| lessons answered right: b <new> higher than a | +40.0 points (+35.0 to +45.0) | 3.0 points | 3 | seen here |"
        in text
    )
    assert "| a | 50.0 (40.0 to 60.0) |" in text


def test_a_file_that_is_none_is_refused_with_a_mend(tmp_path: Path) -> None:
    for wrong in ("{", "[]", json.dumps({"claims": 3})):
        (tmp_path / "claims.json").write_text(wrong)
        with pytest.raises(RunDirError, match="is not a file of claims"):
            read_claims(tmp_path / "claims.json")
    (tmp_path / "claims.json").write_text(json.dumps(content()))
    assert read_claims(tmp_path / "claims.json") == content()


def test_points_stand_where_their_values_are() -> None:
    points = [Point("low", (1, 2, 3), (10, 10, 10)), Point("high", (5, 6, 7), (20, 30, 40))]
    html = point_chart("T", points, x_label="x", y_label="y")
    centres = [float(part.split('"')[1]) for part in html.split("<circle")[1:] for part in [part.split("cx=")[1]]]
    assert centres == sorted(centres)
    assert html.count('class="interval"') == 2
    assert "low: 2.000 across, 10.00 up" in html
    assert "not measured" in point_chart("T", [], x_label="x", y_label="y")


@pytest.mark.parametrize("is_scatter", [False, True])
def test_the_markdown_shows_a_plot_that_stands_by_itself(tmp_path: Path, is_scatter: bool) -> None:
    write_claims_text(content(is_scatter=is_scatter), tmp_path / "claims.md")
    assert "](claims/some-claim.svg)" in (tmp_path / "claims.md").read_text()
    drawing = ElementTree.parse(tmp_path / "claims" / "some-claim.svg").getroot()
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    texts = ["".join(one.itertext()) for one in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert "b <new>" in texts  # an arm by its name, on the axis or among the keys
    assert any("mean over seeds" in text for text in texts)
    shapes = "circle" if is_scatter else "rect"
    assert len(list(drawing.iter(f"{{http://www.w3.org/2000/svg}}{shapes}"))) >= 2
