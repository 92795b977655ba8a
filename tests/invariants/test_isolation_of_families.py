"""Isolation and layout, probed on tiny random models of every attention architecture that transformers builds this way.

The settings are generic: a value is used where the architecture's configuration has a key of that name.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from sample_documents import random_documents
from tiny import VOCABULARY
from tutelage.model.attention import NAME, choose_attention, register_attention
from tutelage.model.probe import probe_causality, probe_isolation, probe_layout
from tutelage.pack.batch import pack_batch

ISOLATED = [
    "afmoe",
    "apertus",
    "arcee",
    "biogpt",
    "bitnet",
    "cohere",
    "cohere2",
    "cohere2_moe",
    "cwm",
    "deepseek_v2",
    "diffllama",
    "ernie4_5",
    "ernie4_5_moe",
    "exaone4",
    "exaone_moe",
    "flex_olmo",
    "gemma",
    "glm",
    "glm4",
    "glm4_moe",
    "gpt_bigcode",
    "gpt_oss",
    "granite",
    "granitemoe",
    "granitemoeshared",
    "helium",
    "hunyuan_v1_dense",
    "hunyuan_v1_moe",
    "jetmoe",
    "llama4_text",
    "minimax_m2",
    "ministral",
    "ministral3",
    "mixtral",
    "modernbert-decoder",
    "nemotron",
    "olmo",
    "olmo3",
    "olmoe",
    "opt",
    "persimmon",
    "phi",
    "phimoe",
    "qwen2_moe",
    "qwen3_moe",
    "seed_oss",
    "stablelm",
    "starcoder2",
    "vaultgemma",
]
OWN_ATTENTION_CODE = ["codegen", "gptj", "gpt_neox_japanese"]  # packed through transformers' own block mask
STATEFUL = [
    "bamba",
    "falcon_mamba",
    "granitemoehybrid",
    "jamba",
    "mamba",
    "minimax",
    "nemotron_h",
    "qwen3_next",
    "recurrent_gemma",
    "rwkv",
]

SETTINGS: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "intermediate_size", "ffn_dim"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "v_head_dim", "q_lora_rank", "kv_lora_rank", "d_kv"), 16),
    **dict.fromkeys(
        ("qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim", "sliding_window", "attention_chunk_size"), 8
    ),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("state_size", "d_state", "mamba_d_state"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 128),
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "initializer_range": 0.2,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def generic_model(family: str) -> PreTrainedModel:
    kind = CONFIG_MAPPING[family]
    known = kind().to_dict()
    config = kind(**{name: value for name, value in SETTINGS.items() if name in known})
    register_attention()
    attention = choose_attention(config, "cpu").name
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).float()


@pytest.fixture(autouse=True)
def without_warnings_of_other_peoples_code() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.slow
@pytest.mark.parametrize("family", ISOLATED + OWN_ATTENTION_CODE)
def test_documents_of_a_pack_stay_apart(family: str) -> None:
    model = generic_model(family)
    assert (model.config._attn_implementation == NAME) == (family in ISOLATED)
    documents = random_documents((5, 17, 2, 9, 31))
    batch = pack_batch(documents)
    for found in (probe_isolation(model, batch), probe_causality(model, batch), probe_layout(model, documents)):
        assert found.passed, f"{found.name}: {found.detail}"


@pytest.mark.slow
@pytest.mark.parametrize("family", STATEFUL)
def test_models_with_state_are_found_out(family: str) -> None:
    assert not probe_isolation(generic_model(family), pack_batch(random_documents((5, 17, 2, 9, 31)))).passed
