"""The curves of what the gate watched: each with its budget, where it was watched, and not at all where it was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_folder import make_run

from tutelage.report.gate import gate_charts
from tutelage.report.page import run_page
from tutelage.report.read import read_run

TITLES = {
    "forgetting": ["Forgetting"],
    "style": ["Words that answers repeat", "Answers that begin alike", "Answers that end alike"],
    "instruction": ["Right answers"],
}
BEGIN_ALIKE = (0.3, 0.1, 0.2, 0.9)
RIGHT = (1, 8, 10, 4)


def watched_run(folder: Path, **budgets: float) -> Path:
    """Return a run of four evaluations that had these budgets."""
    make_run(folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["train"]["gate"] = budgets
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    quiet = {"share": 0.0, "data": 0.0}
    lines: list[dict[str, Any]] = []
    for number, line in enumerate((folder / "evals.jsonl").read_text().splitlines()[:4]):
        habits = {"repeats": quiet, "begin_alike": {"share": BEGIN_ALIKE[number], "data": 0.15}, "end_alike": quiet}
        probed = {"text_loss": 2.0 + 0.02 * number, "habits": habits, "right": RIGHT[number], "points": 10}
        lines.append({**json.loads(line), "probed": probed})
    (folder / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def described(folder: Path, title: str) -> str:
    """Return what the chart of that title says to those who do not see it."""
    (chart,) = (str(chart) for chart in gate_charts(read_run(folder)) if f"<figcaption>{title}" in str(chart))
    return chart.split('aria-label="')[1].split('"')[0]


@pytest.mark.parametrize("name", TITLES)
def test_what_has_a_budget_has_its_curves_and_nothing_else_has(tmp_path: Path, name: str) -> None:
    page = run_page(read_run(watched_run(tmp_path / "run", **{name: 0.2})))
    for other, titles in TITLES.items():
        assert all((title in page) == (other == name) for title in titles)
        assert (f"train.gate.{other}" in page) == (other == name)


def test_budgets_are_drawn_where_they_would_be_breached(tmp_path: Path) -> None:
    folder = watched_run(tmp_path / "run", forgetting=0.02, style=0.2, instruction=0.3)
    assert "rise: from 0 to 3.000" in described(folder, "Forgetting")
    assert "budget: from 2.000 to 2.000" in described(folder, "Forgetting")
    # 0.2 above the lowest before training, 0.3; then above the data's own, 0.15, which is more than the lowest
    style = described(folder, "Answers that begin alike")
    assert "model: from 30.00 to 90.00, lowest 10.00" in style and "budget: from 50.00 to 35.00, lowest 35.00" in style
    assert "right: from 10.00 to 40.00" in described(folder, "Right answers")
    assert "budget: from 0 to 70.00" in described(folder, "Right answers")


def test_a_run_that_was_written_before_there_were_probes_says_that_nothing_was_measured(tmp_path: Path) -> None:
    folder = watched_run(tmp_path / "run", forgetting=0.02, style=0.2)
    lines = [json.loads(line) for line in (folder / "evals.jsonl").read_text().splitlines()]
    (folder / "evals.jsonl").write_text("".join(json.dumps({**line, "probed": None}) + "\n" for line in lines))
    run = read_run(folder)
    assert run.problems == () and len(gate_charts(run)) == 1
