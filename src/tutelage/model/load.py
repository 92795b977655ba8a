"""Loading a causal language model: safetensors only, no code that comes with it, and every weight accounted for.

located = locate_model("lab")                      # model/locate.py: where it is, and whether it is safe
loaded = load_model(ModelConfig(path="lab"), device="cpu")
loaded.model(input_ids=...)                        # evaluation mode, fp32 weights unless asked otherwise
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from tutelage.config.schema import ModelConfig, Quantisation
from tutelage.errors import ModelError, UnsafeError
from tutelage.model.adapters import load_adapter
from tutelage.model.attention import register_attention, unwrapped
from tutelage.model.locate import INDEX_NAME, WEIGHTS_NAME, ModelFolder, locate_model
from tutelage.model.quantise import keep_backward_possible, nf4_settings
from tutelage.model.weight_files import StoredTensor, read_header
from tutelage.parallel.shard import is_tensor_parallel

_CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_DROPOUT_SETTINGS = (
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_dropout",
    "attn_pdrop",
    "hidden_dropout",
    "hidden_dropout_prob",
    "resid_pdrop",
    "resid_dropout",
    "residual_dropout",
    "activation_dropout",
    "embd_pdrop",
    "embedding_dropout",
    "mlp_dropout",
    "dropout",
)


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, in evaluation mode, and where it came from.

    `model` is a transformers model, or a peft model around one when `source` is an adapter folder.
    `stored_dtype` is the type its weights have on disk; in memory they are what the caller asked for.
    """

    model: PreTrainedModel
    source: ModelFolder
    stored_dtype: torch.dtype


def load_model(
    cfg: ModelConfig,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    train_adapter: bool = False,
    source: ModelFolder | None = None,
    products: torch.dtype = torch.float32,
    tensor_parallel: bool = False,
) -> LoadedModel:
    """Load the model of `cfg`: a local folder, a run, a Hub name, `lab`, or a LoRA adapter folder with its base.

    `attention` names an attention implementation known to transformers (see `model/attention.py`), None takes its choice;
    `train_adapter` leaves the weights of a loaded adapter trainable; `source` is the model's place, when it is known already;
    `products` is the type in which quantised matrices are multiplied; with `tensor_parallel` each process of the run loads its part
    of the matrices, by the plan that the architecture has in transformers.

    Raises: ModelError when the folder is not a whole causal language model; UnsafeError when loading could run code; ConfigError
    when it cannot be quantised here.
    """
    register_attention()
    source = source or locate_model(cfg.path, revision=cfg.revision)
    config = read_config(source)
    if cfg.dropout is not None:
        set_dropout(config, cfg.dropout)
    whole = source.base or source
    how: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention}
    if cfg.quantisation is Quantisation.NF4:
        how |= {"quantization_config": nf4_settings(products), "device_map": {"": device}}
    if tensor_parallel:
        how |= {"tp_plan": "auto"}
    model, stored_dtype = _load_weights(whole.folder, config, how)
    if tensor_parallel:
        model.config.distributed_config = (
            None  # the result is for others, and save_pretrained would wait for all processes
        )
    keep_backward_possible(model)
    # What an adapter of this model will name as its base: a Hub name with its commit rather than a cache folder.
    model.name_or_path = whole.name if whole.commit else str(whole.folder)
    model.config._commit_hash = whole.commit
    if source.is_adapter:
        model = load_adapter(model, source.folder, trainable=train_adapter)
    return LoadedModel(model.to(device).eval(), source, stored_dtype)


def read_config(source: ModelFolder) -> PretrainedConfig:
    """Return the architecture's configuration (of the base model, when `source` is an adapter).

    Raises: ModelError when there is none, or when it is not that of a causal language model in transformers.
    """
    folder = (source.base or source).folder
    if not (folder / "config.json").is_file():
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
        raise ModelError(f"{folder} has no config.json; it holds {names}", mend="give a Hugging Face model folder")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder / 'config.json'} is not a configuration that transformers knows: {_first_line(error)}",
            mend="choose an architecture that is part of transformers, or install a newer transformers",
        ) from error
    _require_causal(folder, config)
    return config


