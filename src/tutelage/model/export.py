"""A model written for others: a plain Hugging Face folder, or a peft adapter folder, that answers as it did here.

What others need to get the same answers goes with the weights: tokenizer, chat template, and the tokens that end an answer.
A folder appears whole or not at all, with a manifest of checksums. A merged model is loaded again and compared with the
adapter it was made from before it gets its name.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from tutelage.config.schema import ModelConfig
from tutelage.data.retrieve import recall
from tutelage.errors import ModelError
from tutelage.files.atomic import new_folder
from tutelage.files.manifest import write_manifest
from tutelage.model.adapters import is_adapted, merge_adapter
from tutelage.model.load import load_model, quiet
from tutelage.model.locate import ModelFolder, locate_model

if TYPE_CHECKING:
    from tutelage.chat.template import Template
    from tutelage.chat.tokenizer import ChatTokenizer

# B rows, T tokens, V vocabulary

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "additional_chat_templates",
)
_MANTISSA_BITS = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10}
_DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_COMPARED_ROWS, _COMPARED_TOKENS = 4, 64
_ARITHMETIC_KL = 1e-9  # nats; another order of fp32 additions gives about 1e-12


@dataclass(frozen=True)
class LogitComparison:
    """How far two sets of logits are apart, over `tokens` positions.

    `max_difference` is the largest absolute difference of a logit; `mean_kl` the mean over positions of the divergence of
    the second distribution from the first, in nats; `argmax_agreement` the part of positions with the same likeliest token.
    """

    max_difference: float
    mean_kl: float
    argmax_agreement: float
    tokens: int


@dataclass(frozen=True)
class MergeReport:
    """What merging did to the logits.

    `error` compares the written model, loaded again, with the adapter on its base; `noise` is what random rounding errors
    of the written type do to the written model; `effect` is what the adapter does to its base. A right merge has an error
    of the size of the noise; a useful one an error far below the effect.
    """

    folder: Path
    dtype: torch.dtype
    error: LogitComparison
    noise: LogitComparison
    effect: LogitComparison
    spread: float

    @property
    def dtype_name(self) -> str:
        """The written type, as configurations call it."""
        return _DTYPE_NAMES.get(self.dtype, str(self.dtype))

    @property
    def allowed_difference(self) -> float:
        """Largest difference of a logit that is put down to rounding: of the weights (noise) and of fp32 arithmetic."""
        return 5 * self.noise.max_difference + 1e-4 * self.spread

    @property
    def allowed_kl(self) -> float:
        """Largest mean divergence that is put down to rounding, in nats."""
        return 3 * self.noise.mean_kl + _ARITHMETIC_KL

    @property
    def is_same_model(self) -> bool:
        """Whether the written model is the adapted model, up to rounding."""
        return self.error.max_difference <= self.allowed_difference and self.error.mean_kl <= self.allowed_kl

    @property
    def lost(self) -> float:
        """Error as a part of the adapter's effect (mean divergence); near 1 the rounding hides the training."""
        return self.error.mean_kl / self.effect.mean_kl if self.effect.mean_kl > _ARITHMETIC_KL else 0.0


