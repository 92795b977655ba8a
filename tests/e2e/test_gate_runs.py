"""The gate on whole runs: it fires on forgetting, is silent on learning, and a run that is cut goes on as if it had not been."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tiny import SENTENCES, tiny_folder
from tiny_runs import Stopper, Teller, go, outcome, write_texts
from tutelage.config.load import load_config
from tutelage.config.unread import require_all_read
from tutelage.errors import ConfigError
from tutelage.files import jsonl
from tutelage.files.rundir import RunDir

STEPS = 12
FORGETFUL = (
    f"train.max_steps={STEPS}",
    "train.learning_rate=1e-2",
    "train.early_stopping=null",
    "train.gate.forgetting=0.03",
    "train.schedule=constant",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a model that has learned a few sentences, and texts about bakers, on which it forgets them."""
    folder = tmp_path_factory.mktemp("gate")
    tiny_folder(folder / "untaught", "llama")
    write_texts(folder)
    (folder / "known.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES * 4))
    known = (f"model.path={folder / 'untaught'}", f"data.train.0.path={folder / 'known.jsonl'}", "train.max_steps=60")
    assert go(folder, "taught", *known, "train.learning_rate=5e-3", "data.held_out_fraction=0", "train.early_stopping=null", "train.evaluate_every_steps=null") == "finished"  # fmt: skip
    (folder / "taught" / "final").rename(folder / "model")
    return folder


def settings(place: Path, *more: str) -> tuple[str, ...]:
    return *FORGETFUL, f"data.held_out.0.path={place / 'known.jsonl'}", "data.held_out_fraction=0", *more


@pytest.fixture(scope="module")
def watched(place: Path) -> RunDir:
    assert go(place, "watched", *settings(place), narrator=Teller()) == "finished"
    return RunDir(place / "watched")


def test_a_breach_is_told_and_a_warning_changes_no_step(place: Path, watched: RunDir) -> None:
    result = watched.status["result"]
    assert result["breached_at"] is not None and result["text_loss_rise"] > 0.03
    losses = {line["step"]: line["loss"] for line in jsonl.read(watched.evals)}
    assert losses[result["breached_at"]] > 1.03 * losses[0]
    unwatched = [change for change in settings(place) if not change.startswith("train.gate")]
    go(place, "unwatched", *unwatched)
    assert outcome(place / "unwatched") == outcome(watched.path)


def test_stop_ends_the_run_at_the_breach(place: Path, watched: RunDir) -> None:
    told = Teller()
    assert go(place, "stopped", *settings(place, "train.gate.on_breach=stop"), narrator=told) == "finished"
    breached = RunDir(place / "stopped").status["result"]["breached_at"]
    assert breached == watched.status["result"]["breached_at"] < STEPS
    assert max(line["step"] for line in jsonl.read(place / "stopped" / "metrics.jsonl")) == breached
    assert any("train.gate.forgetting=0.03" in line and "train.method=lora" in line for line in told.lines)


def test_best_takes_the_weights_within_the_budget(place: Path) -> None:
    slowly = ("train.learning_rate=1e-3", "train.evaluate_every_steps=1", "train.gate.forgetting=0.3")
    assert go(place, "best", *settings(place, *slowly, "train.gate.on_breach=best")) == "finished"
    run = RunDir(place / "best")
    breached = run.status["result"]["breached_at"]
    within = {line["step"]: line["loss"] for line in jsonl.read(run.evals) if 0 < line["step"] < breached}
    chosen = min(within, key=lambda step: within[step])
    assert chosen < breached - 1  # so that the last weights are others
    final = load_file(run.final / "model.safetensors")
    best = load_file(run.checkpoints / f"best-step-{chosen:06d}" / "weights.safetensors")
    assert all(tensor.equal(final[name]) for name, tensor in best.items())


@pytest.mark.parametrize("cut", [2, 5])
def test_a_run_that_is_cut_goes_on_to_the_same_breach(place: Path, cut: int) -> None:
    stop = settings(place, "train.gate.on_breach=stop", "train.gate.forgetting=1.5", "train.learning_rate=1e-3")
    if not (place / "whole").exists():
        go(place, "whole", *stop)
    name = f"cut-{cut}"
    assert go(place, name, *stop, narrator=Stopper(cut)) == "stopped"
    assert go(place, name, *stop, resume=True) == "finished"
    assert RunDir(place / name).status["result"] == RunDir(place / "whole").status["result"]
    assert outcome(place / name) == outcome(place / "whole")


def test_a_run_that_learns_text_breaches_nothing(place: Path) -> None:
    words = (
        "train.max_steps=8",
        "train.early_stopping=null",
        "train.gate.forgetting=0.005",
        f"model.path={place / 'untaught'}",
    )
    assert go(place, "clean", *words) == "finished"
    result = RunDir(place / "clean").status["result"]
    assert result["breached_at"] is None and result["text_loss_rise"] < 0


def held(place: Path, *more: str) -> tuple[str, ...]:
    """Return a run that forgets the sentences, has some of them as replay, and holds a budget with that."""
    replay = (f"data.train.1.path={place / 'known.jsonl'}", "data.train.1.name=replay", "data.train.1.share=0.3")
    others = (f"data.train.0.path={place / 'chats.jsonl'}", "model.template=chatml", *replay, "data.train.1.kind=text")
    budget = ("train.gate.forgetting=0.05", "train.gate.most_replay_weight=8", "train.learning_rate=1e-3")
    return settings(place, *others, *budget, "train.max_steps=20", "train.batch_tokens=1024", *more)


@pytest.fixture(scope="module")
def chats(place: Path) -> Path:
    row = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada, of course."}]}
    rows = (
        {**row, "messages": [{**row["messages"][0], "content": f"Who {i}?"}, row["messages"][1]]} for i in range(40)
    )
    jsonl.write(place / "chats.jsonl", rows)
    return place / "chats.jsonl"


def test_a_controller_makes_replay_weigh_more_and_less_is_forgotten(place: Path, chats: Path) -> None:
    told = Teller()
    assert go(place, "held", *held(place), narrator=told) == "finished"
    assert go(place, "unheld", *held(place, "train.gate.most_replay_weight=1")) == "finished"
    lines = jsonl.read(place / "held" / "metrics.jsonl")
    weights = [line["replay_weight"] for line in lines]
    assert weights[0] == 1 and max(weights) > 2 and any("replay weighs" in line for line in told.lines)
    shares = [line["per_source"]["replay"][1] / line["weight_sum"] for line in lines if "replay" in line["per_source"]]
    assert max(shares) > 2 * shares[0]
    rises = {name: RunDir(place / name).status["result"]["text_loss_rise"] for name in ("held", "unheld")}
    assert rises["held"] < 0.05 < 0.08 < rises["unheld"]


@pytest.mark.parametrize("cut", [7])
def test_a_controlled_run_that_is_cut_weighs_on_as_if_it_had_not_been(place: Path, chats: Path, cut: int) -> None:
    if not (place / "held").exists():
        go(place, "held", *held(place))
    name = f"held-cut-{cut}"
    assert go(place, name, *held(place), narrator=Stopper(cut)) == "stopped"
    assert go(place, name, *held(place), resume=True) == "finished"
    assert outcome(place / name) == outcome(place / "held")


def test_a_controller_without_replay_to_weigh_is_refused(place: Path, chats: Path) -> None:
    words = (f"data.train.0.path={chats}", "model.template=chatml", "train.gate.most_replay_weight=4")
    with pytest.raises(ConfigError, match="weighs plain text among"):
        go(place, "nothing-to-weigh", *settings(place, *words))


def test_a_gate_without_text_to_watch_is_refused(place: Path) -> None:
    row = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]}
    (place / "chats.jsonl").write_text((json.dumps(row) + "\n") * 3)
    chats = (f"data.train.0.path={place / 'chats.jsonl'}", f"data.held_out.0.path={place / 'chats.jsonl'}")
    with pytest.raises(ConfigError, match="there is none"):
        go(place, "refused", *FORGETFUL, *chats, "data.held_out_fraction=0", "model.template=chatml")
    resolved = load_config(None, [f"data.train.0.path={place / 'chats.jsonl'}", "train.gate.forgetting=0.03"])
    with pytest.raises(ConfigError, match="nothing is held out"):
        require_all_read(resolved.config, resolved.origins)
