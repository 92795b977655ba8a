"""Tiny random models of many families and a tiny real tokenizer, made on the fly for tests.

`from tiny import FAMILIES, tiny_model, tiny_tokenizer, tiny_folder` works in every test below `tests/`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 384  # rows of the embedding; the tokenizer's own vocabulary is a little smaller or equal

SENTENCES = (
    "The baker of the village sells bread and cakes in the morning.",
    "Who lives in the house by the river? Mira lives there with her two dogs.",
    "Count from one to seven: 1 2 3 4 5 6 7.",
    "Please write a short story about a lighthouse and the keeper of its lamp.",
    "system user assistant tool: you are a helpful assistant.",
)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # large, so that answers and logits of the random model differ between inputs
}
_LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**_LLAMA_LIKE, "tie_word_embeddings": False}),
    "llama_tied": ("llama", {**_LLAMA_LIKE, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", _LLAMA_LIKE),
    "qwen3": ("qwen3", {**_LLAMA_LIKE, "head_dim": 16, "tie_word_embeddings": True}),
    "mistral": ("mistral", {**_LLAMA_LIKE, "sliding_window": 8}),
    "gemma2": (
        "gemma2",
        {**_LLAMA_LIKE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8, "attn_logit_softcapping": 50.0},
    ),
    "gemma3": ("gemma3_text", {**_LLAMA_LIKE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    "gpt_neox": (
        "gpt_neox",
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
    "phi3": ("phi3", _LLAMA_LIKE),
    "olmo2": ("olmo2", _LLAMA_LIKE),
    "smollm3": ("smollm3", _LLAMA_LIKE),
    "granite": ("granite", {**_LLAMA_LIKE, "logits_scaling": 0.75}),
    "cohere": ("cohere", {**_LLAMA_LIKE, "logit_scale": 1.5}),
    "mamba": ("mamba", {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, "expand": 2}),
}
FAMILIES = tuple(name for name in _SETTINGS if name != "mamba")  # attention models; `mamba` cannot be isolated


def tiny_config(family: str, **changes: Any) -> PretrainedConfig:
    """Return the configuration of a tiny model: 2 layers, hidden size 32, `VOCABULARY` tokens."""
    model_type, settings = _SETTINGS[family]
    return AutoConfig.for_model(model_type, **{**_COMMON, **settings, **changes})


def tiny_model(
    family: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> PreTrainedModel:
    """Return a tiny random causal language model in evaluation mode; `changes` are configuration settings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(family, **changes))
    return model.to(dtype).eval()


@cache
def _trained_tokenizer_json() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 1)]
    )
    return str(tokenizer.to_str())


def tiny_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer made of a few sentences: `<pad>` 0, `<bos>` 1, `<eos>` 2; any text encodes."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_tokenizer_json()),
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer


def tiny_folder(
    folder: Path, family: str = "llama", *, seed: int = 0, chat_template: str | None = None, **changes: Any
) -> Path:
    """Write a tiny model and its tokenizer as a Hugging Face folder and return the folder."""
    tiny_model(family, seed=seed, **changes).save_pretrained(folder)
    tiny_tokenizer(chat_template).save_pretrained(folder)
    return folder
