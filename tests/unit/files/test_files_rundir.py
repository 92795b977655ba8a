"""One process at a time owns a run's folder, and nothing in it is ever overwritten."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tutelage.errors import RunDirError
from tutelage.files.rundir import RunDir


def test_a_new_run_is_running_until_it_is_marked(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "deep" / "run") as run:
        assert run.status["status"] == "running"
        assert run.status["ended"] is None
        run.mark("finished", result={"loss": 1.5})
    status = RunDir.open(tmp_path / "deep" / "run").status
    assert (status["status"], status["result"]) == ("finished", {"loss": 1.5})
    assert status["started"] <= status["ended"]


def test_a_folder_with_anything_in_it_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(RunDirError, match=r"it holds mine\.txt"):
        RunDir.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_finished_run_is_not_overwritten(tmp_path: Path) -> None:
    RunDir.create(tmp_path / "run").close()
    with pytest.raises(RunDirError, match=r"it holds run\.json"):
        RunDir.create(tmp_path / "run")


def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run"):
        for attempt in ("RunDir.create(path)", "RunDir.open(path, lock=True)"):
            code = f"import sys; from tutelage.files.rundir import RunDir; path = sys.argv[1]; {attempt}"
            result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True)
            assert f"in use by process {os.getpid()} on" in result.stderr
        RunDir.open(tmp_path / "run")  # looking is always allowed
    RunDir.open(tmp_path / "run", lock=True).close()


KILLED_WITH_A_WORKER = """
import os, signal, sys
from tutelage.files.rundir import RunDir
run = RunDir.create(sys.argv[1])
ready, worker_ready = os.pipe()
if os.fork() == 0:
    os.write(worker_ready, b"x")
    sys.stdin.read()  # lives until the test closes its standard input
    os._exit(0)
os.read(ready, 1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_that_outlives_a_killed_run_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = str(tmp_path / "run")
    with subprocess.Popen([sys.executable, "-c", KILLED_WITH_A_WORKER, path], stdin=subprocess.PIPE) as process:
        process.wait()
        RunDir.open(path, lock=True).close()


def test_a_closed_run_is_free_even_if_a_worker_was_just_forked(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run")
    held = os.dup(run._lock or -1)  # what a fork holds until its first instruction
    run.close()
    RunDir.open(tmp_path / "run", lock=True).close()
    os.close(held)


def test_a_folder_without_a_run_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="not a run directory"):
        RunDir.open(tmp_path)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunDirError, match="cannot be made"):
        RunDir.create(tmp_path / "file")


def test_checkpoints_are_listed_by_step(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run") as run:
        assert run.checkpoint_steps() == []
        for step in (200, 3):
            run.checkpoint(step).mkdir(parents=True)
        (run.checkpoints / ".new-step-000300-1-ab").mkdir()
        assert run.checkpoint_steps() == [3, 200]
        assert run.checkpoint(3).name == "step-000003"


def test_the_names_inside_a_run_are_these(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    names = [name for name, value in vars(RunDir).items() if isinstance(value, property) and name != "status"]
    paths = [getattr(run, name) for name in names]
    assert sorted(path.name for path in paths) == [
        "checkpoints",
        "config.yaml",
        "environment.json",
        "evals.jsonl",
        "evaluation.json",
        "final",
        "incidents.jsonl",
        "ledger.json",
        "masks.json",
        "metrics.jsonl",
        "origins.json",
        "out_of_memory.json",
        "plan.json",
        "quarantine.jsonl",
        "receipt.json",
        "report.html",
        "run.json",
        "samples.jsonl",
    ]
