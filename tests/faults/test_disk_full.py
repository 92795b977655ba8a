"""A disk that fills up: the run goes on without the checkpoint, or stops with exit code 74; what was saved before stays as it is."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from faulty import Plant, Ranks
from tiny import tiny_folder
from tiny_runs import Teller, configuration, go, outcome, write_texts
from tutelage.cli.edge import guard
from tutelage.errors import DiskFullError
from tutelage.files import jsonl, room
from tutelage.files.atomic import STAGING_PREFIX
from tutelage.files.manifest import verify_manifest
from tutelage.files.rundir import RunDir
from tutelage.train import checkpoint

NUM_STEPS, FULL_AT = 4, 2
SETTINGS = (
    f"train.max_steps={NUM_STEPS}",
    f"train.checkpoint_every_steps={FULL_AT}",
    "data.cache=off",
)
FULL = (errno.ENOSPC, errno.EDQUOT)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    tiny_folder(folder / "model", "llama_tied")
    write_texts(folder)
    return folder


@pytest.fixture(scope="module")
def straight(place: Path) -> Any:
    assert go(place, "straight", *SETTINGS) == "finished"
    return outcome(place / "straight")


class Disk:
    """A disk with room for `left` bytes more, once writes go to a file whose path holds `where`; then `number` is raised."""

    def __init__(self, patch: pytest.MonkeyPatch, where: str, left: int, number: int = errno.ENOSPC) -> None:
        self.where, self.left, self.number = where, left, number
        self.refused = 0
        self._really = os.write
        patch.setattr(os, "write", self._write)

    def _write(self, descriptor: int, data: bytes | memoryview) -> int:
        if self.where in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            if self.left <= 0:
                self.refused += 1
                raise OSError(self.number, os.strerror(self.number))
            data = memoryview(data)[: self.left]  # a disk takes what it can
            self.left -= len(data)
        return self._really(descriptor, data)


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def damage(folder: Path) -> list[str]:
    """Return what a full disk left behind in a run that no run may leave behind."""
    run = RunDir(folder)
    found = [str(path) for path in folder.rglob(f"{STAGING_PREFIX}*")]
    return found + [problem for step in run.checkpoint_steps() for problem in verify_manifest(run.checkpoint(step))]


@pytest.mark.parametrize("percent", range(0, 100, 5))
def test_a_save_that_the_disk_refuses_costs_that_checkpoint_and_nothing_else(
    place: Path, straight: Any, monkeypatch: pytest.MonkeyPatch, percent: int, figure: Callable[[str, str], None]
) -> None:
    folder, told = place / f"percent-{percent}", Teller()
    size = size_of(RunDir(place / "straight").checkpoint(FULL_AT))
    with monkeypatch.context() as patch:
        disk = Disk(patch, f"/.new-step-{FULL_AT:06d}-", size * percent // 100, FULL[percent % 2])
        assert go(place, folder.name, *SETTINGS, narrator=told) == "finished"
    assert disk.refused
    assert outcome(folder) == straight
    assert any("could not be saved" in line and "step 0 is untouched" in line for line in told.lines)
    assert [line["not_saved"] for line in jsonl.read(RunDir(folder).incidents)] == [FULL_AT]
    assert RunDir(folder).checkpoint_steps() == [0, NUM_STEPS]
    assert damage(folder) == []
    figure(f"disk full at {percent:2} % of a save", "old checkpoint whole, nothing half-written, run ends the same")


def test_a_save_that_writes_where_the_checkpoint_is_to_be_is_found_out(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def in_place(path: Path) -> Iterator[Path]:
        path.mkdir(parents=True)
        yield path

    monkeypatch.setattr(checkpoint, "new_folder", in_place)
    Disk(monkeypatch, f"/step-{FULL_AT:06d}/", 1000)
    go(place, "in-place", *SETTINGS)
    assert damage(place / "in-place")


@pytest.mark.parametrize(
    ("where", "left", "steps"),
    [
        pytest.param("checkpoints/.new-step-", 0.5, NUM_STEPS, id="two checkpoints in a row"),
        pytest.param("-step-000000-", 0, 0, id="the checkpoint before the first step"),
        pytest.param("-best-step-", 10, FULL_AT, id="the best weights"),
        pytest.param("metrics.jsonl", 1000, None, id="a line of the metrics"),
    ],
)
@pytest.mark.parametrize("in_background", ["false", "true"])
def test_a_disk_that_stays_full_stops_the_run_with_74_and_the_same_command_goes_on(
    place: Path,
    straight: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    where: str,
    left: float,
    steps: int | None,
    in_background: str,
) -> None:
    settings = (*SETTINGS, f"train.save_in_background={in_background}")
    folder = place / tmp_path.name
    with pytest.MonkeyPatch.context() as patch:
        if left < 1:  # of a checkpoint with moments, of which the first one, without any, takes a third
            left *= size_of(RunDir(place / "straight").checkpoint(FULL_AT))
        disk = Disk(patch, where, int(left))
        assert guard(lambda: go(place, folder.name, *settings)) == 74
    assert disk.refused
    assert "make room on" in capsys.readouterr().err
    assert RunDir(folder).status["status"] == "failed"
    assert damage(folder) == []
    taken = len(jsonl.read(RunDir(folder).metrics)) if RunDir(folder).metrics.exists() else 0
    assert steps is None or taken == steps
    assert go(place, folder.name, *settings, resume=True) == "finished"
    assert outcome(folder) == straight


def test_room_is_looked_at_before_anything_is_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = room.MARGIN_BYTES + 1000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(DiskFullError, match="to be written and"):
        go(place, "small", *SETTINGS)
    assert not RunDir(place / "small").metrics.exists()
    assert damage(place / "small") == []


def test_a_place_that_must_not_be_written_shows_before_the_first_step(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Disk(monkeypatch, "-step-000000-", 0, errno.EACCES)
    with pytest.raises(PermissionError):
        go(place, "forbidden", *SETTINGS)
    assert not RunDir(place / "forbidden").metrics.exists()


ON_FULL_DISKS = """
import subprocess, sys
from pathlib import Path
from small_learner import learner, save, take_step
from tutelage.files.room import is_full
from tutelage.files.rundir import RunDir
from tutelage.train import checkpoint

