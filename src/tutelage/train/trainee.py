"""The model that is trained: loaded or made, its vocabulary grown, its adapters added, on its device."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch

from tutelage.config.schema import Config, Method, Parallel, Precision, Quantisation
from tutelage.errors import ConfigError
from tutelage.model.adapters import add_lora, is_adapted
from tutelage.model.attention import AttentionChoice, choose_attention, register_attention
from tutelage.model.load import build_from_config, grow_embeddings, load_model, read_config, set_dropout
from tutelage.model.locate import ModelFolder, locate_model
from tutelage.model.lora_linear import narrow_frozen_matrices
from tutelage.model.quantise import num_values
from tutelage.parallel import agree
from tutelage.parallel.spread import SpreadChoice, choose_spread, place_model


class Start(StrEnum):
    """Where the weights come from: the model folder, or chance (pre-training from nothing)."""

    WEIGHTS = "weights"
    RANDOM = "random"


@dataclass(frozen=True)
class Trainee:
    """A model ready for its first step, in training mode. `folder` is where its base was found."""

    model: torch.nn.Module
    attention: AttentionChoice
    spread: SpreadChoice
    folder: Path
    commit: str | None

    @property
    def num_parameters(self) -> int:
        """All parameters, tied ones once."""
        return sum(num_values(p) for p in self.model.parameters())

    @property
    def num_trainable(self) -> int:
        """Parameters that the optimiser moves."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)


def context_tokens(model: torch.nn.Module) -> int | None:
    """Return the longest sequence that the architecture was made for, where it says so."""
    text = model.config.get_text_config()  # type: ignore[operator,union-attr]
    limit = getattr(text, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def require_room(model: torch.nn.Module, longest_tokens: int) -> None:
    """Refuse documents longer than the model's context.

    Raises:
        ConfigError: with the mend.
    """
    limit = context_tokens(model)
    if limit is not None and longest_tokens > limit:
        raise ConfigError(
            f"the longest document has {longest_tokens:,} tokens, more than the model's context of {limit:,}",
            mend=f"data.max_tokens={limit} with data.too_long=drop or drop_oldest_turns",
        )


def make_trainee(
    config: Config, *, start: Start, device: torch.device, precision: Precision, new_ids: tuple[int, ...] = ()
) -> Trainee:
    """Load or make the model of `config` and get it ready to train.

    `new_ids` are the tokens that the chat template brought: they get embedding rows of their own.
    Weights are fp32 (the master weights; autocast casts them where it pays), unless `precision` is `bf16_pure`. Under `bf16` the
    frozen matrices below adapters, which need no master, are bf16: such a model runs under autocast only.
    Where `train.parallel` is `shard`, the processes of a machine take turns, so that its memory holds one whole model at a time.

    Raises:
        ConfigError: full fine-tuning is asked of an adapter, or quantisation of anything but adapters over a whole model.
    """
    with agree.in_turn() if config.train.parallel is Parallel.SHARD else nullcontext():
        return _make_trainee(config, start, device, precision, new_ids)


def _make_trainee(
    config: Config, start: Start, device: torch.device, precision: Precision, new_ids: tuple[int, ...]
) -> Trainee:
    register_attention()
    is_quantised = config.model.quantisation is not Quantisation.NONE
    if is_quantised and (config.train.method is not Method.LORA or start is Start.RANDOM):
        raise ConfigError(
            f"model.quantisation={config.model.quantisation.value} keeps weights that cannot learn, and here they should",
            mend="train.method=lora",
        )
    source = locate_model(config.model.path, revision=config.model.revision, weights=start is Start.WEIGHTS)
    architecture = read_config(source)
    attention = choose_attention(architecture, device, config.model.attention)
    dtype = torch.bfloat16 if precision is Precision.BF16_PURE else torch.float32
    tensor_parallel = agree.world_size() > 1 and config.train.parallel is Parallel.TENSOR
    if tensor_parallel:
        _require_weights_as_they_are(config, start, source, new_ids)
    if start is Start.RANDOM:
        if config.model.dropout is not None:
            set_dropout(architecture, config.model.dropout)
        model = build_from_config(architecture, seed=config.train.seed, attention=attention.name).to(dtype)
    else:
        model = load_model(
            config.model,
            device=device if is_quantised else "cpu",
            dtype=dtype,
            attention=attention.name,
            train_adapter=True,
            products=torch.float32 if precision is Precision.FP32 else torch.bfloat16,
            tensor_parallel=tensor_parallel,
        ).model
    if is_adapted(model) and config.train.method is Method.FULL:
        raise ConfigError(
            f"{config.model.path} is an adapter, and train.method=full would train its base",
            mend="train.method=lora goes on with the adapter; `tutelage merge` makes a plain model to tune in full",
        )
    if not is_adapted(model):
        grow_embeddings(model, new_ids, seed=config.train.seed)
        if config.train.method is Method.LORA:
            model = add_lora(model, config.train.lora, seed=config.train.seed, new_ids=new_ids)
    if precision is Precision.BF16:
        narrow_frozen_matrices(model, torch.bfloat16)
    spread = choose_spread(model, config.train.parallel, device)
    if is_quantised and spread.name is Parallel.SHARD:
        raise ConfigError("packed 4-bit matrices cannot be spread over ranks", mend="train.parallel=replicate")
    model = place_model(model, spread, device, products=torch.bfloat16 if precision is Precision.BF16 else None)
    return Trainee(model.train(), attention, spread, (source.base or source).folder, source.commit)


def _require_weights_as_they_are(config: Config, start: Start, source: ModelFolder, new_ids: tuple[int, ...]) -> None:
    """Refuse tensor parallelism where the model would be changed after it was loaded, by when no process has its weights whole."""
    if config.train.method is Method.LORA or source.is_adapter:
        reason = "adapters are not spread with the matrices that they are added to"
    elif start is Start.RANDOM:
        reason = "each process loads its part of the weights, and here there are none to load"
    elif new_ids:
        reason = f"the chat template brings {len(new_ids)} new tokens, and embeddings in parts cannot grow"
    else:
        return
    raise ConfigError(f"train.parallel=tensor does not work here: {reason}", mend="train.parallel=shard")
