"""Nothing is read or written outside of a run directory, whatever links and names are put into it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from measured import MEGABYTES, SECONDS, Case, refusals

from tutelage.config.load import load_config
from tutelage.errors import ConfigError, RunDirError, UnsafeError
from tutelage.files import rundir
from tutelage.files.jsonl import Appender
from tutelage.files.manifest import write_manifest
from tutelage.files.rundir import RunDir

# Every file and folder that a run may write, as a link to one outside.
FILES = (
    *("run.lock", "config.yaml", "origins.json", "environment.json", "ledger.json", "quarantine.jsonl"),
    *("metrics.jsonl", "incidents.jsonl", "evals.jsonl", "samples.jsonl", "plan.json", "receipt.json", "masks.json"),
    *("report.html", "scores.json", "evaluation.json", "checkpoints/step-000004/weights.safetensors"),
)
FOLDERS = ("final", "checkpoints", "checkpoints/step-000004", "checkpoints/best-step-000002", "tensorboard", ".new-x")
KINDS_OF_LINKS: dict[str, Callable[[Path, Path], Path]] = {
    "absolute": lambda link, target: target,
    "relative": lambda link, target: Path(*[".."] * (len(link.parts) - 1), *target.parts[1:]),
    "through a link inside": lambda link, target: target,
}


def run_with_a_link(folder: Path, name: str, target: Path, *, kind: str = "absolute") -> Path:
    """Make a run directory in which `name` is a link to `target`."""
    run = folder / "run"
    (run / name).parent.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"status": "stopped", "started": "", "ended": None, "result": None}))
    if kind == "through a link inside":
        (run / "step-stone").symlink_to(target)
        target = run / "step-stone"
    (run / name).symlink_to(KINDS_OF_LINKS[kind](run / name, target))
    return run


def outside(folder: Path) -> Path:
    place = folder / "outside"
    (place / "folder").mkdir(parents=True)
    (place / "file").write_text("mine\n")
    (place / "folder" / "step-000001").mkdir()
    (place / "folder" / ".new-stale").write_text("mine too\n")
    return place


def contents(place: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(place)): path.read_bytes() if path.is_file() else None for path in place.rglob("*")}


@pytest.fixture(scope="module")
def escapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Run directories with links out of them: (run, what lies outside), by what each has."""
    made = {}
    for name in (*FILES, *FOLDERS):
        for kind in KINDS_OF_LINKS:
            place = tmp_path_factory.mktemp("escape")
            target = outside(place) / ("folder" if name in FOLDERS else "file")
            made[f"{name}, {kind}"] = (run_with_a_link(place, name, target, kind=kind), target.parent)
    return made


def test_links_out_of_a_run_are_refused_and_what_they_lead_to_stays(
    escapes: dict[str, tuple[Path, Path]], figure: Callable[[str, str], None]
) -> None:
    before = {name: contents(out) for name, (_, out) in escapes.items()}
    outcomes = refusals([Case(name, "run", str(run)) for name, (run, _) in escapes.items()])
    for name, outcome in outcomes.items():
        assert outcome.kind == "UnsafeError", (name, outcome)
        assert "leads out of the run" in outcome.problem and outcome.mend
        assert outcome.seconds < SECONDS and outcome.megabytes < MEGABYTES
    assert {name: contents(out) for name, (_, out) in escapes.items()} == before
    figure("links out of a run directory: tried, followed", f"{len(escapes)}, 0")


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints"])
def test_reading_a_run_refuses_them_too(tmp_path: Path, name: str) -> None:
    target = outside(tmp_path) / ("folder" if name == "checkpoints" else "file")
    with pytest.raises(UnsafeError, match=name):
        RunDir.open(run_with_a_link(tmp_path, name, target))


def test_a_new_run_does_not_take_its_lock_elsewhere(tmp_path: Path) -> None:
    place = outside(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.lock").symlink_to(place / "file")
    before = contents(place)
    with pytest.raises(UnsafeError, match=r"run\.lock"):
        RunDir.create(run)
    assert contents(place) == before


def test_links_within_a_run_and_to_a_run_are_fine(tmp_path: Path) -> None:
    run = tmp_path / "disk" / "run"
    RunDir.create(run).close()
    (run / "newest").symlink_to(run / "run.json")
    (tmp_path / "link").symlink_to(run)
    with RunDir.open(tmp_path / "link", lock=True) as opened:
        opened.mark("stopped")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "..\\x", "a/b"])
def test_a_name_of_a_run_is_no_path(name: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.name.*is a path"):
        load_config(None, [f"run.name={json.dumps(name)}"])


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x"])
def test_a_manifest_reaches_no_further_than_its_folder(tmp_path: Path, name: str) -> None:
    from tutelage.files.manifest import verify_manifest

    folder = tmp_path / "step-000001"
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(b"x")
    write_manifest(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"size": 1, "sha256": "0" * 64}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert any("not an entry that a manifest may have" in problem for problem in verify_manifest(folder))


def test_a_build_that_follows_links_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: without the look at links, files outside are written to, and staging folders there removed."""
    monkeypatch.setattr(rundir, "_refuse_links", lambda path: None)
    place = outside(tmp_path)
    before = contents(place)
    run = run_with_a_link(tmp_path, "metrics.jsonl", place / "file")
    (run / "checkpoints").symlink_to(place / "folder")
    with RunDir.open(run, lock=True) as opened, Appender(opened.metrics) as lines:
        lines.append({"step": 1})
    after = contents(place)
    assert after["file"] != before["file"]
    assert "folder/.new-stale" not in after


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    place = outside(tmp_path)
    before = contents(place)
    with pytest.raises(RunDirError):
        RunDir.create(place)
    with pytest.raises(RunDirError):
        RunDir.open(place, lock=True)
    assert contents(place) == before
