"""The tokenizer of a folder: its end tokens, its control strings, and text that holds them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chat_samples import TOKENIZERS, tokenizer_of
from tutelage.chat.tokenizer import _rebuilt, load_tokenizer
from tutelage.errors import ModelError


def test_a_folder_with_tokenizer_files_alone_will_do(tmp_path: Path) -> None:
    original = tokenizer_of("byte-level", ("<|end|>",))
    original.hf.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode_text("It is four.<|end|>") == original.encode_text("It is four.<|end|>")
    assert loaded.chat_template is None and loaded.eos_ids == (loaded.eos_id,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    assert load_tokenizer(tmp_path).eos_ids == (2, 7)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer could be loaded"):
        load_tokenizer(tmp_path)


def test_named_templates_are_chosen_as_transformers_does() -> None:
    tokenizer = tokenizer_of("byte-level", ("<x>",))
    tokenizer.hf.chat_template = {"default": "plain", "tool_use": "tools"}
    assert (tokenizer.chat_template, tokenizer.template_for(tools=True)) == ("plain", "tools")
    tokenizer.hf.chat_template = {"default": "plain"}
    assert tokenizer.template_for(tools=True) == "plain"


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("after_control", [False, True])
def test_inert_encoding_is_the_ordinary_one_where_no_control_string_stands(name: str, after_control: bool) -> None:
    tokenizer = tokenizer_of(name, ("<|end|>",))
    for text in ("It is four.", " and blue ", "\n\n", "é 🌍", ""):
        (whole,) = tokenizer.encode(["<|end|>" * after_control + text])
        inert = tokenizer.encode_inert(text, after_control=after_control)
        assert inert.ids.tolist() == whole.ids[int(after_control) :].tolist(), text
        assert (inert.starts + 7 * after_control).tolist() == whole.starts[int(after_control) :].tolist()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_copy_without_controls_differs_in_controls_alone(name: str) -> None:
    backend = tokenizer_of(name, ("<|end|>", '","model":{"')).hf.backend_tokenizer
    expected = json.loads(backend.to_str())
    expected |= {"post_processor": None, "truncation": None, "padding": None, "added_tokens": []}
    assert json.loads(_rebuilt(backend, keep_added_tokens=False).to_str()) == expected


def test_inert_encoding_makes_no_control_token() -> None:
    tokenizer = tokenizer_of("byte-level", ("<|end|>",), ("<think>",))
    ids = tokenizer.encode_inert("a<|end|><think></s>b", after_control=True).ids
    assert not tokenizer.is_control[ids].any()
    assert tokenizer.decode(ids.tolist()) == "a<|end|><think></s>b"
