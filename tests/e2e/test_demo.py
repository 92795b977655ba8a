"""The demo as a person runs it, made small: it trains, asks, scores, writes its page, and does the same again."""

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tutelage.cli.main import app
from tutelage.files.rundir import RunDir
from tutelage.lab.demo import QUICK, DemoResult, demo_config, run_demo
from tutelage.train.narrate import Narrator


def _run(folder: Path, *, seed: int = 0) -> DemoResult:
    with RunDir.create(folder) as run:
        return run_demo(run, demo_config(folder, seed=seed, size=QUICK), Narrator(), size=QUICK)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return _run(tmp_path_factory.mktemp("demo") / "run")


def test_the_demo_again_is_the_same_bit_for_bit_and_another_seed_is_not(result: DemoResult, tmp_path: Path) -> None:
    again = _run(tmp_path / "again")
    assert {**again.figures(), "seconds": 0} == {**result.figures(), "seconds": 0}
    assert again.tuned == result.tuned
    assert _run(tmp_path / "other", seed=1).fingerprint != result.fingerprint


def test_the_base_that_ships_knows_its_text_and_is_no_assistant(result: DemoResult) -> None:
    assert result.text_loss_before < 1.5
    assert sum(answered.correct for answered in result.base.held_out) <= 1


def test_scores_are_written_for_the_report_and_add_up(result: DemoResult) -> None:
    scores = json.loads((result.run / "scores.json").read_text())
    assert len(scores["answers"]) == QUICK.held_out
    for side in ("base", "tuned"):
        counted = sum(kind[side]["correct"] for kind in scores["kinds"])
        assert counted == sum(answer[f"{side}_correct"] for answer in scores["answers"])
        assert sum(kind[side]["total"] for kind in scores["kinds"]) == QUICK.held_out
        (loss,) = scores["losses"]
        assert math.isfinite(loss[side]["loss_sum"] / loss[side]["weight_sum"])


def test_the_command_prints_answers_scores_and_the_page(tmp_path: Path) -> None:
    finished = CliRunner().invoke(app, ["demo", "--quick", "--lora", "--dir", str(tmp_path / "run")])
    assert finished.exit_code == 0, finished.output
    for words in ("before", "after", "closed book", "multi turn", "loss on held-out pre-training text", "report.html"):
        assert words in finished.output
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "run" / "final" / "adapter_model.safetensors").is_file()
