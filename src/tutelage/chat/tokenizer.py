"""The tokenizer of a model, as chats need it: ids with character offsets, and control tokens under control.

Ids are those of transformers' `AutoTokenizer`. What is added: offsets exact for byte-level and SentencePiece-type
vocabularies, a second encoder that reads control strings such as `<|im_end|>` as ordinary text, and the list of tokens
that end generation.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tutelage.data.conversation import Json
from tutelage.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# T tokens, V vocabulary

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SENTINEL = "\ue0f8\ue0f9\ue0f8"  # a control string of our own, never part of a text that is encoded


@dataclass(frozen=True, eq=False)
class Encoded:
    """Tokens of a text. Shapes: all [T]. `starts` and `ends` are character offsets of each token."""

    ids: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int32]


@dataclass(frozen=True)
class ControlToken:
    """A string that the tokenizer reads as one token wherever it stands."""

    text: str
    id: int
    special: bool


@dataclass(frozen=True)
class TokenizerFacts:
    """All that rendering asks of a tokenizer, as plain values that another process can be told.

    `backend` is the JSON of the Rust tokenizer.
    """

    backend: str
    chat_template: str | dict[str, str] | None
    special_tokens: dict[str, str | list[str]]
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    extra_eos_ids: tuple[int, ...]
    new_ids: tuple[int, ...]


class _Bare:
    """In place of a tokenizer of transformers, whose import takes seconds: what `ChatTokenizer` reads of one."""

    is_fast = True

    def __init__(self, facts: TokenizerFacts) -> None:
        from tokenizers import Tokenizer

        self.backend_tokenizer = Tokenizer.from_str(facts.backend)
        self.chat_template = facts.chat_template
        self.special_tokens_map = facts.special_tokens
        self.bos_token_id, self.eos_token_id, self.pad_token_id = facts.bos_id, facts.eos_id, facts.pad_id
        self.added_tokens_decoder = self.backend_tokenizer.get_added_tokens_decoder()
        self.deprecation_warnings: dict[str, bool] = {}

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return str(self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))


class ChatTokenizer:
    """A fast tokenizer of transformers with what rendering needs. Make one with `load_tokenizer`."""

    def __init__(self, hf: Any, *, extra_eos_ids: Sequence[int] = (), new_ids: Sequence[int] = ()) -> None:
        if not getattr(hf, "is_fast", False):
            raise ModelError(
                f"{type(hf).__name__} has no fast tokenizer, so its tokens have no character offsets",
                mend="save the model with a tokenizer.json",
            )
        # Said of texts that are only measured, too: how long a document may be is for data.max_tokens to say.
        hf.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
        self.hf = hf
        self._extra_eos_ids = tuple(extra_eos_ids)
        self.new_ids = tuple(new_ids)  # tokens that the model's own tokenizer lacks: they need embeddings

    @classmethod
    def from_facts(cls, facts: TokenizerFacts) -> ChatTokenizer:
        """Return a tokenizer that renders as the one of these facts does; it cannot be saved."""
        return cls(_Bare(facts), extra_eos_ids=facts.extra_eos_ids, new_ids=facts.new_ids)

    @property
    def facts(self) -> TokenizerFacts:
        """What a process that renders has to be told."""
        templates = self.hf.chat_template
        return TokenizerFacts(
            backend=self.hf.backend_tokenizer.to_str(),
            chat_template=dict(templates) if isinstance(templates, Mapping) else templates,
            special_tokens=self.special_variables,
            bos_id=self.bos_id,
            eos_id=self.eos_id,
            pad_id=self._optional(self.hf.pad_token_id),
            extra_eos_ids=self._extra_eos_ids,
            new_ids=self.new_ids,
        )

    def with_special_tokens(self, tokens: Sequence[str]) -> ChatTokenizer:
        """Return a tokenizer that reads each of `tokens` as one special token; this one stays as it is."""
        hf = copy.deepcopy(self.hf)
        hf.add_special_tokens({"additional_special_tokens": list(tokens)}, replace_extra_special_tokens=False)
        new_ids = (*self.new_ids, *range(len(self.hf), len(hf)))
        return ChatTokenizer(hf, extra_eos_ids=self._extra_eos_ids, new_ids=new_ids)

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return len(self.hf)

    @property
    def bos_id(self) -> int | None:
        """Id of the token that begins a text, if there is one."""
        return self._optional(self.hf.bos_token_id)

    @property
    def eos_id(self) -> int | None:
        """Id of the tokenizer's own end token, if there is one."""
        return self._optional(self.hf.eos_token_id)

    @property
    def pad_id(self) -> int:
        """Id to fill up with: the padding token, else the end token, else 0."""
        candidates = (self._optional(self.hf.pad_token_id), self.eos_id, 0)
        return next(candidate for candidate in candidates if candidate is not None)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id at which generation stops: those of the generation configuration, and `eos_id`."""
        ids = [*self._extra_eos_ids] if self.eos_id is None else [self.eos_id, *self._extra_eos_ids]
        return tuple(dict.fromkeys(ids))

    @property
    def chat_template(self) -> str | None:
        """The model's own chat template, the one named `default` if there are several."""
        return self.template_for(tools=False)

    def template_for(self, *, tools: bool) -> str | None:
        """Return the chat template that transformers would choose, with or without tools on offer."""
        templates = self.hf.chat_template
        if isinstance(templates, Mapping):
            named = templates.get("tool_use") if tools else None
            return named or templates.get("default")
        return templates or None

    @cached_property
    def special_variables(self) -> dict[str, Json]:
        """What templates see beside the messages: `bos_token`, `eos_token` and their like."""
        return {
            name: [str(item) for item in value] if isinstance(value, list) else str(value)
            for name, value in self.hf.special_tokens_map.items()
        }

    @cached_property
    def control_tokens(self) -> dict[int, ControlToken]:
        """Every added token, special or not, by id; bytes that a vocabulary falls back to (`<0x0A>`) are no controls."""
        return {
            number: ControlToken(token.content, number, token.special)
            for number, token in self.hf.added_tokens_decoder.items()
            if not _BYTE.fullmatch(token.content)
        }

    @cached_property
    def control_ids(self) -> dict[str, int]:
        """Id of every control string."""
        return {token.text: number for number, token in self.control_tokens.items() if token.text}

    @cached_property
    def control_pattern(self) -> re.Pattern[str]:
        """Matches any control string, the longest that stands at a place."""
        longest_first = sorted(self.control_ids, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    @cached_property
    def is_control(self) -> npt.NDArray[np.bool_]:
        """Shape [V]: whether an id is that of an added token."""
        flags = np.zeros(max(self.vocab_size, 1 + max(self.control_tokens, default=0)), dtype=np.bool_)
        flags[list(self.control_tokens)] = True
        return flags

    @cached_property
    def _is_added(self) -> npt.NDArray[np.bool_]:
        """Shape [V]: whether an id is that of an added token, bytes that a vocabulary falls back to included."""
        flags = self.is_control.copy()
        flags[[number for number in self.hf.added_tokens_decoder if number < len(flags)]] = True
        return flags

    @cached_property
    def text_ends(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids that the tokenizer itself puts before and after a plain text."""
        bare = self.hf("a", add_special_tokens=False)["input_ids"]
        full = self.hf("a", add_special_tokens=True)["input_ids"]
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return tuple(full[:start]), tuple(full[start + len(bare) :])
        return (), ()

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of `text`, control strings read as control tokens, nothing added."""
        return [int(number) for number in self.encode([text])[0].ids]

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Encode texts as they stand: control strings become control tokens, nothing is added."""
        self._backend.no_truncation()
        self._backend.no_padding()
        return [_arrays(encoding) for encoding in self._backend.encode_batch(list(texts), add_special_tokens=False)]

    def encode_inert(self, text: str, *, after_control: bool) -> Encoded:
        """Encode `text` with no control string read as a control token.

        `after_control` says that the text stands behind a control token, where some tokenizers split differently.
        """
        if not text:
            return _EMPTY
        if not after_control:
            return _arrays(self._inert_backend.encode(text, add_special_tokens=False))
        encoded = _arrays(self._inert_backend.encode(_SENTINEL + text, add_special_tokens=False))
        shift = len(_SENTINEL)
        return Encoded(encoded.ids[1:], encoded.starts[1:] - shift, encoded.ends[1:] - shift)

    def has_added_tokens(self, encoded: Encoded) -> bool:
        """Whether a string of the vocabulary's added tokens was read as one token."""
        return bool(self._is_added[encoded.ids].any())

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, control tokens included."""
        return str(self.hf.decode([int(number) for number in ids], skip_special_tokens=False))

    @cached_property
    def _backend(self) -> Tokenizer:
        """The Rust tokenizer, without a post-processor that trims offsets."""
        backend: Tokenizer = self.hf.backend_tokenizer
        if "trim_offsets=True" not in repr(backend.post_processor):
            return backend
        return _rebuilt(backend, keep_added_tokens=True)

    @cached_property
    def _inert_backend(self) -> Tokenizer:
        from tokenizers import AddedToken

        backend = _rebuilt(self.hf.backend_tokenizer, keep_added_tokens=False)
        backend.add_special_tokens([AddedToken(_SENTINEL, normalized=False, special=True)])
        return backend

    @staticmethod
    def _optional(number: Any) -> int | None:
        return None if number is None else int(number)


_LOADING_FAILURES = (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError, IndexError)
_EMPTY = Encoded(*(np.zeros(0, dtype=np.int32) for _ in range(3)))


def load_tokenizer(path: str | Path, revision: str | None = None) -> ChatTokenizer:
    """Load the tokenizer of a local folder or Hub model; a folder with tokenizer files alone will do.

    Raises: ModelError when there is none, or only a slow one.
    """
    from transformers import AutoTokenizer

    try:
        hf = AutoTokenizer.from_pretrained(str(path), revision=revision, trust_remote_code=False)
    except Exception as error:
        if type(error) is not Exception and not isinstance(
            error, _LOADING_FAILURES
        ):  # the Rust library raises Exception
            raise
        raise ModelError(
            f"no tokenizer could be loaded from {path}: {error}", mend="give a folder with a tokenizer.json"
        ) from error
    return ChatTokenizer(hf, extra_eos_ids=_configured_eos_ids(Path(path)))


def _configured_eos_ids(folder: Path) -> list[int]:
    """Return the end tokens of a local model's generation configuration, or else of its configuration."""
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        if not file.is_file():
            continue
        number = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
        if number is not None:
            return list(number) if isinstance(number, list) else [number]
    return []


def _arrays(encoding: Any) -> Encoded:
    ids = np.array(encoding.ids, dtype=np.int32)
    flat = np.fromiter(chain.from_iterable(encoding.offsets), dtype=np.int32, count=2 * len(ids))
    return Encoded(ids, flat[::2], flat[1::2])


def _rebuilt(backend: Tokenizer, *, keep_added_tokens: bool) -> Tokenizer:
    """Return a copy that adds and cuts nothing; without added tokens when asked to.

    The vocabulary, nearly all of a tokenizer's JSON, is copied as text: to read and write it takes a second for large ones.
    """
    from tokenizers import Tokenizer

    whole = backend.to_str()
    settings, model = _without_model(whole)
    settings |= {"post_processor": None, "truncation": None, "padding": None}
    if not keep_added_tokens:
        settings["added_tokens"] = []
    return Tokenizer.from_str(f"{json.dumps(settings)[:-1]}, {model}")


def _without_model(text: str) -> tuple[dict[str, Json], str]:
    """Divide a tokenizer's JSON into its settings and the text of what is left: `"model": ...}`."""
    decoder = json.JSONDecoder()
    settings: dict[str, Json] = {}
    at = 1
    while not text.startswith('"model":', at):
        key, at = decoder.raw_decode(text, at)
        settings[key], at = decoder.raw_decode(text, at + 1)  # behind the colon
        at += 1  # behind the comma
    return settings, text[at:]