def build_from_config(
    config: str | Path | Mapping[str, Any] | PretrainedConfig, *, seed: int, attention: str | None = None
) -> PreTrainedModel:
    """Make a model with random fp32 weights on the CPU, for pre-training; the same `seed` gives the same weights.

    `config` is a model folder, a config.json file, a mapping with `model_type`, or a configuration object.

    Raises: ModelError when it is not the configuration of a causal language model.
    """
    if isinstance(config, str | Path):
        path = Path(config)
        config = json.loads((path / "config.json" if path.is_dir() else path).read_text())
    if isinstance(config, Mapping):
        settings = dict(config)
        if settings.get("auto_map"):
            raise UnsafeError("the configuration has an `auto_map`: it asks for code to be run", mend="remove it")
        try:
            config = AutoConfig.for_model(settings.pop("model_type", ""), **settings)
        except (ValueError, TypeError) as error:
            raise ModelError(f"not a configuration that transformers knows: {_first_line(error)}") from error
    _require_causal(Path(), config)
    register_attention()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=attention, dtype=torch.float32, trust_remote_code=False
        )
    return model.eval()


def set_dropout(config: PretrainedConfig, probability: float) -> list[str]:
    """Set every dropout setting that the architecture has, before the model is made; return their names.

    Raises: ModelError when the architecture has none.
    """
    text = config.get_text_config()
    names = [name for name in _DROPOUT_SETTINGS if hasattr(text, name)]
    if not names:
        raise ModelError(
            f"{config.model_type} has no dropout settings, so model.dropout cannot be followed",
            mend="leave model.dropout out; with LoRA, train.lora.dropout works on any architecture",
        )
    for name in names:
        setattr(text, name, probability)
    return names


def has_dropout(model: torch.nn.Module) -> bool:
    """Whether anything is dropped in training, by the architecture or by an adapter."""
    text = unwrapped(model).config.get_text_config()
    layers = (module for module in model.modules() if isinstance(module, torch.nn.Dropout))
    return any(getattr(text, name, None) for name in _DROPOUT_SETTINGS) or any(layer.p for layer in layers)


def grow_embeddings(model: PreTrainedModel, new_ids: Sequence[int], *, seed: int = 0) -> int:
    """Give the tokens `new_ids` rows of their own in the embedding and in the head; return how many rows were added.

    Rows are added only where an id lies beyond the last one (many models have spare rows). Every new row becomes the
    mean of the old rows plus a tenth of their spread, drawn from `seed`: an average token to read, of which two can be
    told apart, and to the head no likelier than the average of all tokens, so that the model's other predictions
    hardly change (Hewitt 2021, "Initializing new word embeddings for pretrained language models").
    """
    if not new_ids:
        return 0
    old_rows: int = model.get_input_embeddings().weight.shape[0]
    rows: int = max(old_rows, max(new_ids) + 1)
    if rows > old_rows:
        with torch.random.fork_rng(devices=[]), quiet():
            model.resize_token_embeddings(rows, mean_resizing=False)
    head = model.get_output_embeddings()
    tables = [model.get_input_embeddings().weight]
    if head is not None and head.weight is not tables[0]:
        tables.append(head.weight)
    generator = torch.Generator().manual_seed(seed)
    for table in tables:
        _fill_rows(table, new_ids, old_rows, generator)
    if head is not None and getattr(head, "bias", None) is not None:
        known = sorted(set(range(old_rows)) - set(new_ids))
        head.bias.data[list(new_ids)] = head.bias.data[known].mean()
    return rows - old_rows


@torch.no_grad()
def _fill_rows(table_VH: nn.Parameter, new_ids: Sequence[int], old_rows: int, generator: torch.Generator) -> None:
    known = torch.ones(old_rows, dtype=torch.bool)
    known[[i for i in new_ids if i < old_rows]] = False
    known_KH = table_VH[:old_rows][known.to(table_VH.device)].float()
    noise_NH = torch.randn(len(new_ids), table_VH.shape[1], generator=generator).to(table_VH.device)
    rows_NH = known_KH.mean(dim=0) + 0.1 * known_KH.std(dim=0) * noise_NH
    table_VH[list(new_ids)] = rows_NH.to(table_VH.dtype)


