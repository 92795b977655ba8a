"""One bit of one file of a checkpoint is another one: it is noticed, and an older checkpoint is gone on from, to the same end."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiny import tiny_folder
from tiny_runs import Teller, go, outcome, write_texts
from tutelage.files import jsonl, manifest
from tutelage.files.rundir import RunDir
from tutelage.train.checkpoint import newest_whole_checkpoint

OLD, NEW, NUM_STEPS = 2, 4, 5
HEADER_BITS = 8 * 512
SETTINGS = (f"train.max_steps={NUM_STEPS}", "train.checkpoint_every_steps=2", "train.keep_checkpoints=2")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where a whole run lies, `straight`, with the checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("flips")
    tiny_folder(folder / "model", "llama_tied")
    write_texts(folder)
    assert go(folder, "straight", *SETTINGS) == "finished"
    assert RunDir(folder / "straight").checkpoint_steps() == [OLD, NEW]
    return folder


@pytest.fixture
def run(place: Path, tmp_path: Path) -> RunDir:
    shutil.copytree(place / "straight", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "final")
    return RunDir(tmp_path / "run")


def flip(file: Path, bit: int) -> None:
    with file.open("r+b") as content:
        content.seek(bit // 8)
        byte = content.read(1)[0]
        content.seek(bit // 8)
        content.write(bytes([byte ^ 1 << bit % 8]))


def flips(folder: Path, count: int) -> list[tuple[Path, int]]:
    """Draw files in turn and bits at random, every second time among the first, where the headers are."""
    draw = random.Random(0)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    assert len(files) == 4
    drawn = []
    for number in range(count):
        turn, which = divmod(number, len(files))
        size = 8 * files[which].stat().st_size
        drawn.append((files[which], draw.randrange(min(size, HEADER_BITS) if turn % 2 else size)))
    return drawn


def unnoticed(run: RunDir, count: int) -> list[str]:
    """Flip one bit after another, each in a whole checkpoint, and return those after which that checkpoint was taken, or no older one."""
    folder, found = run.checkpoint(NEW), []
    for file, bit in flips(folder, count):
        flip(file, bit)
        taken, damaged = newest_whole_checkpoint(run)
        if taken != run.checkpoint(OLD) or [one.step for one in damaged] != [NEW]:
            found.append(f"{file.name}, bit {bit}")
        else:
            (run.checkpoints / damaged[0].place).rename(folder)
        flip(file, bit)
    assert newest_whole_checkpoint(run)[0] == folder  # as it was
    return found


@pytest.mark.parametrize("count", [120, pytest.param(2000, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_noticed(run: RunDir, count: int, figure: Callable[[str, str], None]) -> None:
    missed = unnoticed(run, count)
    assert missed == []
    figure("bit flips in a checkpoint", f"{count} of {count} noticed, all fell back to the older checkpoint")


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_a_run_whose_newest_checkpoint_has_a_flipped_bit_says_so_and_ends_the_same(
    place: Path, run: RunDir, tmp_path: Path, number: int
) -> None:
    file, bit = flips(run.checkpoint(NEW), 4)[number]
    flip(file, bit)
    told, settings = Teller(), (f"data.train.0.path={place / 'text.jsonl'}", f"model.path={place / 'model'}", *SETTINGS)
    assert go(tmp_path, "run", *settings, narrator=told, resume=True) == "finished"
    assert outcome(run.path) == outcome(place / "straight")
    assert (run.checkpoints / f"bad-step-{NEW:06d}").is_dir()
    assert any("is damaged and was set aside" in line and file.name in line for line in told.lines)
    assert [line["set_aside"] for line in jsonl.read(run.incidents)] == [f"bad-step-{NEW:06d}"]


def test_a_program_that_hashes_nothing_is_found_out(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_difference", lambda *what: None)
    monkeypatch.setattr(manifest, "_is_sealed", lambda *what: True)
    assert unnoticed(run, 8)


def test_best_weights_with_a_flipped_bit_are_not_the_result(place: Path, tmp_path: Path) -> None:
    settings = (*SETTINGS, "train.early_stopping.patience=9", "train.early_stopping.min_improvement=9")
    told = Teller()

    def damage(metrics: dict[str, Any]) -> None:
        if metrics["step"] == NUM_STEPS:
            (best,) = RunDir(place / tmp_path.name).checkpoints.glob("best-step-*")
            flip(best / "weights.safetensors", 80_000)

    told.step = damage  # type: ignore[method-assign, assignment]
    assert go(place, tmp_path.name, *settings, narrator=told) == "finished"
    assert any("the result is the last ones instead" in line for line in told.lines)
    assert outcome(place / tmp_path.name)[0] == outcome(place / "straight")[0]
