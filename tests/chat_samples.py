"""Conversations, tokenizers and templates for tests of rendering, and masks written by hand.

A file of masks begins with lines `key: value` (template, tokenizer, special tokens to add, end token), then holds
sections `=== name of the conversation`. A section is one or more documents, each the whole text with ⟦ ⟧ around what is
trained, closed by ⏹.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tutelage.chat.template import Template, load_template
from tutelage.chat.tokenizer import ChatTokenizer, load_tokenizer
from tutelage.data.conversation import Conversation, Message, Role, ToolCall

GOLDEN = Path(__file__).parent / "golden"

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Look up the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The city."}},
            "required": ["city"],
        },
    },
}

SENTENCES = [
    "You answer briefly. What is two plus two? It is four. And the colour of the sky? It is blue.",
    "You may look things up. How warm is it in Rome? 21 degrees. It is 21 degrees in Rome.",
    'system user assistant tool {"name": "weather", "arguments": {"city": "Rome"}} 0123456789',
    "Question Reply Result Thought Look up a word. Instruction: Response: é ü 你好 🌍",
]


def system(text: str) -> Message:
    return Message(Role.SYSTEM, text)


def user(text: str) -> Message:
    return Message(Role.USER, text)


def assistant(text: str = "", **fields: Any) -> Message:
    return Message(Role.ASSISTANT, text, **fields)


def tool(text: str) -> Message:
    return Message(Role.TOOL, text, name="weather", tool_call_id="call00001")


CALL = assistant(tool_calls=(ToolCall("weather", {"city": "Rome"}, "call00001"),))
_QUESTIONS = (
    user("What is two plus two?"),
    assistant("It is four."),
    user("And the colour of the sky?"),
    assistant("It is blue."),
)
_LOOK_UP = (user("How warm is it in Rome?"), CALL, tool("21 degrees"), assistant("It is 21 degrees in Rome."))

CONVERSATIONS = {
    "chat": Conversation((system("You answer briefly."), *_QUESTIONS)),
    "no_system": Conversation(_QUESTIONS),
    "reasoning": Conversation(
        (
            user("What is two plus two?"),
            assistant("It is four.", reasoning="Two and two make four."),
            user("And three plus three?"),
            assistant("It is six.", reasoning="Three and three make six."),
        )
    ),
    "tools": Conversation((system("You may look things up."), *_LOOK_UP), (WEATHER,)),
    "tools_no_system": Conversation(_LOOK_UP, (WEATHER,)),
    "everything": Conversation(
        (
            system("You may look things up."),
            user("How warm is it in Rome?"),
            assistant("One moment.", reasoning="I must look.", tool_calls=CALL.tool_calls),
            tool("21 degrees"),
            assistant("It is 21 degrees.", reasoning="The tool says 21."),
            user("Thanks!"),
            assistant("Gladly.", reasoning="They are polite."),
        ),
        (WEATHER,),
    ),
}


@cache
def _byte_level() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


@cache
def _metaspace(prepend: str) -> PreTrainedTokenizerFast:
    """A vocabulary of the SentencePiece kind, with a byte for every character that it lacks."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=70,
        show_progress=False,
    )
    backend.train_from_iterator([sentence.replace(" ", "▁") for sentence in SENTENCES], trainer)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(parts)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


TOKENIZERS = ("byte-level", "metaspace-first", "metaspace-always")


@cache
def tokenizer_of(
    name: str, special: tuple[str, ...] = (), plain: tuple[str, ...] = (), eos: str = "", folder: Path | None = None
) -> ChatTokenizer:
    """Return one of our small tokenizers (or a real one from `folder`) with control tokens added."""
    if folder is not None:
        hf = load_tokenizer(folder / name).hf
    else:
        hf = copy.deepcopy(_byte_level() if name == "byte-level" else _metaspace(name.removeprefix("metaspace-")))
    hf.add_special_tokens({"additional_special_tokens": list(special)}, replace_extra_special_tokens=False)
    hf.add_tokens(list(plain))
    if eos:
        hf.eos_token = eos
    return ChatTokenizer(hf)


@dataclass(frozen=True)
class HandMade:
    """A file of masks made by hand."""

    template: str
    tokenizer: str
    special: tuple[str, ...]
    eos: str
    documents: dict[str, list[str]]

    def load_tokenizer(self, folder: Path | None = None, *, name: str = "") -> ChatTokenizer:
        return tokenizer_of(name or self.tokenizer, self.special, eos=self.eos, folder=folder)

    def load_template(self, folder: Path) -> Template | None:
        """Return the template, or None where it is the tokenizer's own."""
        if not self.template.endswith(".jinja"):
            return None
        collection, name = self.template.split("/")
        if collection == "chujiezheng":  # published with indentation that is not part of it
            text = (folder / collection / "chat_templates" / name).read_text()
            return Template(text.replace("    ", "").replace("\n", ""))
        return load_template(folder / collection / name)


def hand_made(path: Path) -> HandMade:
    """Read a file of masks."""
    head, *sections = path.read_text(encoding="utf-8").split("\n=== ")
    fields = dict(line.split(":", 1) for line in head.splitlines())
    documents = {}
    for section in sections:
        name, _, body = section.partition("\n")
        documents[name] = [text.removeprefix("\n") for text in body.split("⏹")[:-1]]
    special = tuple(fields["special"].split())
    return HandMade(fields["template"].strip(), fields["tokenizer"].strip(), special, fields["eos"].strip(), documents)


def unmarked(text: str) -> str:
    return text.replace("⟦", "").replace("⟧", "")


def mask_by_hand(tokenizer: ChatTokenizer, text: str) -> tuple[list[int], list[bool]]:
    """Return the ids of a marked text and which of them are trained: those that hold a character between marks."""
    inside, flags = False, []
    for character in text:
        if character in "⟦⟧":
            inside = character == "⟦"
        else:
            flags.append(inside)
    encoded = tokenizer.hf(unmarked(text), add_special_tokens=False, return_offsets_mapping=True)
    trained = [any(flags[start:end]) for start, end in encoded["offset_mapping"]]
    return encoded["input_ids"], trained


def marked(tokenizer: ChatTokenizer, ids: np.ndarray, weights: np.ndarray) -> str:
    """Return tokens as text with marks around what is trained, to be read in a failing test."""
    text = "".join(
        f"⟦{tokenizer.decode([number])}⟧" if weight else tokenizer.decode([number])
        for number, weight in zip(ids.tolist(), weights.tolist(), strict=True)
    )
    return re.sub("⟧⟦", "", text)
