"""A loss or gradient that is no number, on any rank: all ranks decide the same, and too many such steps are passed over or end the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_runs
from faulty import Plant, Ranks, planted
from tiny import tiny_folder
from tiny_runs import Stopper, outcome, write_texts
from tutelage.errors import RunDirError, TrainingError
from tutelage.files import jsonl
from tutelage.files.rundir import RunDir
from tutelage.train.checkpoint import read_state
from tutelage.train.guard import RollBack
from tutelage.train.narrate import Narrator
from tutelage.train.replay import replay

NUM_STEPS = 8
SETTINGS = (
    f"train.max_steps={NUM_STEPS}",
    "train.neftune_alpha=5",
    "train.checkpoint_every_steps=2",
    "train.keep_checkpoints=9",
    "train.evaluate_every_steps=3",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nan")
    tiny_folder(folder / "model", "gpt2", resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
    write_texts(folder)
    return folder


def words(place: Path, name: str, *changes: str) -> list[str]:
    steady = ("train.threads=1", "train.precision=fp32", f"run.dir={place / name}")
    (place / f"{name}.yaml").write_text(tiny_runs.configuration(place, *SETTINGS, *steady, *changes).to_yaml())
    return ["train", str(place / f"{name}.yaml")]


def left_out(run: Path) -> list[int]:
    return [line["step"] for line in jsonl.read(run / "metrics.jsonl") if line["left_out"] is not None]


@pytest.fixture(scope="module")
def on_all(place: Path, ranks: Ranks) -> dict[str, bytes]:
    """Return the weights of a run whose third gradient is no number on all ranks."""
    assert ranks.run(words(place, "all"), Plant("norm", "nan", call=3)).codes == [0, 0]
    assert left_out(place / "all") == [3]
    return outcome(place / "all")[0]


@pytest.mark.parametrize("where", ["norm", pytest.param("backward", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rank", [0, 1])
def test_all_ranks_leave_out_what_one_cannot_learn_from(
    place: Path, ranks: Ranks, on_all: dict[str, bytes], rank: int, where: str
) -> None:
    name = f"{where}-{rank}"
    passes = 3 if where == "norm" else 1 + 2 * passes_a_step(place / "all")
    ended = ranks.run(words(place, name), Plant(where, "nan", call=passes, rank=rank))
    assert ended.codes == [0, 0], ended.said
    assert left_out(place / name) == [3]
    (line,) = jsonl.read(place / name / "incidents.jsonl")
    assert line["step"] == 3 and len(line["rows"]) == jsonl.read(place / name / "metrics.jsonl")[2]["documents"]
    found = outcome(place / name)[0]
    assert found == on_all
    assert all(np.isfinite(np.frombuffer(weight, dtype=np.float32)).all() for weight in found.values())


def passes_a_step(run: Path) -> int:
    """Return how many passes a rank runs in each of the first steps, where all have as many."""
    (packs,) = {line["packs"] for line in jsonl.read(run / "metrics.jsonl")[:2]}
    return -(-int(packs) // 2)


def test_a_rank_that_decides_for_itself_is_known(place: Path, ranks: Ranks, on_all: dict[str, bytes]) -> None:
    ranks.run(words(place, "itself"), Plant("norm", "nan alone", call=3, rank=1))
    assert left_out(place / "itself") == [] and outcome(place / "itself")[0] != on_all


# Rolling back. Steps 4 and 6 cannot be taken, and step 5 between them could: none of the three is in the result.

MAY = ("train.guard.left_out_steps=1", "train.guard.roll_back=1")


ASTRAY = Plant("norm", "nan", call=4, also=(6,))


def go(place: Path, name: str, *changes: str, narrator: Narrator | None = None, resume: bool = False) -> str:
    return tiny_runs.go(place, name, *SETTINGS, *changes, narrator=narrator, resume=resume)


@pytest.fixture(scope="module")
def rolled_back(place: Path) -> RunDir:
    with planted(ASTRAY) as calls:
        assert go(place, "back", *MAY) == "finished"
    assert len(calls) == 6 + 1 + 2  # the third step anew, the seventh and the eighth
    return RunDir(place / "back")


def test_too_many_steps_that_cannot_be_taken_are_passed_over(place: Path, rolled_back: RunDir) -> None:
    assert [line["step"] for line in jsonl.read(rolled_back.metrics)] == [1, 2, 3, 7, 8]
    (line,) = jsonl.read(rolled_back.incidents)
    assert (line["roll_back"], line["to_step"], line["passed_over"]) == (1, 2, [4, 6])
    assert [step["step"] for step in line["left_out"]] == [4, 6] and all(step["rows"] for step in line["left_out"])
    state = read_state(rolled_back.checkpoint(NUM_STEPS))
    assert state.rolled_back == (RollBack(to=2, first=4, last=6),)
    with planted(replace(ASTRAY, also=(5, 6))):  # the same three steps, left out one by one
        assert go(place, "out", "train.guard.left_out_steps=3") == "finished"
    assert outcome(place / "out")[0] == outcome(rolled_back.path)[0]


def test_a_step_that_a_roll_back_undid_can_be_replayed(rolled_back: RunDir) -> None:
    found = replay(rolled_back, 6, Narrator())
    assert found.reason == "the gradient norm is not finite" and len(found.rows) > 0
    with pytest.raises(RunDirError, match=r"step 5 of .* was not left out") as raised:
        replay(rolled_back, 5, Narrator())
    assert raised.value.mend == "these were: 4, 6"


@pytest.mark.parametrize("cut", [3, 7])
def test_a_run_that_is_cut_after_rolling_back_goes_on_as_if_it_had_not_been(
    place: Path, rolled_back: RunDir, cut: int
) -> None:
    """After step 3, which it takes anew, and after step 7, beyond those that it passed over."""
    name = f"cut-{cut}"

    class Second(Stopper):
        seen = 0 if cut == 3 else 1

        def step(self, metrics: Mapping[str, Any]) -> None:
            if metrics["step"] == self.at:
                self.seen += 1
            if self.seen == 2:
                super().step(metrics)

    with planted(ASTRAY):
        assert go(place, name, *MAY, narrator=Second(cut)) == "stopped"
    assert go(place, name, *MAY, resume=True) == "finished"
    assert without_clock(place / name) == without_clock(rolled_back.path)


def test_a_run_that_is_killed_while_it_goes_back_decides_the_same_again(place: Path, rolled_back: RunDir) -> None:
    with planted(ASTRAY), pytest.raises(KeyError), pytest.MonkeyPatch.context() as patch:
        patch.setattr("tutelage.train.roll_back._line", lambda *_, **__: {}["killed"])
        go(place, "killed", *MAY)
    assert RunDir(place / "killed").checkpoint_steps() == [0, 2], "those of the steps that are undone are gone"
    with planted(replace(ASTRAY, call=2, also=(4,))):
        assert go(place, "killed", *MAY, resume=True) == "finished"
    assert without_clock(place / "killed") == without_clock(rolled_back.path)


def without_clock(run: Path) -> Any:
    return outcome(run), [line for line in jsonl.read(run / "incidents.jsonl") if line.pop("left_out", None)]


def test_a_state_that_forgets_the_roll_back_is_known(
    place: Path, rolled_back: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tutelage.train.loop.is_passed_over", lambda state, step: False)
    with planted(ASTRAY):
        go(place, "forgets", *MAY)
    assert outcome(place / "forgets") != outcome(rolled_back.path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("train.guard.left_out_steps=1",), r"step 6 could not be taken: .* It is the 2\. of 3 steps"),
        ((*MAY, "train.checkpoint_every_steps=5", "train.keep_checkpoints=1"), "no checkpoint from before step 4"),
    ],
)
def test_a_run_that_may_not_or_cannot_go_back_ends_with_what_would_help(
    place: Path, changes: tuple[str, ...], said: str
) -> None:
    name = f"ends-{len(changes)}"
    with planted(ASTRAY), pytest.raises(TrainingError, match=said) as raised:
        go(place, name, *changes)
    assert "train.guard.roll_back" in raised.value.mend or "train.checkpoint_every_steps" in raised.value.mend
    assert RunDir(place / name).status["status"] == "failed"


def test_all_ranks_go_back_together(place: Path, ranks: Ranks) -> None:
    ended = ranks.run(words(place, "both", *MAY), replace(ASTRAY, rank=1))
    assert ended.codes == [0, 0], ended.said
    assert [line["step"] for line in jsonl.read(place / "both" / "metrics.jsonl")] == [1, 2, 3, 7, 8]
