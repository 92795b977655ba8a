"""Low-rank adapters through peft: which weights train, and how they are loaded and folded into the model.

Only adapter weights require a gradient. When the chat template brought new tokens, a frozen embedding would leave the
stop token unlearnable, so the rows of exactly those tokens train too (peft's `trainable_token_indices`, in the
embedding and, where it is not tied to it, in the head). Training whole tables instead (`modules_to_save`) would move
the rows of all other tokens and store them all; this way the base's own rows stay as they are, bit for bit.

Plain peft reads the result: `AutoPeftModelForCausalLM.from_pretrained(folder)` grows the base to the adapter's
tokenizer by itself; with `PeftModel` call `base.resize_token_embeddings(len(tokenizer))` first.
"""

from __future__ import annotations

import tutelage.model.hub_kernels  # noqa: F401  # before peft, which imports bitsandbytes

# isort: split
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tutelage.config.schema import LoraConfig
from tutelage.errors import ModelError
from tutelage.model.locate import nearest
from tutelage.model.lora_linear import fuse_lora_layers
from tutelage.model.token_rows import replace_rows_only

ALL_LINEAR = "all-linear"


def add_lora(model: PreTrainedModel, cfg: LoraConfig, *, seed: int = 0, new_ids: Sequence[int] = ()) -> PeftModel:
    """Freeze `model` and put trainable low-rank adapters into it; `new_ids` are tokens whose rows train as well.

    The adapters start as an exact no-op (B = 0), drawn from `seed`.

    Raises: ModelError when `cfg.targets` names modules that the model does not have, or that peft cannot adapt.
    """
    targets = cfg.targets if isinstance(cfg.targets, str) else list(cfg.targets)
    if targets != ALL_LINEAR:
        targets = [targets] if isinstance(targets, str) else targets
        _require_targets(model, targets)
    peft_config = PeftLoraConfig(
        task_type="CAUSAL_LM",
        r=cfg.rank,
        lora_alpha=cfg.alpha,
        lora_dropout=cfg.dropout,
        target_modules=targets,
        use_rslora=cfg.rslora,
        use_dora=cfg.dora,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2 stores [in, out]
        trainable_token_indices=_rows_to_train(model, new_ids),
        revision=getattr(model.config, "_commit_hash", None),
    )
    try:
        with torch.random.fork_rng(devices=[]), _peft_warnings_off():
            torch.manual_seed(seed)
            adapted = get_peft_model(model, peft_config)
    except ValueError as error:
        raise ModelError(
            f"peft cannot adapt {type(model).__name__} so: {str(error).strip().splitlines()[0]}",
            mend=f"choose other train.lora.targets, from {', '.join(linear_modules(model))}",
        ) from error
    _make_cheap(adapted)
    return adapted


def load_adapter(model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
    """Put the adapter of `folder` on its base `model`, which is first grown to the adapter's vocabulary.

    Only a `trainable` one runs through the layers of `lora_linear.py` and `token_rows.py`; any other through peft's own.

    Raises: ModelError when the adapter does not fit the model.
    """
    _grow(model, _vocabulary_rows(folder))
    try:
        with _peft_warnings_off():
            adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable, local_files_only=True)
    except (ValueError, RuntimeError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise ModelError(
            f"the adapter {folder} does not fit its base model: {str(error).strip().splitlines()[0]}",
            mend="check base_model_name_or_path in its adapter_config.json",
        ) from error
    if trainable:
        _make_cheap(adapted)
    return adapted


def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """Fold the adapter into the weights and return the plain model, the very one inside `model`, changed in place."""
    with _peft_warnings_off():
        merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    return merged


def trainable_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return name and parameter of what trains, each tied parameter once, in the order of the module tree."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def is_adapted(model: nn.Module) -> bool:
    """Whether `model` carries peft adapters."""
    return isinstance(model, PeftModel)


def linear_modules(model: nn.Module) -> list[str]:
    """Return the distinct last names of the modules that an adapter can go into, such as q_proj."""
    linear = (nn.Linear, Conv1D)
    return sorted({name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, linear)})


def _make_cheap(adapted: PeftModel) -> None:
    fuse_lora_layers(adapted)
    replace_rows_only(adapted)


def _require_targets(model: nn.Module, targets: list[str]) -> None:
    paths = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    for target in targets:
        if not any(path == target or path.endswith(f".{target}") for path in paths):
            names = linear_modules(model)
            raise ModelError(
                f"train.lora.targets: the model has no linear module {target!r}{nearest(target, names)}",
                mend=f"choose from {', '.join(names)}, or {ALL_LINEAR}",
            )


def _rows_to_train(model: PreTrainedModel, new_ids: Sequence[int]) -> dict[str, list[int]] | None:
    if not new_ids:
        return None
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    modules = [embedding]
    if head is not None and head.weight is not embedding.weight:
        modules.append(head)
    names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    if getattr(head, "bias", None) is not None:
        raise ModelError(
            f"{type(model).__name__} has a head with a bias, for which peft cannot train rows of new tokens",
            mend="use a template without new tokens (model.template), or train.method: full",
        )
    return {names[id(module)]: sorted(new_ids) for module in modules}


@torch.no_grad()
def _grow(model: PreTrainedModel, needed: int) -> None:
    """Give the tokens that the adapter brings a row, that of an average token; the adapter then replaces it."""
    rows = model.get_input_embeddings().weight.shape[0]
    if needed <= rows:
        return
    with torch.random.fork_rng(devices=[]):
        model.resize_token_embeddings(needed, mean_resizing=False)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        module.weight[rows:] = module.weight[:rows].mean(dim=0)


def _vocabulary_rows(folder: Path) -> int:
    """Rows that the adapter's own tokenizer needs; 0 when it brings none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return 0
    vocabulary: dict[str, int] = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    return max(vocabulary.values(), default=-1) + 1


@contextmanager
def _peft_warnings_off() -> Iterator[None]:
    """Silence advice of peft on matters that are decided and tested here (tied embeddings, Conv1D, saved rows)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"peft\..*")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft asks for it
        yield
