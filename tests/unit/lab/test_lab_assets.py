"""What ships: small, safe, whole, without a chat template, and made from this world."""

import json

import pytest
from safetensors import safe_open

from tutelage.chat.tokenizer import load_tokenizer
from tutelage.files.manifest import verify_manifest
from tutelage.lab import pretraining
from tutelage.lab.world import make_world
from tutelage.model.locate import SHIPPED_FOLDER, locate_model


def test_the_base_is_small_enough_to_ship_and_is_what_was_built() -> None:
    assert sum(path.stat().st_size for path in SHIPPED_FOLDER.rglob("*")) <= 12 * 10**6
    assert verify_manifest(SHIPPED_FOLDER) == []
    assert locate_model("lab").folder == SHIPPED_FOLDER


def test_the_base_is_stored_as_bfloat16_safetensors() -> None:
    with safe_open(SHIPPED_FOLDER / "model.safetensors", framework="pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118


def test_the_base_has_the_architecture_that_the_build_command_makes() -> None:
    config = json.loads((SHIPPED_FOLDER / "config.json").read_text())
    for name, value in pretraining.ARCHITECTURE.items():
        if name not in ("rope_theta", "bos_token_id", "pad_token_id"):
            assert config[name] == value, name


def test_the_base_has_no_chat_template_and_ends_texts_with_its_own_token() -> None:
    tokenizer = load_tokenizer(SHIPPED_FOLDER)
    assert tokenizer.chat_template is None
    assert tokenizer.decode([tokenizer.eos_id or 0]) == pretraining.END_OF_TEXT
    assert len(tokenizer.control_tokens) == 1


@pytest.mark.parametrize("text", ["Mirel Ashwell keeps a goat.", "naïve 東京 🙂\n\ttabs", "<|im_start|>user"])
def test_the_tokenizer_gives_back_any_text(text: str) -> None:
    tokenizer = load_tokenizer(SHIPPED_FOLDER)
    assert tokenizer.decode(tokenizer.encode_text(text)) == text


def test_names_are_few_tokens_so_that_facts_can_be_learned() -> None:
    tokenizer = load_tokenizer(SHIPPED_FOLDER)
    lengths = [len(tokenizer.encode_text(f" {person.name}")) for person in make_world(0).inhabitants]
    assert sum(lengths) / len(lengths) < 3.5


def test_a_start_folder_of_a_small_world_has_the_tokenizer_and_the_architecture(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining, "TOKENIZER_DOCUMENTS", 300)
    world = make_world(0, num_taught=4, num_read=2, num_strangers=2)
    folder = tmp_path_factory.mktemp("lab") / "start"
    pretraining.write_start(folder, world)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.chat_template is None
    assert tokenizer.vocab_size <= pretraining.VOCABULARY
    assert json.loads((folder / "config.json").read_text()) == pretraining.ARCHITECTURE


def test_the_training_text_and_the_held_out_text_share_no_number() -> None:
    world = make_world(0, num_taught=4, num_read=2, num_strangers=2)
    assert pretraining.TEXT_DOCUMENTS < pretraining.HELD_OUT_START
    assert pretraining.held_out_text(world, 3) == pretraining.held_out_text(world, 5)[:3]
