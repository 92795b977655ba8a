"""Machines that are not as one would have them: a run works there, or says what is wrong with an exit code of its own."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

import tiny_runs
from faulty import Ended, Plant, Ranks
from tiny import tiny_folder
from tiny_runs import outcome, write_texts
from tutelage.cli.edge import guard
from tutelage.cli.main import app
from tutelage.files.encode import encode_json
from tutelage.files.rundir import RunDir
from tutelage.lab.demo import demo_config

SETTINGS = (
    *("train.max_steps=2", "train.checkpoint_every_steps=1", "train.threads=1", "train.precision=fp32"),
    "data.train.0.name=größer 日本語",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a machine")
    tiny_folder(folder / "model", "llama")
    write_texts(folder)
    return folder


def words(place: Path, run: Path, *changes: str) -> list[str]:
    resolved = tiny_runs.configuration(place, *SETTINGS, f"run.dir={encode_json(run)}", *changes)
    file = place / f"{run.name}.yaml"
    file.write_text(resolved.to_yaml(), encoding="utf-8")
    return ["train", str(file)]


@pytest.fixture(scope="module")
def straight(place: Path, ranks: Ranks) -> dict[str, bytes]:
    assert ranks.run(words(place, place / "straight"), count=1).codes == [0]
    return outcome(place / "straight")[0]


def run_in(ranks: Ranks, place: Path, name: str, environment: Mapping[str, str | None], *changes: str) -> Ended:
    return ranks.run(words(place, place / name, *changes), count=1, environment=environment)


HOMES: dict[str, dict[str, str | None]] = {
    "no HOME": {"HOME": None, "XDG_CACHE_HOME": None},
    "a HOME that is not there": {"HOME": "/nonexistent/home", "XDG_CACHE_HOME": None},
    "a cache that cannot be written": {"XDG_CACHE_HOME": "/proc/1/nothing"},
    "a cache that is a file": {"XDG_CACHE_HOME": "/etc/hostname"},
    "no TMPDIR": {"TMPDIR": "/nonexistent/tmp"},
}


@pytest.mark.parametrize("machine", HOMES)
def test_a_run_needs_neither_home_nor_cache(
    place: Path, ranks: Ranks, straight: dict[str, bytes], tmp_path: Path, machine: str
) -> None:
    changes = (f"data.train.0.path={encode_json(unread(place, tmp_path))}",)
    environment = {"HOME": str(tmp_path), **HOMES[machine]}  # where there is no HOME, the password file may name one
    ended = run_in(ranks, place, machine.replace(" ", "-"), environment, *changes)
    assert ended.codes == [0], ended.said
    assert outcome(place / machine.replace(" ", "-"))[0] == straight


def unread(place: Path, folder: Path) -> Path:
    """Return a copy of the data that no cache knows."""
    copy = folder / "text.jsonl"
    copy.write_bytes((place / "text.jsonl").read_bytes())
    return copy


@pytest.mark.parametrize("name", ["with two  spaces", "größer-日本語-🙂", "quote'and\"double", "percent%20[x]{y}$HOME"])
def test_paths_may_hold_any_character(place: Path, ranks: Ranks, straight: dict[str, bytes], name: str) -> None:
    ended = run_in(ranks, place, name, {})
    assert ended.codes == [0], ended.said
    assert outcome(place / name)[0] == straight


def test_the_demo_finds_its_data_in_a_folder_of_any_name() -> None:
    folder = Path("größer 🙂") / 'quote"d'
    config = demo_config(folder).config
    assert config.run.dir == str(folder)
    assert config.data.train[0].path == str(folder / "data" / "lessons.jsonl")


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_are_those_that_the_umask_leaves(place: Path, ranks: Ranks, umask: int) -> None:
    run = place / f"umask-{umask:o}"
    assert ranks.run(words(place, run), count=1, umask=umask).codes == [0]
    found = {path.relative_to(run).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in (run, *run.rglob("*"))}
    expected = {name: (0o777 if (run / name).is_dir() else 0o666) & ~umask for name in found}
    assert found == expected
    assert {"final/model.safetensors", "checkpoints/step-000002/weights.safetensors", "run.lock"} < found.keys()


@pytest.mark.parametrize("locale", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_a_locale_without_unicode_changes_nothing(
    place: Path, straight: dict[str, bytes], locale: dict[str, str]
) -> None:
    """Files are UTF-8 whatever the locale says, and what a terminal cannot show does not end the run."""
    run = place / "ascii"
    command = [sys.executable, "-m", "tutelage", *words(place, run)]
    ended = subprocess.run(command, capture_output=True, env={**os.environ, **locale, "OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert outcome(run)[0] == straight
    assert "größer 日本語" in (run / "report.html").read_text(encoding="utf-8")


def test_a_clock_that_runs_backwards_changes_nothing(place: Path, ranks: Ranks, straight: dict[str, bytes]) -> None:
    run = place / "backwards"
    plant = Plant("preparation", "the clock runs backwards")
    assert ranks.run(words(place, run), plant, count=1).codes == [0]
    assert outcome(run)[0] == straight
    assert RunDir(run).status["status"] == "finished"


def test_a_file_system_without_locks_is_told_and_the_run_goes_on_its_way(
    place: Path, straight: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    run = place / "unlocked"
    assert guard(partial(app, words(place, run))) == 0
    assert "file system without locks" in capsys.readouterr().err
    assert outcome(run)[0] == straight


def test_a_run_directory_that_cannot_be_made_is_an_error_that_says_so(place: Path, ranks: Ranks) -> None:
    ended = ranks.run(words(place, Path("/proc/1/run")), count=1)
    assert ended.codes == [8]
    assert "/proc/1/run cannot be made" in ended.said[0] and "choose another run.dir" in ended.said[0]