def save_model(
    model: nn.Module,
    tokenizer: ChatTokenizer,
    template: Template | None,
    folder: Path,
    *,
    stop_ids: Sequence[int] = (),
    about: Mapping[str, Any] | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write `model` with tokenizer, chat template and stop tokens as a folder that transformers (or peft) reads.

    An adapted model is written as a peft adapter folder, any other as safetensors in the type it has in memory.
    `stop_ids` are the tokens that end an answer; generation elsewhere stops at them too. `about` goes into the manifest.
    `weights` are those to write where `model` itself holds a part of them only, by their names in its state dict.

    Raises: RunDirError when `folder` exists already.
    """
    with new_folder(folder) as staging:
        _write_weights(model, staging, weights)
        raw = copy.copy(tokenizer.hf)
        if template is not None and template.source != tokenizer.chat_template:
            raw.chat_template = template.source
        raw.save_pretrained(staging)
        _write_generation_config(model, staging, stop_ids, raw.pad_token_id)
        write_manifest(staging, about=about)


def merge(source: str | Path, out: Path, *, base: str | None = None, dtype: torch.dtype | None = None) -> MergeReport:
    """Fold the adapter `source` (a folder or a run) into its base and write a plain model to `out`.

    The sum is made in fp32 and written as `dtype`, by default the type that the base has on disk. The written model is
    loaded again and its logits compared with those of the adapter on its base; only then does `out` get its name.
    `base` replaces the base model that the adapter names.

    Raises: ModelError when `source` is no adapter or the written model is not the adapted one; RunDirError when `out`
    exists already.
    """
    located = locate_adapter(source, base)
    with new_folder(out) as staging:
        report = _merge_into(staging, located, dtype)
        _require_faithful(located, report)
        about = {"merged_from": str(source), "base": located.base.name if located.base else ""}
        known = recall(located.folder)
        write_manifest(staging, about=about if known is None else {**about, "retrieve": vars(known)})
    return replace(report, folder=out)


def locate_adapter(source: str | Path, base: str | None = None) -> ModelFolder:
    """Find an adapter and its base; `base` replaces the base model that the adapter names.

    Raises: ModelError when `source` is not an adapter.
    """
    located = locate_model(source, base=base)
    if not located.is_adapter:
        raise ModelError(f"{source} is a whole model already; there is no adapter to merge", mend="use it as it is")
    return located


def compare_logits(first_BTV: Tensor, second_BTV: Tensor) -> LogitComparison:
    """Compare two sets of logits of the same tokens, position by position, in fp64."""
    first, second = first_BTV.double().flatten(0, -2), second_BTV.double().flatten(0, -2)
    log_p, log_q = first.log_softmax(dim=-1), second.log_softmax(dim=-1)
    return LogitComparison(
        max_difference=float((first - second).abs().max()),
        mean_kl=max(0.0, float((log_p.exp() * (log_p - log_q)).sum(dim=-1).mean())),
        argmax_agreement=float((first.argmax(dim=-1) == second.argmax(dim=-1)).double().mean()),
        tokens=first.shape[0],
    )


def _merge_into(staging: Path, located: ModelFolder, dtype: torch.dtype | None) -> MergeReport:
    """Write the merged model into `staging` and measure it. One model is in memory at a time."""
    loaded = load_model(ModelConfig(path=str(located.folder)), source=located)
    model: Any = loaded.model
    written = dtype or loaded.stored_dtype
    ids_BT = _ids_to_compare(model)
    adapted = _logits(model, ids_BT)
    with model.disable_adapter():
        plain = _logits(model, ids_BT)
    merged = merge_adapter(model)
    del model, loaded
    _write_weights(merged.to(written), staging)
    _copy_tokenizer(located, staging)
    _copy_generation_config(located, staging)
    del merged
    again: Any = load_model(ModelConfig(path=str(staging))).model
    reloaded = _logits(again, ids_BT)
    _disturb(again, 2.0 ** -(_MANTISSA_BITS.get(written, 23) + 1))
    return MergeReport(
        folder=staging,
        dtype=written,
        error=compare_logits(adapted, reloaded),
        noise=compare_logits(reloaded, _logits(again, ids_BT)),
        effect=compare_logits(plain, adapted),
        spread=float(adapted.std()),
    )


def _require_faithful(located: ModelFolder, report: MergeReport) -> None:
    if not report.is_same_model:
        raise ModelError(
            f"merging {located.folder} changed its logits by up to {report.error.max_difference:.3g} (divergence "
            f"{report.error.mean_kl:.3g} nats), where rounding explains {report.allowed_difference:.3g} "
            f"({report.allowed_kl:.3g}); nothing was written",
            mend="merge with --dtype fp32; if that fails too, keep the adapter as it is and report the model",
        )
    if report.lost > 0.5:
        raise ModelError(
            f"rounding to {report.dtype_name} changes the model {report.lost:.1f} times as much as the adapter "
            f"{located.folder} does; nothing was written",
            mend="merge with --dtype fp32",
        )


def _write_weights(model: Any, staging: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    generation_config = getattr(model, "generation_config", None)
    with quiet():
        if is_adapted(model):
            # The rows of new tokens are saved by themselves (see adapters.py); peft need not ask the Hub whether the
            # vocabulary has grown, nor save whole embedding tables when it has.
            for peft_config in model.peft_config.values():
                if isinstance(peft_config.target_modules, set):  # in an order that changes from process to process
                    peft_config.target_modules = sorted(peft_config.target_modules)
            model.save_pretrained(staging, state_dict=weights, save_embedding_layers=False)
            (staging / "README.md").unlink(missing_ok=True)  # a form with nothing filled in
        else:
            if generation_config is not None:
                model.generation_config = _valid(generation_config)
            try:
                model.save_pretrained(staging, state_dict=weights)
            finally:
                model.generation_config = generation_config


def _write_generation_config(model: Any, staging: Path, stop_ids: Sequence[int], pad_id: int | None) -> None:
    config = copy.deepcopy(getattr(model, "generation_config", None) or GenerationConfig())
    known = config.eos_token_id
    known_ids = [known] if isinstance(known, int) else list(known or [])
    config.eos_token_id = list(dict.fromkeys([*stop_ids, *known_ids])) or None
    if config.pad_token_id is None:
        config.pad_token_id = pad_id
    _valid(config).save_pretrained(staging)


def _valid(config: GenerationConfig) -> GenerationConfig:
    """Return the settings in the form that transformers agrees to save.

    Some published models set a temperature without asking for sampling, which was ignored once and is an error now.
    """
    config = copy.deepcopy(config)
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True
    return config


def _copy_tokenizer(located: ModelFolder, staging: Path) -> None:
    for name in _TOKENIZER_FILES:
        path = located.tokenizer_folder / name
        if path.is_dir():
            shutil.copytree(path, staging / name)
        elif path.is_file():
            shutil.copyfile(path, staging / name)


def _copy_generation_config(located: ModelFolder, staging: Path) -> None:
    """The adapter's settings know the stop tokens of its template; they replace those of the base."""
    path = located.folder / "generation_config.json"
    if path.is_file():
        shutil.copyfile(path, staging / path.name)


def _ids_to_compare(model: Any) -> Tensor:
    """Return token ids [B, T] that touch the whole vocabulary, tokens with rows of their own first of all."""
    rows = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(rows, (_COMPARED_ROWS, _COMPARED_TOKENS), generator=generator)
    new = sorted({i for config in model.peft_config.values() for i in _trained_rows(config)})[:_COMPARED_TOKENS]
    ids[0, : len(new)] = torch.tensor(new, dtype=ids.dtype)
    return ids


def _trained_rows(peft_config: Any) -> list[int]:
    indices = getattr(peft_config, "trainable_token_indices", None) or {}
    lists = indices.values() if isinstance(indices, Mapping) else [indices]
    return [i for one in lists for i in one]


@torch.inference_mode()
def _logits(model: nn.Module, ids_BT: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids_BT, use_cache=False).logits
    return logits.float()


@torch.no_grad()
def _disturb(model: nn.Module, relative: float) -> None:
    """Give each weight a random relative error of up to `relative`: what rounding to the written type does at most."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        error = torch.rand(parameter.shape, generator=generator).mul_(2).sub_(1).mul_(relative)
        parameter.mul_(error.add_(1))
