"""Configurations are read strictly, and every value knows where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.config.load import Resolved, leaves, load_config, preset_names, preset_text
from tutelage.config.schema import Checkpointing, Layout, Method
from tutelage.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def complaint(*overrides: str, path: Path | None = None, preset: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides, preset=preset)
    return str(caught.value)


def test_without_anything_every_value_is_the_default() -> None:
    resolved = load_config()
    assert set(resolved.origins.values()) == {"default"}
    assert resolved.config.model.path == "lab"


def test_each_value_knows_its_file_and_line_preset_or_command_line(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "train:\n  epochs: 3\n  lora:\n    rank: 4\ndata:\n  train:\n    - path: a.jsonl\n      share: 0.5\n"
        "sample:\n  prompts:\n    - Hello\n",
    )
    origins = load_config(path, ["train.seed=7", "data.train.1.path=b"], preset="sft-lora").origins
    assert origins["train.epochs"] == f"{path}:2"
    assert origins["train.lora.rank"] == f"{path}:4"
    assert origins["data.train.0.share"] == f"{path}:8"
    assert origins["sample.prompts"] == f"{path}:10"
    assert origins["train.seed"] == origins["data.train.1.path"] == "command line"
    assert origins["train.lora.alpha"].startswith("preset sft-lora:")
    assert origins["train.betas"] == origins["data.train.0.weight"] == "default"


def test_a_file_goes_over_a_preset_and_the_command_line_over_both(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {method: full, epochs: 5}")
    config = load_config(path, ["train.epochs=6"], preset="sft-lora").config
    assert config.train.method is Method.FULL
    assert config.train.epochs == 6
    assert config.train.lora.rank == 16


def test_lists_are_replaced_whole_by_a_file_and_by_index_from_the_command_line(tmp_path: Path) -> None:
    path = write(tmp_path, "data: {train: [{path: a}, {path: b, share: 0.1}]}")
    assert [s.path for s in load_config(path, preset="sft-full").config.data.train] == ["a", "b"]
    assert [s.path for s in load_config(path, ["data.train.0.path=c"]).config.data.train] == ["c", "b"]
    assert [s.path for s in load_config(path, ["data.train=[{path: x}]"]).config.data.train] == ["x"]
    assert [s.path for s in load_config(None, ["data.train.0.path=x"]).config.data.train] == ["x"]


@pytest.mark.parametrize(
    ("written", "key", "value"),
    [
        ("learning_rate: 1e-5", "learning_rate", 1e-5),
        ("learning_rate: .5", "learning_rate", 0.5),
        ("batch_tokens: 16_384", "batch_tokens", 16384),
        ("batch_tokens: 0x10", "batch_tokens", 16),
        ("seed: 010", "seed", 10),
        ("packing: no", "packing", Layout.PADDED),
        ("packing: true", "packing", Layout.PACKED),
        ("packing: single", "packing", Layout.SINGLE),
        ("gradient_checkpointing: on", "gradient_checkpointing", Checkpointing.LAYERS),
        ("gradient_checkpointing: false", "gradient_checkpointing", Checkpointing.NONE),
        ("gradient_checkpointing: selective", "gradient_checkpointing", Checkpointing.SELECTIVE),
        ("device: 1e5", "device", "1e5"),
        ("max_steps: ~", "max_steps", None),
        ("max_steps:", "max_steps", None),
    ],
)
def test_scalars_mean_what_a_person_means(tmp_path: Path, written: str, key: str, value: object) -> None:
    assert getattr(load_config(write(tmp_path, f"train:\n  {written}\n")).config.train, key) == value


@pytest.mark.parametrize("word", ["no", "on", "true", "007", "1e3", "12:30:00", "2024-01-01", "0x10", "1_000"])
def test_text_keys_keep_the_text_that_was_typed(tmp_path: Path, word: str) -> None:
    assert load_config(write(tmp_path, f"run:\n  name: {word}\n")).config.run.name == word
    assert load_config(None, [f"run.name={word}"]).config.run.name == word


def test_lists_of_text_keep_the_text_that_was_typed() -> None:
    assert load_config(None, ["sample.prompts=[no, 1.50, yes]"]).config.sample.prompts == ["no", "1.50", "yes"]
    assert load_config(None, ["train.lora.targets=[q_proj, 7]"]).config.train.lora.targets == ["q_proj", "7"]
    assert load_config(None, ["train.lora.targets=all-linear"]).config.train.lora.targets == "all-linear"


def test_a_section_with_all_its_lines_commented_out_is_empty(tmp_path: Path) -> None:
    resolved = load_config(write(tmp_path, "train:\n  lora:\n  early_stopping:\nsample:\ndata:\n  train:\n"))
    assert resolved.config == load_config().config


@pytest.mark.parametrize(
    ("override", "problem", "mend"),
    [
        ("train.lerning_rate=1", "unknown key `train.lerning_rate`", "`train.learning_rate`"),
        ("train.lora.rang=1", "unknown key `train.lora.rang`", "`train.lora.rank`"),
        ("learning_rate=1", "unknown key `learning_rate`", "`train.learning_rate`"),
        ("lr=1", "unknown key `lr`", "`train.learning_rate`"),
        ("num_train_epochs=1", "unknown key", "`train.epochs`"),
        ("train.max_seq_length=1", "unknown key", "`data.max_tokens`"),
        ("trian.epochs=1", "unknown key `trian`", "`train`"),
        ("train.zzz=1", "unknown key `train.zzz`", "keys here: method, epochs"),
        ("data.train.0.pth=x", "unknown key `data.train.0.pth`", "`data.train.0.path`"),
        ("data.train.0.kind=text", "`data.train.0.path` is missing", "add it"),
        ("train.epochs=-1", "`train.epochs` is -1, but must be greater than 0", ""),
        ("train.learning_rate=fast", "`train.learning_rate` is 'fast', but must be a number", "give a number"),
        ("train.learning_rate=true", "`train.learning_rate` is true, but must be a number", ""),
        ("train.learning_rate=.nan", "must be", ""),
        ("train.learning_rate=.inf", "must be", ""),
        ("train.max_steps=1.5", "is 1.5, but must be a whole number", ""),
        ("train.method=lorra", "is 'lorra', but must be one of full, lora", "did you mean `lora`?"),
        ("data.train.0={path: x, kind: alpacca}", "is 'alpacca', but must be one of auto, messages", "`alpaca`"),
        ("train.gradient_checkpointing=3", "`train.gradient_checkpointing` is 3, but must be one of auto, none", ""),
        ("train.lora.rslora=3", "`train.lora.rslora` is 3, but must be true or false", ""),
        ("train.lora=3", "`train.lora` is 3, but must be a section", ""),
        ("train.epochs={a: 1}", "`train.epochs` is a section, but must be a number", ""),
        ("data.train=x.jsonl", "`data.train` is 'x.jsonl', but must be a list", "- "),
        ("data.train.3.path=x", "there is no item 3; the list has 0", "use 0 to append"),
        ("data.train=[{path: x, weight: 2, share: 0.1}]", "give either weight or share, not both", ""),
        ("train.betas=[1]", "`train.betas.1` is missing", ""),
        ("run.name=../../elsewhere", "`../../elsewhere` is a path; give the name of one folder", ""),
        ("lora.rank=4", "unknown key `lora`", "`train.lora`"),
        ("train.max_tokens=4", "unknown key `train.max_tokens`", "`data.max_tokens`"),
        ("train=[1", "not a YAML value", "quote the whole argument"),
        ("train.epochs", "is not an override", "key.sub=value"),
        ("train..epochs=1", "is not an override", ""),
        ("=1", "is not an override", ""),
    ],
)
def test_mistakes_are_named_with_value_and_mend(override: str, problem: str, mend: str) -> None:
    message = complaint(override)
    assert problem in message
    assert mend in message
    assert "pydantic" not in message


def test_all_mistakes_are_told_at_once_with_their_places(tmp_path: Path) -> None:
    path = write(tmp_path, "train:\n  epochs: many\n  method: all\ndata:\n  max_tokens: 0\n")
    message = complaint("train.seed=-1", path=path)
    assert "4 problems" in message
    for place in (f"{path}:2", f"{path}:3", f"{path}:5", "command line"):
        assert place in message


def test_all_unknown_keys_are_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "trian: {}\ntrain:\n  epoch: 1\n")
    message = complaint(path=path)
    assert f"{path}:1: unknown key `trian`" in message
    assert f"{path}:3: unknown key `train.epoch`" in message


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("train:\n  epochs: 1\n  epochs: 2\n", ":3: the key 'epochs' stands here a second time; the first is at"),
        ("train:\n\tepochs: 1\n", ":2: not YAML"),
        ("train: [1\n", "not YAML"),
        ("- 1\n", ":1: a configuration is a mapping"),
        ("just words\n", ":1: a configuration is a mapping"),
        ("model: !!python/object/apply:os.system [echo]\n", "is not allowed"),
        ("model: {path: !secret x}\n", "is not allowed"),
        ("a: &a [*a]\n", "aliases expand without end"),
        ("{[1]: 2}\n", "a key must be a word"),
        ("model: 3\n---\nmodel: 4\n", "not YAML"),
        ("train:\n  <<: {epochs: 2}\n", "unknown key `train.<<`"),
        ("run: {name: a\x00b}\n", "not YAML"),
        ("a: " + "[" * 500, "nested too deeply"),
        ("a: " + "[" * 60 + "]" * 60, "nested too deeply"),
        (f"train: {{seed: {'1' * 5000}}}\n", "cannot be read as a number"),
    ],
)
def test_what_is_not_plain_yaml_is_refused_with_its_place(tmp_path: Path, text: str, problem: str) -> None:
    path = write(tmp_path, text)
    message = complaint(path=path)
    assert problem in message
    assert str(path) in message


def test_aliases_that_explode_are_refused_quickly(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "aliases expand without end" in complaint(path=write(tmp_path, "\n".join(lines)))


def test_anchors_serve_as_values(tmp_path: Path) -> None:
    path = write(tmp_path, "data:\n  train: [{path: &p a.jsonl}]\n  held_out: [{path: *p}]\n")
    assert load_config(path).config.data.held_out[0].path == "a.jsonl"


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    assert "No such file" in complaint(path=tmp_path / "absent.yaml")
    assert "Is a directory" in complaint(path=tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"run: {name: \xe4}")
    assert "is not UTF-8 (byte 12)" in complaint(path=tmp_path / "latin.yaml")


def test_a_byte_order_mark_and_an_empty_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbftrain: {epochs: 2}")
    assert load_config(path).config.train.epochs == 2
    path.write_bytes(b"# nothing yet\n")
    assert load_config(path).config == load_config().config


def test_relative_paths_are_those_beside_the_file_where_they_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    for name in ("chats.jsonl", "own.jinja", "part-1.jsonl"):
        (folder / name).touch()
    (folder / "base").mkdir()
    (folder / "lab").mkdir()
    path = write(
        folder,
        "model: {path: base, template: own.jinja}\n"
        "data:\n  train: [{path: chats.jsonl}, {path: part-*.jsonl}, {path: elsewhere.jsonl}, {path: 'hub:a/b'}]\n",
    )
    monkeypatch.chdir(tmp_path)
    config = load_config(path, ["data.held_out.0.path=chats.jsonl"]).config
    assert config.model.path == str(folder / "base")
    assert config.model.template == str(folder / "own.jinja")
    expected = [str(folder / "chats.jsonl"), str(folder / "part-*.jsonl"), "elsewhere.jsonl", "hub:a/b"]
    assert [source.path for source in config.data.train] == expected
    assert config.data.held_out[0].path == "chats.jsonl"  # typed in the working directory, meant there
    assert load_config(write(folder, "model: {path: lab}")).config.model.path == "lab"


def test_a_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert load_config(None, ["model.path=~/m"]).config.model.path == "/home/somebody/m"


def test_an_unknown_preset_is_named_with_the_nearest() -> None:
    assert "did you mean `sft-lora`?" in complaint(preset="sft-lorra")
    assert "there are:" in complaint(preset="zzzzzz")


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_its_first_line_says_what_it_is_for(name: str) -> None:
    resolved = load_config(preset=name)
    assert any(origin.startswith(f"preset {name}:") for origin in resolved.origins.values())
    first_line = preset_text(name).partition("\n")[0]
    assert first_line.startswith("# ") and first_line.endswith(".")


def test_every_value_of_a_configuration_has_an_origin() -> None:
    resolved = load_config(None, ["data.train=[{path: a}, {path: b}]", "train.early_stopping={patience: 2}"])
    assert list(resolved.origins) == [key for key, _, _ in leaves(resolved.config)]
    assert resolved.origins["train.early_stopping.patience"] == "command line"
    assert resolved.origins["train.early_stopping.min_improvement"] == "default"


_SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "run": st.fixed_dictionaries(
            {"name": st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="/\\"))}
        ),
        "sample": st.fixed_dictionaries({"prompts": st.lists(st.text(st.characters(codec="ascii")), max_size=3)}),
        "train": st.fixed_dictionaries(
            {},
            optional={
                "learning_rate": st.floats(min_value=1e-12, max_value=1e12),
                "seed": st.integers(min_value=0, max_value=2**63 - 1),
                "packing": st.sampled_from(list(Layout)),
                "early_stopping": st.none() | st.just({"patience": 5}),
            },
        ),
    },
)


@given(_SETTINGS)
def test_a_configuration_written_out_and_read_again_is_equal(
    tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Any]
) -> None:
    from tutelage.config.schema import Config

    config = Config.model_validate(settings)
    path = write(tmp_path_factory.mktemp("again"), Resolved(config, {}).to_yaml())
    assert load_config(path).config == config
