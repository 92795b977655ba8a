"""The models that an evaluation compares: loaded as a run loads them, each with the template that it is asked in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tutelage.chat.render import Renderer, RenderOptions
from tutelage.chat.rendered import Rendered
from tutelage.chat.tokenizer import load_tokenizer
from tutelage.config.schema import Config, Layout, ModelConfig
from tutelage.model.attention import NAME, choose_attention
from tutelage.model.load import grow_embeddings, load_model, read_config
from tutelage.model.locate import locate_model
from tutelage.model.probe import probe_isolation
from tutelage.pack.batch import pack_batch


@dataclass(frozen=True, eq=False)
class Subject:
    """A model in evaluation mode with its renderer; `packs` says whether documents of a pack stay apart in it."""

    path: str
    model: torch.nn.Module
    renderer: Renderer
    device: torch.device
    packs: bool

    @property
    def layout(self) -> Layout:
        """How documents are laid out for it."""
        return Layout.PACKED if self.packs else Layout.PADDED


def load_base(config: Config, renderer: Renderer, documents: Sequence[Rendered], device: torch.device) -> Subject:
    """Load the model of `config` as training finds it: with rows for the template's new tokens, which nothing has trained yet.

    `documents` are some that it will read, for the probe whether a pack keeps them apart.
    """
    model = _load(config.model, device)
    grow_embeddings(model, renderer.tokenizer.new_ids, seed=config.train.seed)
    return Subject(config.model.path, model, renderer, device, _keeps_apart(model, documents, device))


def load_tuned(folder: Path, config: Config, documents: Sequence[Rendered], device: torch.device) -> Subject:
    """Load the model in `folder`, a plain one or adapters on their base, with its own tokenizer and template."""
    path = str(folder)
    renderer = Renderer(
        load_tokenizer(locate_model(path, weights=False).tokenizer_folder),
        None,
        RenderOptions.from_config(config.data),
        variables=config.model.template_variables,
    )
    model = _load(ModelConfig(path=path), device)
    return Subject(path, model, renderer, device, _keeps_apart(model, documents, device))


def _load(config: ModelConfig, device: torch.device) -> torch.nn.Module:
    source = locate_model(config.path, revision=config.revision)
    attention = choose_attention(read_config(source), device, config.attention)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model: torch.nn.Module = load_model(
        config, device=device, dtype=dtype, attention=attention.name, source=source
    ).model
    return model


def _keeps_apart(model: torch.nn.Module, documents: Sequence[Rendered], device: torch.device) -> bool:
    """Whether a pack may be used; without documents, or with an attention of another name, rows of a batch are the safe way."""
    if getattr(model.config, "_attn_implementation", "") != NAME or len(documents) < 2:
        return False
    probe = probe_isolation(model, pack_batch(list(documents[:3])).to(device))
    return probe.passed
