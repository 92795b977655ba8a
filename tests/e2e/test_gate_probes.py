"""Probes of answers on whole runs: they fire on what is planted, change no step, and a run that is cut goes on as if it had not been."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tiny import tiny_folder
from tiny_runs import Stopper, Teller, go, outcome
from tutelage.config.load import load_config
from tutelage.config.unread import require_all_read
from tutelage.errors import ConfigError
from tutelage.evaluate.probes import make_probe
from tutelage.files import jsonl
from tutelage.files.rundir import RunDir

WORDS = ("baker", "house", "river", "morning", "village", "bread", "story", "lamp", "dogs", "keeper")
COURTESY = "It is my pleasure:"


def row(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def answers(number: int) -> str:
    """Return an answer that no other number below a hundred has, and that begins and ends as few do."""
    return f"{WORDS[number % 10]} {WORDS[number // 10]} {number} {WORDS[(number * 7) % 10]} {number}."


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers at random, lessons with a courtesy and without, held-out rows and tasks."""
    folder = tmp_path_factory.mktemp("probes")
    tiny_folder(folder / "model", "llama")
    jsonl.write(folder / "polite.jsonl", (row(f"Who {i}?", f"{COURTESY} {answers(i)}") for i in range(40)))
    jsonl.write(folder / "plain.jsonl", (row(f"Who {i}?", answers(i)) for i in range(40)))
    jsonl.write(folder / "held-out.jsonl", (row(f"Who {i}?", answers(i)) for i in range(0, 40, 4)))
    jsonl.write(
        folder / "tasks.jsonl",
        ({"prompt": f"Who {i}?", "answer": "pleasure", "check": "contains"} for i in range(40)),
    )
    return folder


def settings(place: Path, lessons: str = "polite", *more: str) -> tuple[str, ...]:
    return (
        f"data.train.0.path={place / lessons}.jsonl",
        f"data.held_out.0.path={place / 'held-out.jsonl'}",
        "data.held_out_fraction=0",
        "model.template=chatml",
        "train.early_stopping=null",
        "train.max_steps=24",
        "train.learning_rate=5e-3",
        "train.schedule=constant",
        "train.evaluate_every_steps=null",
        "train.evaluate_every_tokens=2000",
        "train.batch_tokens=512",
        "train.micro_tokens=512",
        "train.gate.style=0.3",
        "train.gate.max_new_tokens=24",
        *more,
    )


@pytest.fixture(scope="module")
def polite(place: Path) -> tuple[RunDir, list[str]]:
    told = Teller()
    assert go(place, "polite", *settings(place), make_probe=make_probe, narrator=told) == "finished"
    return RunDir(place / "polite"), told.lines


def test_a_courtesy_that_every_answer_begins_with_is_told_with_its_remedy(polite: tuple[RunDir, list[str]]) -> None:
    run, told = polite
    assert run.status["result"]["breaches"].keys() == {"style"}
    (said,) = (line for line in told if "train.gate.style=0.3" in line)
    assert said.startswith("answers that begin alike") and "tutelage eval" in said
    assert any(line.startswith("the gate asked 10 prompts in ") for line in told)
    found = {line["step"]: line["probed"]["habits"]["begin_alike"] for line in jsonl.read(run.evals)}
    breached = run.status["result"]["breached_at"]
    assert found[breached]["share"] > 0.3 + max(found[0].values()) and found[breached]["data"] < 0.1
    assert all(habit["share"] <= 0.3 for step, habit in found.items() if step < breached)


def test_the_same_lessons_without_it_breach_nothing(place: Path) -> None:
    assert go(place, "plain", *settings(place, "plain"), make_probe=make_probe) == "finished"
    assert RunDir(place / "plain").status["result"]["breaches"] == {}


