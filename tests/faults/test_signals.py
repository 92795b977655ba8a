"""A run that is told to stop, whatever it is at, leaves a checkpoint, and goes on from there as if it had not been."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tiny_runs
from faulty import LONGEST_SECONDS, Plant, Ranks, planted
from tiny import tiny_folder
from tiny_runs import outcome, write_texts
from tutelage.files import jsonl
from tutelage.files.manifest import verify_manifest
from tutelage.files.rundir import RunDir
from tutelage.train.look import Look
from tutelage.train.stop import RESUME_EXIT_CODE, StopNow

NUM_STEPS = 6
SETTINGS = (f"train.max_steps={NUM_STEPS}", "train.neftune_alpha=5", "data.max_tokens=64", "data.cache=off")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    tiny_folder(folder / "model", "gpt2", resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
    write_texts(folder)
    return folder


def go(place: Path, name: str, *changes: str, resume: bool = False) -> str:
    return tiny_runs.go(place, name, *SETTINGS, *changes, resume=resume)


@pytest.fixture(scope="module")
def straight(place: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    assert go(place, "straight") == "finished"
    return outcome(place / "straight")


# Of the calls that a run makes to each place: in which the signal comes, and after which step the run then stands.
MOMENTS = {
    "in the first evaluation": (Plant("evaluation", "SIGTERM", call=2), 0),
    "in the first answers": (Plant("sampling", "SIGTERM", call=2), 0),
    "in a step": (Plant("norm", "SIGTERM", call=3), 3),
    "in an evaluation": (Plant("evaluation", "SIGTERM", call=8), 2),
    "in answers": (Plant("sampling", "SIGTERM", call=6), 2),
    "while saving the best": (Plant("save", "SIGTERM", call=1), 3),
    "in the last step": (Plant("norm", "SIGTERM", call=NUM_STEPS), NUM_STEPS),
    "in the last answers": (Plant("sampling", "SIGTERM", call=14), NUM_STEPS),
    "Ctrl-C in a step": (Plant("norm", "SIGINT", call=3), 3),
    "the warning of a scheduler in a step": (Plant("norm", "SIGUSR1", call=3), 3),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_stops_wherever_it_is_and_goes_on_as_if_it_had_not(place: Path, straight: Any, moment: str) -> None:
    plant, step = MOMENTS[moment]
    name = moment.replace(" ", "-")
    with planted(plant) as calls:
        assert go(place, name) == "stopped"
        ended = time.monotonic()
    run = RunDir(place / name)
    assert run.status["status"] == "stopped" and run.status["result"] == {"step": step}
    assert not run.final.exists()
    if step:
        assert run.checkpoint_steps()[-1] == step and verify_manifest(run.checkpoint(step)) == []
        assert ended - calls[plant.call - 1] < 5
    if plant.place in ("evaluation", "sampling"):
        assert len(calls) == plant.call, "it went on after the signal"
        lines = jsonl.read(run.evals if plant.place == "evaluation" else run.samples) if step else []
        assert [line for line in lines if line["step"] == step] == [], "half of it was written down"
    assert go(place, name, resume=True) == "finished"
    assert outcome(place / name) == straight


def test_an_evaluation_that_does_not_ask_is_known(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Look, "_halt", lambda self: False)
    plant, _ = MOMENTS["in an evaluation"]
    with planted(plant) as calls:
        go(place, "deaf")
    assert len(calls) > plant.call


def test_a_run_that_forgets_the_evaluation_it_broke_off_is_known(
    place: Path, straight: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = Look.around
    monkeypatch.setattr(Look, "around", lambda self, progress: really(self, progress) or True)
    plant, _ = MOMENTS["in an evaluation"]
    with planted(plant):
        go(place, "forgets")
    monkeypatch.undo()
    go(place, "forgets", resume=True)
    assert outcome(place / "forgets") != straight


@pytest.mark.parametrize("where", ["preparation", "loading"])
def test_before_the_first_step_a_run_leaves_at_once_and_leaves_nothing_half_done(
    place: Path, straight: Any, where: str
) -> None:
    folder = place / f"cache-{where}"
    with planted(Plant(where, "SIGTERM")) as calls, pytest.raises(StopNow) as stopped:
        go(place, where, f"data.cache={folder}")
    assert stopped.value.code == RESUME_EXIT_CODE
    assert time.monotonic() - calls[0] < 5
    run = RunDir(place / where)
    assert run.status["status"] == "stopped" and run.checkpoint_steps() == []
    assert not any((*run.path.rglob(".new-*"), *folder.rglob(".new-*")))
    assert go(place, where, f"data.cache={folder}", resume=True) == "finished"
    assert outcome(run.path) == straight


def test_a_result_that_is_being_written_is_written_to_its_end(place: Path, straight: Any) -> None:
    with planted(Plant("final", "SIGTERM")):
        assert go(place, "final") == "finished"
    assert outcome(place / "final") == straight


@pytest.mark.parametrize("moment", ["in the first evaluation", "in a step", "in an evaluation", "in the last answers"])
def test_time_that_is_over_stops_a_run_wherever_it_is(place: Path, straight: Any, moment: str) -> None:
    plant, step = MOMENTS[moment]
    name = f"late-{moment.replace(' ', '-')}"
    with planted(replace(plant, do="a day passes")):
        assert go(place, name, "train.max_minutes=60") == "stopped"
    assert RunDir(place / name).status["result"] == {"step": step}
    assert go(place, name, "train.max_minutes=60", resume=True) == "finished"
    assert outcome(place / name) == straight


# The same from the command line, in processes of their own.


def words(place: Path, name: str, *changes: str) -> list[str]:
    steady = ("train.threads=1", "train.precision=fp32", f"run.dir={place / name}")
    resolved = tiny_runs.configuration(place, *SETTINGS, *steady, *changes)
    (place / f"{name}.yaml").write_text(resolved.to_yaml())
    return ["train", str(place / f"{name}.yaml")]


def weights(run: Path) -> dict[str, bytes]:
    return outcome(run)[0]


# Ranks of a model in parts meet at every pass, so that one cannot leave off alone.
IN_PARTS = ("train.parallel=shard",)
ON_ONE_RANK = {
    "in a step": Plant("norm", "SIGTERM", call=3, rank=1),
    "in an evaluation": Plant("evaluation", "SIGTERM", call=4, rank=1),
    "in answers": Plant("sampling", "SIGTERM", call=6, rank=0),
}


@pytest.fixture(scope="module")
def straight_on_two(place: Path, ranks: Ranks) -> dict[str, bytes]:
    assert ranks.run(words(place, "two")).codes == [0, 0]
    return weights(place / "two")


@pytest.mark.parametrize(
    ("moment", "changes"),
    [
        pytest.param("in an evaluation", ()),
        pytest.param("in a step", (), marks=pytest.mark.slow),
        pytest.param("in answers", (), marks=pytest.mark.slow),
        *(pytest.param(moment, IN_PARTS, marks=pytest.mark.slow) for moment in ON_ONE_RANK),
    ],
)
def test_a_signal_to_one_rank_stops_both_and_the_same_command_goes_on(
    place: Path, ranks: Ranks, straight_on_two: dict[str, bytes], moment: str, changes: tuple[str, ...]
) -> None:
    name = f"one-rank-{moment.replace(' ', '-')}-{len(changes)}"
    ended = ranks.run(words(place, name, *changes), ON_ONE_RANK[moment])
    assert ended.codes == [RESUME_EXIT_CODE, RESUME_EXIT_CODE], ended.said
    assert ended.seconds < LONGEST_SECONDS
    run = RunDir(place / name)
    assert run.status["status"] == "stopped"
    assert verify_manifest(run.checkpoint(run.status["result"]["step"])) == []
    assert ranks.run(words(place, name, *changes)).codes == [0, 0]
    if not changes:
        assert weights(place / name) == straight_on_two


def test_a_decision_of_one_rank_alone_is_known(place: Path, ranks: Ranks) -> None:
    plant = replace(ON_ONE_RANK["in a step"], do="SIGTERM alone")
    ended = ranks.run(words(place, "alone"), plant)
    assert ended.codes != [RESUME_EXIT_CODE, RESUME_EXIT_CODE]


def test_a_signal_to_one_rank_in_the_preparation_ends_both(place: Path, ranks: Ranks) -> None:
    ended = ranks.run(words(place, "prepared"), Plant("preparation", "SIGTERM", rank=1))
    assert ended.codes[1] == RESUME_EXIT_CODE and ended.codes[0] in (RESUME_EXIT_CODE, 6), ended.said
    assert "this should not have happened" not in ended.said[0]


def test_a_second_signal_leaves_at_once(place: Path, ranks: Ranks) -> None:
    ended = ranks.run(words(place, "twice"), Plant("norm", "SIGTERM SIGTERM", call=3), count=1)
    assert ended.codes == [RESUME_EXIT_CODE]
    assert RunDir(place / "twice").status["status"] == "running"
    assert [step for step in RunDir(place / "twice").checkpoint_steps() if step] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_program_starts_leaves_cleanly(place: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "tutelage", *words(place, f"start-{number.name}")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while not is_caught(process.pid, number):
            time.sleep(0.005)
            assert process.poll() is None
        process.send_signal(number)
        said, _ = process.communicate(timeout=LONGEST_SECONDS)
    assert process.returncode == RESUME_EXIT_CODE, said
    assert "Traceback" not in said


def is_caught(process: int, number: signal.Signals) -> bool:
    """Whether the process has a handler of its own for SIGUSR1 and so for `number`, which Python itself may catch from the start."""
    masks = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines() if ":" in line)
    caught = int(masks["SigCgt"], 16)
    return all(caught >> (wanted - 1) & 1 for wanted in (number, signal.SIGUSR1))


def test_seconds_from_a_signal_to_a_durable_checkpoint(place: Path, figure: Callable[[str, str], None]) -> None:
    """The model of the demo, 3 million weights, on one thread: the rest of a step, and a save."""
    run, beyond = (
        place / "timed",
        ("train.max_steps=2000", "train.evaluate_every_steps=1000", "train.early_stopping=null"),
    )
    steady = ("train.threads=1", "train.precision=fp32", "train.batch_tokens=2048", "data.max_tokens=256")
    resolved = tiny_runs.configuration(place, "model.path=lab", *beyond, *steady, f"run.dir={run}")
    (place / "timed.yaml").write_text(resolved.to_yaml())
    command = [sys.executable, "-m", "tutelage", "train", str(place / "timed.yaml")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        metrics = run / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and len(metrics.read_bytes().splitlines()) >= 5):
            time.sleep(0.05)
        signalled = time.time()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=LONGEST_SECONDS)
    assert process.returncode == RESUME_EXIT_CODE, said
    saved = RunDir(run).checkpoint(RunDir(run).checkpoint_steps()[-1])
    assert verify_manifest(saved) == []
    seconds = (saved / "manifest.json").stat().st_mtime - signalled
    assert 0 < seconds < LONGEST_SECONDS
    size = sum(file.stat().st_size for file in saved.iterdir()) / 1e6
    figure(
        "seconds from SIGTERM to a durable checkpoint",
        f"{seconds:.2f} ({size:.0f} MB, steps of {step_seconds(run):.2f} s)",
    )


def step_seconds(run: Path) -> float:
    seconds = [line["seconds"] for line in jsonl.read(run / "metrics.jsonl")]
    return sum(seconds) / len(seconds)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["norm", "evaluation", "sampling", "save"])
def test_every_moment_of_every_phase(
    place: Path, straight: Any, figure: Callable[[str, str], None], phase: str
) -> None:
    often = ("train.checkpoint_every_steps=2",)
    with planted(Plant(phase, "nothing")) as calls:
        go(place, f"counted-{phase}", *often)
    different = []
    for call in range(1, len(calls) + 1):
        name = f"every-{phase}-{call}"
        with planted(Plant(phase, "SIGTERM", call=call)):
            status = go(place, name, *often)
        if status == "stopped":
            assert go(place, name, *often, resume=True) == "finished"
        if outcome(place / name) != straight:
            different.append(call)
    assert different == []
    figure(f"signals in {phase}, every one: tried, identical", f"{len(calls)}, {len(calls)}")


@pytest.mark.slow
def test_a_signal_to_torchrun_stops_its_processes_and_the_same_command_goes_on(place: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tutelage"]
    command += words(place, "launched", "train.max_steps=200")
    run = RunDir(place / "launched")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (run.metrics.exists() and len(run.metrics.read_bytes().splitlines()) >= 5):
            time.sleep(0.05)
        signalled = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=LONGEST_SECONDS)
    assert time.monotonic() - signalled < LONGEST_SECONDS
    assert run.status["status"] == "stopped", said[-2000:]
    assert verify_manifest(run.checkpoint(run.status["result"]["step"])) == []
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0 and run.status["status"] == "finished", ended.stderr[-2000:]
