"""Settings that nothing reads are refused where they were set beside what silences them, and give way to what stands above."""

from __future__ import annotations

from pathlib import Path

import pytest

from tutelage.config import unread as unread_module
from tutelage.config.load import Resolved, load_config, preset_names
from tutelage.config.unread import require_all_read
from tutelage.errors import ConfigError

HELD_OUT = "data.held_out_fraction=0.1"
# What was set, what nothing reads of it, and what the error must say.
CONTRADICTIONS = [
    (["train.method=full", "train.lora.rank=4"], "train.lora.rank", "train.method is full"),
    (["train.lora.targets=[q_proj]"], "train.lora.targets", "give train.method=lora"),
    (["train.early_stopping.patience=5"], "train.early_stopping.patience", "nothing is held out"),
    (["train.early_stopping.patience=3"], "train.early_stopping.patience", "data.held_out_fraction=0.02"),
    (["train.evaluate_every_steps=5"], "train.evaluate_every_steps", "nothing is held out"),
    (
        [HELD_OUT, "train.evaluate_every_steps=5", "train.evaluate_every_tokens=9"],
        "train.evaluate_every_steps",
        "give train.evaluate_every_tokens=null",
    ),
    (["train.schedule=constant", "train.final_fraction=0"], "train.final_fraction", "the schedule is constant"),
    (["sample.prompts=[Hello]", "sample.count=2"], "sample.count", "sample.prompts are all that is asked"),
    (["sample.system=Be brief."], "sample.system", "prompts taken from the data"),
    (["model.path=lab", "model.revision=main"], "model.revision", "lab is no model of the Hub"),
    (["data.held_out=[{path: a.jsonl, weight: 2}]"], "data.held_out.0.weight", "held-out rows are not drawn"),
    (["data.held_out=[{path: a.jsonl, share: 0.5}]"], "data.held_out.0.share", "held-out rows are not drawn"),
    (["data.held_out=[{path: a.jsonl, epochs: 2}]"], "data.held_out.0.epochs", "held-out rows are not drawn"),
]
# Settings that are read after all, or that change nothing.
FINE = [
    [],
    ["train.method=lora", "train.lora.rank=4"],
    ["train.method=full", "train.lora.rank=16"],  # the default
    [HELD_OUT, "train.early_stopping.patience=5", "train.evaluate_every_steps=5"],
    ["data.held_out=[{path: a.jsonl}]", "train.early_stopping.patience=5"],
    [HELD_OUT, "train.evaluate_every_tokens=5"],
    ["train.batch_sequences=8", "train.batch_tokens=100"],  # replaced, as the schema says
    ["train.max_steps=8", "train.epochs=3"],
    ["run.dir=here", "run.name=mine"],
    ["sample.count=0", "sample.max_new_tokens=7"],  # a switch: what belongs to it stays for when it is on
    ["data.cache=off", "data.cache_gigabytes=7"],
    ["sample.prompts=[Hello]", "sample.system=Be brief."],
    ["model.path=owner/name", "model.revision=main"],
    ["data.train=[{path: folder, split: test}]"],
]


def check(resolved: Resolved) -> None:
    require_all_read(resolved.config, resolved.origins)


@pytest.mark.parametrize(("overrides", "key", "says"), CONTRADICTIONS)
def test_a_setting_that_nothing_reads_is_refused_with_the_reason_and_the_mend(
    overrides: list[str], key: str, says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check(load_config(None, overrides))
    assert f"command line: `{key}` is set, but nothing reads it" in caught.value.problem
    assert says in str(caught.value)
    assert "take it away" in caught.value.mend


@pytest.mark.parametrize("overrides", FINE)
def test_settings_that_are_read_or_are_at_their_defaults_pass(overrides: list[str]) -> None:
    check(load_config(None, overrides))


def test_a_split_of_a_single_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(ConfigError, match="a single file has no splits"):
        check(load_config(None, [f"data.train=[{{path: {tmp_path / 'rows.jsonl'}, split: test}}]"]))


def test_all_of_them_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("train:\n  lora:\n    rank: 4\n  evaluate_every_steps: 3\n")
    with pytest.raises(ConfigError) as caught:
        check(load_config(file))
    assert f"{file}:3: `train.lora.rank`" in str(caught.value)
    assert f"{file}:4: `train.evaluate_every_steps`" in str(caught.value)


def test_the_command_line_silences_what_a_file_or_preset_says(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("train:\n  method: lora\n  epochs: 3\n  lora:\n    rank: 4\n")
    resolved = load_config(file, ["train.method=full", "train.max_steps=5"], preset="sft-lora")
    check(resolved)
    assert resolved.config.train.lora.rank == 16
    assert resolved.config.train.epochs == 1.0
    assert resolved.origins["train.lora.rank"] == resolved.origins["train.epochs"] == "default"
    with pytest.raises(ConfigError, match=r"train\.lora\.rank"):
        check(load_config(file, ["train.method=full", "train.lora.rank=8"]))


def test_what_another_key_replaces_goes_back_to_its_default() -> None:
    resolved = load_config(
        None, ["train.max_steps=8", "train.epochs=3", "train.batch_sequences=2", "train.batch_tokens=9"]
    )
    assert (resolved.config.train.epochs, resolved.config.train.batch_tokens) == (1.0, 16384)
    assert resolved.origins["train.epochs"] == resolved.origins["train.batch_tokens"] == "default"


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_read_as_a_whole(name: str) -> None:
    check(load_config(preset=name))


@pytest.mark.parametrize("overrides", [fine for fine in FINE if fine])
def test_a_configuration_written_out_in_full_is_accepted_again(tmp_path: Path, overrides: list[str]) -> None:
    resolved = load_config(None, overrides)
    file = tmp_path / "config.yaml"
    file.write_text(resolved.to_yaml())
    again = load_config(file)
    check(again)
    assert again.config == resolved.config


def test_a_build_without_the_rules_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: with no rule, contradictions pass."""
    monkeypatch.setattr(unread_module, "unread", lambda config: iter(()))
    for overrides, _, _ in CONTRADICTIONS:
        check(load_config(None, overrides))
