"""Answers from a model in this process, as a sampler: nothing to install or to pay, the default."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import nn

from tutelage.chat.render import Renderer
from tutelage.chat.tokenizer import load_tokenizer
from tutelage.config.schema import ModelConfig
from tutelage.data.conversation import Json, Message, Role, content_hash
from tutelage.errors import ModelError
from tutelage.files.manifest import sha256_file
from tutelage.generate.local import Completion, context_limit, generate
from tutelage.generate.sampler import Books, Reply, Request, Sampling
from tutelage.model.load import load_model
from tutelage.model.locate import ModelFolder, locate_model


class LocalSampler:
    """Asks the model at `path`: a folder, a Hub name, a run, or `lab`. It is loaded when there is something to ask.

    A request names the weights by their hash, and the prompt by that of its tokens: a model that was trained on, or another chat
    template, makes other requests.

    Raises: ModelError when the model has no chat template.
    """

    def __init__(self, path: str, sampling: Sampling, *, device: torch.device, batch_rows: int = 64) -> None:
        self._source = locate_model(path)
        self._path = path
        self._sampling = sampling
        self._device = device
        self._batch_rows = batch_rows
        tokenizer = load_tokenizer(self._source.tokenizer_folder)
        if tokenizer.chat_template is None:
            raise ModelError(
                f"{path} has no chat template: it continues texts, and cannot be asked",
                mend="give a model that was tuned on conversations, such as the run of `tutelage demo`",
            )
        self._renderer = Renderer(tokenizer)
        self._prompt_ids = lru_cache(maxsize=4096)(self._renderer.prompt_ids)

    def request(self, messages: Sequence[Message], *, seed: int) -> Request:
        """Return a request with the messages, the hash of their tokens, and every setting."""
        body: dict[str, Json] = {
            "model": self._path,
            "messages": [{"role": str(message.role), "content": message.content} for message in messages],
            "prompt": content_hash(self._prompt_ids(tuple(messages))),
            "max_tokens": self._sampling.max_new_tokens,
            "temperature": self._sampling.temperature,
            "top_p": self._sampling.top_p,
            "seed": seed,
        }
        return Request(self._endpoint, body)

    def most_cost(self, request: Request) -> int:
        """Return 0."""
        return 0

    def cost(self, request: Request, reply: Reply) -> int:
        """Return 0."""
        return 0

    def run(self, requests: Sequence[Request], books: Books) -> None:
        """Answer batches of like length, and book each batch as it is done."""
        prompts = {request.key: self._ids(request) for request in requests}
        limit = context_limit(self._model)
        fitting = []
        for request in sorted(requests, key=lambda request: len(prompts[request.key])):
            if limit is not None and len(prompts[request.key]) >= limit:
                books.refused(request, f"the prompt fills the model's context of {limit} tokens")
            else:
                fitting.append(request)
        for start in range(0, len(fitting), self._batch_rows):
            batch = fitting[start : start + self._batch_rows]
            with books.together():
                for request in batch:
                    books.sent(request)
            said = generate(
                self._model,
                self._renderer.tokenizer,
                [prompts[request.key] for request in batch],
                stop_ids=self._renderer.stop_ids,
                sampling=self._sampling,
                batch_rows=self._batch_rows,
                draws=[request.body["seed"] for request in batch],
                log_probabilities=True,
            )
            with books.together():
                for request, completion in zip(batch, said, strict=True):
                    books.received(request, self._raw(completion, len(prompts[request.key])))

    def _ids(self, request: Request) -> list[int]:
        return self._prompt_ids(
            tuple(Message(Role(turn["role"]), turn["content"]) for turn in request.body["messages"])
        )

    def _raw(self, completion: Completion, prompt_tokens: int) -> Json:
        """Return a completion in the layout of a server."""
        return {
            "model": self._path,
            "choices": [
                {
                    "message": {"role": "assistant", "content": completion.text},
                    "finish_reason": "stop" if completion.stopped else "length",
                    "log_probability": completion.log_probability,
                }
            ],
            "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": len(completion.ids) + completion.stopped},
        }

    @cached_property
    def _endpoint(self) -> str:
        return f"weights:{content_hash(_digests(self._source))}"

    @cached_property
    def _model(self) -> nn.Module:
        dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        loaded: Any = load_model(ModelConfig(path=self._path), device=self._device, dtype=dtype, source=self._source)
        model: nn.Module = loaded.model
        return model


def _digests(source: ModelFolder) -> list[Json]:
    """Return the hash of every file of settings and weights, those of an adapter's base too."""
    files = sorted([*source.folder.glob("*.safetensors"), *source.folder.glob("*.json")])
    return [[file.name, sha256_file(file)] for file in files] + (_digests(source.base) if source.base else [])
