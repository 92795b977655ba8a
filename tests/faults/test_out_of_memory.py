"""Memory that runs out ends the run with a record of it, and the same command goes on with smaller passes and the same steps."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import tiny_runs
from faulty import LONGEST_SECONDS, Plant, Ranks, planted
from tiny import tiny_folder
from tiny_runs import write_texts
from tutelage.cli.edge import exit_code
from tutelage.errors import ConfigError, OutOfMemoryError
from tutelage.files import jsonl
from tutelage.files.rundir import RunDir
from tutelage.train.narrate import Narrator

NUM_STEPS = 6
SETTINGS = (f"train.max_steps={NUM_STEPS}", "train.neftune_alpha=5", "train.checkpoint_every_steps=2")
PASS_TOKENS = 128
OUT_OF_MEMORY = 76
FIRST_STEP = Plant("norm", "CUDA memory")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    tiny_folder(folder / "model", "llama_tied")
    write_texts(folder)
    return folder


class Heard(Narrator):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def go(place: Path, name: str, *changes: str, narrator: Narrator | None = None, resume: bool = False) -> str:
    return tiny_runs.go(place, name, *SETTINGS, *changes, narrator=narrator, resume=resume)


def figures(run: Path) -> list[dict[str, Any]]:
    return jsonl.read(run / "metrics.jsonl")


@pytest.fixture(scope="module")
def straight(place: Path) -> list[dict[str, Any]]:
    assert go(place, "straight") == "finished"
    return figures(place / "straight")


MOMENTS = {
    "forward": (Plant("forward", "CUDA memory", call=14), True),
    "backward": (Plant("backward", "CPU memory", call=14), True),
    "the optimiser": (Plant("optimiser", "CUDA memory", call=3), True),
    "the norm": (Plant("norm", "Python memory", call=3), True),
    "an evaluation": (Plant("evaluation", "CUDA memory", call=6), False),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_same_command_goes_on_with_half_the_pass_and_the_same_steps(
    place: Path, straight: list[dict[str, Any]], moment: str
) -> None:
    plant, in_a_step = MOMENTS[moment]
    name = moment.replace(" ", "-")
    with planted(plant), pytest.raises(OutOfMemoryError, match=f"in passes of {PASS_TOKENS} tokens") as raised:
        go(place, name)
    assert exit_code(raised.value) == OUT_OF_MEMORY
    run = RunDir(place / name)
    (line,) = jsonl.read(run.incidents)
    assert line["reason"] == "out of memory" and line["micro_tokens"] == PASS_TOKENS
    assert bool(line["rows"]) == in_a_step
    assert run.status["status"] == "failed"
    heard = Heard()
    assert go(place, name, narrator=heard, resume=True) == "finished"
    assert any(f"memory ran out in passes of {PASS_TOKENS} tokens" in said for said in heard.lines)
    plan = json.loads(run.plan.read_bytes())
    assert plan["pack_tokens"] < PASS_TOKENS
    assert jsonl.read(run.incidents) == [line], "what happened stays written down"
    for whole, halved in zip(straight, figures(run.path), strict=True):
        for key in ("step", "tokens", "documents", "weight_sum", "supervised_tokens"):
            assert halved[key] == whole[key]
        assert halved["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert any(halved["packs"] > whole["packs"] for whole, halved in zip(straight, figures(run.path), strict=True))


def test_passes_are_halved_again_and_again_until_they_cannot_be(place: Path) -> None:
    sizes, name = [], "again"
    with planted(FIRST_STEP), pytest.raises(OutOfMemoryError):
        go(place, name)
    while True:
        with planted(FIRST_STEP), pytest.raises((OutOfMemoryError, ConfigError)) as raised:
            go(place, name, resume=True)
        if isinstance(raised.value, ConfigError):  # another exit code: the same command would not help any more
            break
        sizes.append(json.loads((place / name / "plan.json").read_bytes())["pack_tokens"])
    longest = json.loads((place / name / "plan.json").read_bytes())["longest_document_tokens"]
    assert sizes[0] == max(PASS_TOKENS // 2, longest) and sizes[-1] == longest and len(sizes) <= 3
    assert "no pass can be smaller" in raised.value.problem and "train.method=lora" in raised.value.mend


@pytest.mark.parametrize("moment", ["preparation", "loading"])
def test_memory_that_runs_out_before_the_first_step_is_a_matter_of_the_configuration(place: Path, moment: str) -> None:
    with planted(Plant(moment, "CUDA memory")), pytest.raises(ConfigError, match="before the first step") as raised:
        go(place, f"no-{moment}")
    assert "train.method=lora" in raised.value.mend
    assert not RunDir(place / f"no-{moment}").out_of_memory.exists()


def test_a_build_that_notes_nothing_is_known(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.train.loop.noting_out_of_memory", lambda look, progress: nullcontext())
    with planted(FIRST_STEP), pytest.raises(RuntimeError) as raised:
        go(place, "silent")
    assert not isinstance(raised.value, OutOfMemoryError)
    assert not RunDir(place / "silent").out_of_memory.exists()


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_memory_that_runs_out_on_one_rank_ends_both_and_both_go_on(place: Path, ranks: Ranks, rank: int) -> None:
    run = place / f"rank-{rank}"
    steady = ("train.threads=1", "train.precision=fp32", f"run.dir={run}")
    (place / f"{run.name}.yaml").write_text(tiny_runs.configuration(place, *SETTINGS, *steady).to_yaml())
    words = ["train", str(place / f"{run.name}.yaml")]
    ended = ranks.run(words, Plant("backward", "CPU memory", call=6, rank=rank))
    assert ended.codes[rank] == OUT_OF_MEMORY and ended.codes[1 - rank] == 6, ended.said
    assert ended.seconds < LONGEST_SECONDS
    (line,) = jsonl.read(run / "incidents.jsonl")
    assert line["rank"] == rank and line["rows"]
    assert RunDir(run).status["status"] == "failed"
    assert ranks.run(words).codes == [0, 0]
    assert json.loads((run / "plan.json").read_bytes())["pack_tokens"] < PASS_TOKENS