checkpoint.require_room = lambda folder, size: None  # so that the file system itself has to say it
trained = learner()
take_step(trained, 1)
save(RunDir(sys.argv[1] + "/measured"), trained, 1)
size = sum(-(-file.stat().st_size // 4096) * 4096 for file in Path(sys.argv[1], "measured").rglob("*") if file.is_file())
for percent in range(0, 100, 5):
    folder = Path(sys.argv[1], str(percent))
    folder.mkdir()
    room = size + size * percent // 100
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(folder)], check=True)
    run = RunDir(folder)
    save(run, trained, 1)
    try:
        save(run, trained, 2)
    except OSError as error:
        assert is_full(error), error
    else:
        raise AssertionError(f"{room} bytes held two checkpoints of {size}")
    found, damaged = checkpoint.newest_whole_checkpoint(run)
    assert found == run.checkpoint(1) and not damaged
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000001"], percent
    print(percent)
"""


def test_file_systems_that_are_really_full_leave_the_old_checkpoint_alone(
    tmp_path: Path, figure: Callable[[str, str], None]
) -> None:
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets no user mount a file system of their own")
    ended = subprocess.run(
        [*alone, sys.executable, "-c", ON_FULL_DISKS, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == [str(percent) for percent in range(0, 100, 5)]
    figure("file systems (tmpfs) full in the middle of a save", "20 of 20, at every 5 %: the old checkpoint whole")


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks() as started:
        yield started


def words(place: Path, name: str, *changes: str) -> list[str]:
    resolved = configuration(place, *SETTINGS, "train.threads=1", f"run.dir={place / name}", *changes)
    (place / f"{name}.yaml").write_text(resolved.to_yaml())
    return ["train", str(place / f"{name}.yaml")]


# A rank writes weights and moments of step 0 first: its third file is of the checkpoint of step 2.
ALONE = ("train.parallel=replicate", "train.save_in_background=true"), 0
IN_PARTS = ("train.parallel=shard", "train.save_in_background=true"), 1


@pytest.mark.parametrize(
    ("changes", "rank"), [ALONE, IN_PARTS], ids=["replicas, in the background", "a model in parts"]
)
def test_all_ranks_go_on_when_the_disk_of_one_is_full_for_a_save_and_stop_together_when_it_stays_so(
    place: Path, ranks: Ranks, tmp_path: Path, changes: tuple[str, ...], rank: int
) -> None:
    once, always = f"{tmp_path.name}-once", f"{tmp_path.name}-always"
    ended = ranks.run(words(place, once, *changes), Plant("save", "full disk", call=3, rank=rank))
    assert ended.codes == [0, 0], ended.said
    assert [line["not_saved"] for line in jsonl.read(RunDir(place / once).incidents)] == [FULL_AT]
    assert RunDir(place / once).checkpoint_steps() == [0, NUM_STEPS]
    assert damage(place / once) == []
    again = tuple(range(4, 30))
    ended = ranks.run(words(place, always, *changes), Plant("save", "full disk", call=3, also=again, rank=rank))
    assert ended.codes == [74, 74], ended.said
    assert damage(place / always) == []


def test_no_rank_waits_for_one_that_cannot_save(place: Path, ranks: Ranks) -> None:
    changes, rank = IN_PARTS
    ended = ranks.run(words(place, "no-right", *changes), Plant("save", "no right to write", call=3, rank=rank))
    assert 0 not in ended.codes and -9 not in ended.codes, ended.said
    assert damage(place / "no-right") == []
