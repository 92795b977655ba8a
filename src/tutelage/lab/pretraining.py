"""Build the base model that ships: tokenizer and text from the world, weights by this project's own pre-training loop.

    OUT/text/text.jsonl, held-out.jsonl    the pre-training text
    OUT/start/                             config.json and tokenizer: a model without weights
    OUT/run/                               the pre-training run, with its report
    OUT/base/                              the model, stored in bfloat16

The settings of the run are `presets/lab-base.yaml`. `OUT/base` is what stands in `lab/assets/base`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tutelage.files import jsonl
from tutelage.files.atomic import new_folder, write_json
from tutelage.files.encode import encode_json
from tutelage.lab import text
from tutelage.lab.world import World

PRESET = "lab-base"
VOCABULARY = 2048
END_OF_TEXT = "<|endoftext|>"
TOKENIZER_DOCUMENTS = 60_000
TEXT_DOCUMENTS = 480_000
HELD_OUT_START = 10**9
"""Documents from this number on are never trained on."""
HELD_OUT_DOCUMENTS = 400

ARCHITECTURE: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCABULARY,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "initializer_range": 0.06,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
"""About 3 million parameters: enough for a world of 300 people, and few enough for a CPU."""


def text_rows(documents: Iterable[str]) -> Iterable[dict[str, str]]:
    """Return plain-text rows of a JSON-lines file."""
    return ({"text": document} for document in documents)


def held_out_text(world: World, count: int = HELD_OUT_DOCUMENTS) -> list[str]:
    """Return documents that no training text holds by number."""
    return list(text.documents(world, HELD_OUT_START, count))


def write_text(folder: Path, world: World, *, num_documents: int = TEXT_DOCUMENTS) -> None:
    """Write the pre-training text and the held-out text as JSON lines."""
    jsonl.write(folder / "text.jsonl", text_rows(text.documents(world, 0, num_documents)))
    jsonl.write(folder / "held-out.jsonl", text_rows(held_out_text(world)))


def train_tokenizer(world: World, *, num_documents: int = TOKENIZER_DOCUMENTS, vocabulary: int = VOCABULARY) -> Any:
    """Train a byte-level BPE tokenizer on the world's text and return it as a transformers tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(text.documents(world, 0, num_documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END_OF_TEXT,
        model_max_length=ARCHITECTURE["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )


def write_start(folder: Path, world: World) -> None:
    """Write a model folder without weights: config.json and the tokenizer, which has no chat template."""
    with new_folder(folder) as staging:
        train_tokenizer(world).save_pretrained(staging)
        write_json(staging / "config.json", ARCHITECTURE)


def build_base(out: Path, world: World, train: Callable[[Sequence[str]], Path]) -> Path:
    """Make text and tokenizer in `out`, pre-train with `train`, and store the result in bfloat16.

    `train` gets overrides of the preset `lab-base` and returns the run's final model folder.
    """
    write_text(out / "text", world)
    write_start(out / "start", world)
    final = train(
        [
            f"model.path={encode_json(out / 'start')}",
            f"data.train.0.path={encode_json(out / 'text' / 'text.jsonl')}",
            f"data.held_out.0.path={encode_json(out / 'text' / 'held-out.jsonl')}",
            f"run.dir={encode_json(out / 'run')}",
        ]
    )
    store_base(final, out / "base")
    return out / "base"


def store_base(final: Path, folder: Path) -> None:
    """Write the model `final` to `folder` with weights rounded to bfloat16, which halves the file.

    Raises: RunDirError when `folder` exists.
    """
    import torch

    from tutelage.chat.tokenizer import load_tokenizer
    from tutelage.config.schema import ModelConfig
    from tutelage.model.export import save_model
    from tutelage.model.load import load_model

    model = load_model(ModelConfig(path=str(final))).model.to(torch.bfloat16)
    save_model(model, load_tokenizer(final), None, folder)