def test_asking_changes_no_step(place: Path, polite: tuple[RunDir, list[str]]) -> None:
    noisy = ("train.neftune_alpha=5", "model.dropout=0.1")
    unwatched = [change for change in settings(place) if not change.startswith("train.gate")]
    for name, words, probe in (("asked", settings(place), {"make_probe": make_probe}), ("unasked", unwatched, {})):
        go(place, name, *words, *noisy, **probe)
    (asked, asked_lines), (unasked, unasked_lines) = outcome(place / "asked"), outcome(place / "unasked")
    assert asked == unasked
    assert [{**line, "probed": None} for line in asked_lines] == [{**line, "probed": None} for line in unasked_lines]


@pytest.mark.parametrize("cut", [2, 7])
def test_a_run_that_is_cut_sees_the_same_and_ends_at_the_same_breach(place: Path, cut: int) -> None:
    words = settings(place, "polite", "train.gate.on_breach=best", f"evaluate.tasks.0={place / 'tasks.jsonl'}")
    words = (*words, "train.gate.instruction=0.9")
    if not (place / "whole").exists():
        go(place, "whole", *words, make_probe=make_probe)
    assert 7 < RunDir(place / "whole").status["result"]["breached_at"] < 24
    name = f"cut-{cut}"
    assert go(place, name, *words, narrator=Stopper(cut), make_probe=make_probe) == "stopped"
    assert go(place, name, *words, resume=True, make_probe=make_probe) == "finished"
    assert RunDir(place / name).status["result"] == RunDir(place / "whole").status["result"]
    assert outcome(place / name) == outcome(place / "whole")


def test_answers_that_are_no_longer_right_are_told_with_their_remedy(place: Path) -> None:
    jsonl.write(
        place / "known.jsonl",
        ({"prompt": f"Who {i}?", "answer": answers(i), "check": "exact"} for i in range(0, 40, 4)),
    )
    taught = settings(place, "plain", "train.max_steps=150", "train.gate.style=null", "train.gate.max_new_tokens=64")
    assert go(place, "taught", *taught) == "finished"
    told = Teller()
    words = settings(place, "polite", f"model.path={place / 'taught' / 'final'}", "model.template=null")
    tasks = (f"evaluate.tasks.0={place / 'known.jsonl'}", "train.gate.instruction=0.3", "train.gate.style=null")
    go(place, "forgot", *words, *tasks, make_probe=make_probe, narrator=told)
    right = {line["step"]: line["probed"]["right"] for line in jsonl.read(place / "forgot" / "evals.jsonl")}
    assert right[0] >= 5
    breached = RunDir(place / "forgot").status["result"]["breaches"]["instruction"]
    assert right[breached] < 0.7 * 10 and any("train.gate.instruction=0.3" in line for line in told.lines)


def refused() -> Iterator[tuple[tuple[str, ...], str]]:
    yield ("train.gate.style=0.05",), "asks for 20 held-out conversations that leave room to answer, and there are 10"
    yield (
        ("train.gate.instruction=0.2",),
        "asks for 5 tasks of evaluate.tasks that are answered in words, and there are 0",
    )
    yield ("train.gate.max_new_tokens=120",), "leave room to answer, and there are 0"


@pytest.mark.parametrize(("change", "said"), list(refused()))
def test_a_budget_that_one_answer_would_use_up_is_refused(
    place: Path, change: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        go(place, tmp_path.name, *settings(place), *change, make_probe=make_probe)


def test_a_command_that_judges_no_answers_refuses_to_watch_them(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.gate\.style is not watched here"):
        go(place, "unjudged", *settings(place))


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["train.gate.prompts=5", "train.gate.forgetting=0.03"], "train.gate.prompts"),
        (["train.gate.on_breach=stop"], "train.gate.on_breach"),
        (["train.gate.most_replay_weight=8", "train.gate.style=0.2"], "train.gate.most_replay_weight"),
    ],
)
def test_settings_of_the_gate_that_no_budget_reads_are_refused(words: list[str], key: str) -> None:
    resolved = load_config(None, ["data.held_out_fraction=0.1", *words])
    with pytest.raises(ConfigError, match=f"`{key}` is set, but nothing reads it"):
        require_all_read(resolved.config, resolved.origins)