def _require_causal(folder: Path, config: PretrainedConfig) -> None:
    where = f"{folder}: " if folder.parts else ""
    listed = [str(name) for name in config.architectures or []]
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not getattr(config, "is_encoder_decoder", False)
    if not known or (listed and not any(name.endswith(_CAUSAL_ENDINGS) for name in listed)):
        raise ModelError(
            f"{where}model type {config.model_type!r} ({', '.join(listed) or 'no architecture named'}) is no causal language model",
            mend="supervised fine-tuning needs a decoder with a language-model head (an ...ForCausalLM)",
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"{where}the weights are quantised, and quantised weights cannot be trained here",
            mend="use the unquantised model that it was made from",
        )


def _load_weights(
    folder: Path, config: PretrainedConfig, how: Mapping[str, Any]
) -> tuple[PreTrainedModel, torch.dtype]:
    stored = _stored_tensors(folder)
    _require_plausible(folder, config, stored)
    try:
        with quiet():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                **how,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # so that they are named below instead of in a table of all weights
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        mend = "train.parallel=shard" if "tp_plan" in how else "fetch the model again"
        raise ModelError(f"{folder} cannot be loaded: {_first_line(error)}", mend=mend) from error
    _require_complete(folder, info)
    return model, _most_frequent_dtype(stored)


def _require_in_parts(model: PreTrainedModel) -> None:
    if not is_tensor_parallel(model):
        raise ModelError(
            f"{type(model).__name__} has no tensor-parallel plan in this version of transformers",
            mend="train.parallel=shard; plans that keep their parts as DTensors came with transformers 5.23",
        )


def _stored_tensors(folder: Path) -> list[StoredTensor]:
    """Read the header of each weight file, and return what they hold."""
    if (folder / WEIGHTS_NAME).is_file():
        names = [WEIGHTS_NAME]
    elif (folder / INDEX_NAME).is_file():
        names = sorted(set(json.loads((folder / INDEX_NAME).read_text())["weight_map"].values()))
    else:
        raise ModelError(f"{folder} has no {WEIGHTS_NAME}", mend="fetch the model's safetensors files")
    tensors: list[StoredTensor] = []
    for name in names:
        if not (folder / name).is_file():
            raise ModelError(f"{folder} lacks {name}, one of its {len(names)} weight files", mend="fetch it again")
        tensors += read_header(folder / name).values()
    return tensors


def _most_frequent_dtype(tensors: Sequence[StoredTensor]) -> torch.dtype:
    counts = Counter(tensor.dtype for tensor in tensors)
    most = max(counts, key=lambda kind: counts[kind], default="F32")
    return {"F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}.get(most, torch.float32)


def _require_plausible(folder: Path, config: PretrainedConfig, tensors: Sequence[StoredTensor]) -> None:
    """Refuse a configuration that describes a model far larger than its weights, before one of that size is made."""
    text = config.get_text_config()
    elements = sum(math.prod(tensor.shape) for tensor in tensors)
    sizes = {name: getattr(text, name, None) for name in ("num_hidden_layers", "vocab_size", "hidden_size")}
    layers, vocabulary, width = (size if isinstance(size, int) else 0 for size in sizes.values())
    if layers > len(tensors) or vocabulary * width > elements:
        said = ", ".join(f"{name} {size:,}" for name, size in sizes.items() if isinstance(size, int))
        raise ModelError(
            f"{folder / 'config.json'} describes a larger model ({said}) than its weights are: {len(tensors):,} tensors of "
            f"{elements:,} elements",
            mend="check that config.json and the weights belong together, or fetch the model again",
        )


def _require_complete(folder: Path, info: Mapping[str, Any]) -> None:
    problems = {
        "lacks": sorted(info["missing_keys"]),
        "has weights that its architecture does not know:": sorted(info["unexpected_keys"]),
        "has weights of another shape than its config.json says:": sorted(str(k[0]) for k in info["mismatched_keys"]),
    }
    for problem, names in problems.items():
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise ModelError(
                f"{folder} {problem} {', '.join(names[:4])}{more}",
                mend="check that config.json and the weights belong together, or fetch the model again",
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and advice off the screen: what matters is raised or returned."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
