"""Hostile model folders run nothing and are refused in little time and memory, with the file and the remedy named."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import measured
import pytest
import torch
from hostile_files import FOLDERS, HEADER_LIES, INPUTS, PICKLES, Hostile
from measured import Case, Outcome, refusals

from tiny import tiny_folder
from tutelage.errors import TutelageError
from tutelage.model.weight_files import read_header

OWN_ERRORS = {kind.__name__ for kind in TutelageError.__subclasses__()}


def shortcomings(outcome: Outcome, hostile: Hostile) -> list[str]:
    """Return what is wrong with how a hostile folder was met; nothing is, if it was refused well."""
    if not hostile.kinds:
        return [] if outcome.kind in ("", *OWN_ERRORS) else [f"{outcome.kind}: {outcome.problem[:200]}"]
    wrong = []
    if outcome.kind not in hostile.kinds:
        wrong.append(f"ended with {outcome.kind or 'no refusal'}: {outcome.problem[:200]}")
    if hostile.names.lower() not in outcome.problem.lower():
        wrong.append(f"does not name {hostile.names}: {outcome.problem[:200]}")
    if not outcome.mend:
        wrong.append("names no remedy")
    if outcome.seconds > measured.SECONDS:
        wrong.append(f"took {outcome.seconds:.1f} s")
    if outcome.megabytes > measured.MEGABYTES:
        wrong.append(f"took {outcome.megabytes:.0f} MB")
    return wrong


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="module")
def met(good: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Outcome], list[str]]:
    """What came of every hostile folder, and those whose code has run."""
    place = tmp_path_factory.mktemp("hostile")
    cases, canaries = [], {}
    for number, (name, hostile) in enumerate(FOLDERS.items()):
        folder = Path(shutil.copytree(good, place / str(number) / "model"))
        canaries[name] = place / str(number) / "code-has-run"
        hostile.make(folder, canaries[name])
        cases.append(Case(name, hostile.verb, str(folder)))
    outcomes = refusals(cases)
    return outcomes, [name for name, canary in canaries.items() if canary.exists()]


def test_hostile_folders_are_refused_and_run_nothing(
    met: tuple[dict[str, Outcome], list[str]], figure: Callable[[str, str], None]
) -> None:
    outcomes, executed = met
    assert executed == []
    wrong = {name: shortcomings(outcomes[name], hostile) for name, hostile in FOLDERS.items()}
    assert {name: what for name, what in wrong.items() if what} == {}
    slowest, largest = max(o.seconds for o in outcomes.values()), max(o.megabytes for o in outcomes.values())
    figure(
        "hostile model folders: tried, executed",
        f"{len(outcomes)}, {len(executed)} ({len(HEADER_LIES)} of them lying headers); slowest refusal {slowest:.1f} s, largest {largest:.0f} MB",
    )


def test_hostile_configurations_and_data_are_refused_and_run_nothing(
    tmp_path: Path, figure: Callable[[str, str], None]
) -> None:
    cases = []
    for number, (name, (verb, file, make)) in enumerate(INPUTS.items()):
        place = tmp_path / str(number) / file
        place.parent.mkdir()
        place.write_bytes(make(tmp_path / "code-has-run"))
        cases.append(Case(name, verb, str(place)))
    outcomes = refusals(cases)
    assert not (tmp_path / "code-has-run").exists()
    wrong = {
        name: shortcomings(
            outcomes[name], Hostile(lambda folder, canary: None, file, kinds=("ConfigError", "DataError"))
        )
        for name, (_, file, _) in INPUTS.items()
    }
    assert {name: what for name, what in wrong.items() if what} == {}
    figure("hostile configurations and data files: tried, executed", f"{len(INPUTS)}, 0")


def test_there_are_as_many_lies_as_promised() -> None:
    assert len(HEADER_LIES) >= 25


@pytest.mark.parametrize("what", PICKLES)
def test_the_pickles_are_loaded_indeed_where_somebody_unpickles_them(tmp_path: Path, what: str) -> None:
    """The negative control of the canary: what is refused above does run code where a loader is careless."""
    file = tmp_path / "model.bin"
    file.write_bytes(PICKLES[what](tmp_path / "canary"))
    if what.startswith("a zip"):
        torch.load(file, weights_only=False)
    else:
        pickle.loads(file.read_bytes())  # noqa: S301
    assert (tmp_path / "canary").exists()


def test_a_build_that_reads_no_header_is_found_out(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the headers: without our reading of them, some lies are believed or told of badly."""
    from tutelage.config.schema import ModelConfig
    from tutelage.model.load import load_model

    real = read_header(good / "model.safetensors")
    monkeypatch.setattr("tutelage.model.locate.read_header", lambda path: real)
    monkeypatch.setattr("tutelage.model.load.read_header", lambda path: real)
    wrong = 0
    for number, data in enumerate(HEADER_LIES.values()):
        folder = Path(shutil.copytree(good, tmp_path / str(number)))
        (folder / "model.safetensors").write_bytes(data)
        try:
            load_model(ModelConfig(path=str(folder)))
            outcome = Outcome("", "", "", "", 0.0, 0.0)
        except Exception as error:  # noqa: BLE001 - whatever comes is the outcome
            words = (type(error).__name__, getattr(error, "problem", str(error)), getattr(error, "mend", ""))
            outcome = Outcome("", *words, 0.0, 0.0)
        wrong += bool(shortcomings(outcome, Hostile(lambda folder, canary: None, "model.safetensors")))
    assert wrong > 0
