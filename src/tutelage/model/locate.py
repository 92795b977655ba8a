"""Where a model is: a local folder, a Hub name, a run, or the one that ships; and whether it is safe to load.

Needs no torch, so that verbs which only handle text can use it. Nothing of a model is read before `refuse_code` and
`refuse_unsafe_weights` have looked at the folder: weights are safetensors or are refused, and no code that comes with a model is
ever run.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tutelage.errors import ModelError, UnsafeError
from tutelage.model.weight_files import read_header

SHIPPED_NAME = "lab"
SHIPPED_FOLDER = Path(__file__).resolve().parents[1] / "lab" / "assets" / "base"

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
ADAPTER_CONFIG_NAME = "adapter_config.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"

_SETTINGS_FILES = (
    "config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    ADAPTER_CONFIG_NAME,
)
# An adapter chooses modules by regular expressions, which a few signs can make run for ever.
_PATTERN_SETTINGS = ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern")
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_REPEAT = re.compile(r"[*+]|\{\d*,")
_MOST_REPEATS = 5
_MOST_JSON_BYTES = 1 << 24  # of a configuration or an index of weights
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.distcp")
HUB_TEXT_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
HUB_WEIGHT_FILES = ("*.safetensors",)
HUB_LEFT_OUT = ("consolidated*", "original/*", "onnx/*", "*/*.safetensors")  # the same weights in other layouts
_CONVERT = (
    'convert it once, on a machine where you trust its author: python -c "import torch; from safetensors.torch import '
    "save_file; save_file({k: v.contiguous().clone() for k, v in torch.load('OLD.bin', weights_only=True).items()}, "
    "'model.safetensors', metadata={'format': 'pt'})\", and remove the old file"
)


@dataclass(frozen=True)
class ModelFolder:
    """A model's files on this machine.

    `name` is what was asked for; `commit` is the Hub commit it resolved to (None for a local folder);
    `base` is the model that an adapter adapts (None for a whole model).
    """

    name: str
    folder: Path
    commit: str | None = None
    base: ModelFolder | None = None

    @property
    def is_adapter(self) -> bool:
        """Whether these are adapter weights on top of `base`."""
        return self.base is not None

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer is: an adapter that brings none of its own uses that of its base."""
        return self.folder if self.has_tokenizer or self.base is None else self.base.folder

    @property
    def has_tokenizer(self) -> bool:
        """Whether tokenizer files lie in `folder` itself."""
        return any((self.folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))


def locate_model(
    name: str | Path, *, revision: str | None = None, weights: bool = True, base: str | None = None
) -> ModelFolder:
    """Find the model called `name`: `lab`, a local folder, a run directory (its `final`), or a Hub name.

    With `weights=False` only what handles text is fetched and required: tokenizer, template and configuration.
    `base` replaces the base model that an adapter names.

    Raises: ModelError when there is no such model; UnsafeError when loading it could run code.
    """
    located = _find_safe(str(name), revision, weights)
    is_adapter = (located.folder / ADAPTER_CONFIG_NAME).is_file()
    if not is_adapter or (not weights and located.has_tokenizer):
        return located
    return replace(located, base=_base_of_adapter(located.folder, base, weights))


def refuse_code(folder: Path) -> None:
    """Refuse a model or tokenizer folder that asks for code to be run.

    Raises: UnsafeError for `auto_map`, for kernels from the Hub, for settings that name a Python module, and for weights named in
    a configuration that are anything but safetensors inside the folder; ModelError for a configuration that is not JSON.
    """
    for name in _SETTINGS_FILES:
        file = folder / name
        if file.is_file():
            for key, value in _settings_in(_read_json(file)):
                _refuse_setting(file, key, value)


def refuse_unsafe_weights(folder: Path) -> None:
    """Refuse weights whose loading could run code, and files that are not the safetensors that they are called.

    Raises: UnsafeError for pickled weights without safetensors, and for weight indices that name anything but safetensors inside
    the folder; ModelError for a damaged safetensors file.
    """
    is_adapter = (folder / ADAPTER_CONFIG_NAME).is_file()
    accepted = (ADAPTER_WEIGHTS_NAME,) if is_adapter else (WEIGHTS_NAME, INDEX_NAME)
    if not any((folder / weights).is_file() for weights in accepted):
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            raise UnsafeError(
                f"{folder} has no safetensors weights, only {', '.join(pickles[:3])}: loading a pickle can run any code",
                mend=_CONVERT,
            )
    shards: list[str] = []
    if (folder / INDEX_NAME).is_file():
        weight_map = _read_json(folder / INDEX_NAME).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ModelError(f"{folder / INDEX_NAME} has no `weight_map`", mend="fetch the model again")
        shards = sorted({str(shard) for shard in weight_map.values()})
        for shard in shards:
            _check_weight_name(folder / INDEX_NAME, shard)
    for name in (*accepted[:1], *shards):
        if (folder / name).is_file():
            read_header(folder / name)


def _settings_in(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every key and value of a configuration, those of its parts (`text_config`) included."""
    pending: list[Any] = [settings]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            yield from part.items()
            pending += part.values()
        elif isinstance(part, list):
            pending += part


def _refuse_setting(file: Path, key: str, value: Any) -> None:
    if key == "auto_map" and value:
        raise UnsafeError(
            f"{file} has an `auto_map`: it asks for Python code that comes with the model to be run",
            mend="tutelage runs no code of a model; where transformers has its own class for this `model_type`, "
            "remove the `auto_map` entry from a local copy, otherwise choose another model",
        )
    if key == "megatron_config" and value:
        raise UnsafeError(
            f"{file} has a `megatron_config`, for which peft would import the Python module `megatron_core` names",
            mend=f"remove both from {file} if the adapter is one of a plain transformers model",
        )
    if key.removeprefix("_").endswith("_implementation"):
        named = list(value.values()) if isinstance(value, dict) else [value]
        if any(isinstance(name, str) and "/" in name for name in named):
            what = "attention" if "attn" in key else "implementation"
            raise UnsafeError(
                f"{file} asks for the {what} kernel {value!r}, which is code fetched from the Hub",
                mend=f"remove that entry from {file}; tutelage chooses the attention itself",
            )
    if key == "transformers_weights":
        _check_weight_name(file, value)


def nearest(name: str, candidates: list[str], *, count: int = 3) -> str:
    """Return "; did you mean a or b?" with the candidates that look like `name`, or an empty string."""
    matches = difflib.get_close_matches(name, candidates, n=count, cutoff=0.5)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""


def _find_safe(name: str, revision: str | None, weights: bool) -> ModelFolder:
    found = _find(name, revision, weights)
    refuse_code(found.folder)
    if weights:
        refuse_unsafe_weights(found.folder)
    return found


def _find(name: str, revision: str | None, weights: bool) -> ModelFolder:
    if name == SHIPPED_NAME:
        if not SHIPPED_FOLDER.is_dir():
            raise ModelError(
                "the base model that ships with tutelage is missing from this installation",
                mend="install the package again, or build it with `tutelage lab model`",
            )
        return ModelFolder(name, SHIPPED_FOLDER)
    path = Path(name).expanduser()
    if path.is_dir():
        return ModelFolder(name, _model_folder_of(path.resolve()))
    if path.exists():
        raise ModelError(f"{name} is a file, not a model folder", mend="give the folder that holds config.json")
    if _HUB_NAME.fullmatch(name) is None:
        raise ModelError(f"there is no model folder {name}{_nearest_folder(path)}", mend="check model.path")
    return _fetch_from_hub(name, path, revision, weights)


def _model_folder_of(path: Path) -> Path:
    """Return `path`, or its `final` folder when `path` is a run directory."""
    final = path / "final"
    if (path / "config.json").is_file() or (path / ADAPTER_CONFIG_NAME).is_file():
        return path
    if final.is_dir():
        return final
    if (path / "run.json").is_file():
        raise ModelError(
            f"{path} is a run that has no result yet", mend="wait for it, or resume it, or give a checkpoint"
        )
    return path


def _nearest_folder(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f" (nor a folder {parent})"
    return nearest(path.name, sorted(child.name for child in parent.iterdir() if child.is_dir()))


def _fetch_from_hub(name: str, path: Path, revision: str | None, weights: bool) -> ModelFolder:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [*HUB_TEXT_FILES, *(HUB_WEIGHT_FILES if weights else ())]
    try:
        folder = Path(
            snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=list(HUB_LEFT_OUT))
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        raise ModelError(
            f"there is no folder {name} here{_nearest_folder(path)}, and the Hub gives no model of that name{at}: "
            f"{str(error).strip().splitlines()[0]}",
            mend="check model.path and model.revision; private models need HF_TOKEN, and no network means a local folder",
        ) from error
    if weights and not any(folder.glob("*.safetensors")):
        raise UnsafeError(f"the Hub has no safetensors weights of {name}; pickles can run any code", mend=_CONVERT)
    return ModelFolder(name, folder, commit=folder.name)  # the cache names a snapshot's folder by its commit


def _base_of_adapter(folder: Path, override: str | None, weights: bool) -> ModelFolder:
    settings = _read_json(folder / ADAPTER_CONFIG_NAME)
    if settings.get("peft_type") != "LORA":
        raise ModelError(
            f"{folder} holds a {settings.get('peft_type')!r} adapter; only LORA adapters are supported",
            mend="merge it into its base model with the tool that made it",
        )
    if weights and not (folder / ADAPTER_WEIGHTS_NAME).is_file():
        raise ModelError(f"{folder} has no {ADAPTER_WEIGHTS_NAME}", mend="save or fetch the adapter again")
    _check_patterns(folder / ADAPTER_CONFIG_NAME, settings)
    if weights:
        _check_ranks(folder, settings)
    name = override or settings.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelError(
            f"{folder / ADAPTER_CONFIG_NAME} does not say which model it adapts",
            mend="set base_model_name_or_path in it to the base model's folder or Hub name",
        )
    revision = settings.get("revision") if override is None else None
    revision = revision if isinstance(revision, str) else None
    try:
        base = _find_safe(_base_name(folder, name), revision, weights)
    except ModelError as error:
        raise ModelError(
            f"the base model of adapter {folder} cannot be found: {error.problem}",
            mend=f"set base_model_name_or_path in {folder / ADAPTER_CONFIG_NAME} to where it is now",
        ) from error
    if (base.folder / ADAPTER_CONFIG_NAME).is_file():
        raise ModelError(f"{folder} adapts another adapter, {base.folder}", mend="merge that one first: tutelage merge")
    return base


def _check_patterns(file: Path, settings: dict[str, Any]) -> None:
    for key in _PATTERN_SETTINGS:
        value = settings.get(key)
        patterns = list(value) if isinstance(value, list | dict) else [value]
        for pattern in map(str, patterns):
            if _REPEATED_GROUP.search(pattern) or len(_REPEAT.findall(pattern)) > _MOST_REPEATS:
                raise UnsafeError(
                    f"{file} has a pattern in `{key}` that could run for ever: {pattern[:80]!r}",
                    mend="name the modules in a list instead",
                )


def _check_ranks(folder: Path, settings: dict[str, Any]) -> None:
    """Require ranks that the stored matrices can have: peft makes matrices of the configured rank before it reads any."""
    sizes = [size for tensor in read_header(folder / ADAPTER_WEIGHTS_NAME).values() for size in tensor.shape]
    patterns = settings.get("rank_pattern")
    for rank in (settings.get("r", 0), *(patterns.values() if isinstance(patterns, dict) else ())):
        if not isinstance(rank, int) or rank > max(sizes, default=rank):
            raise ModelError(
                f"{folder / ADAPTER_CONFIG_NAME} gives the rank {rank!r}, more than any matrix in {ADAPTER_WEIGHTS_NAME} has",
                mend="save or fetch the adapter again",
            )


def _base_name(folder: Path, name: str) -> str:
    """Return the base's name; a relative path that does not exist from here is taken from the adapter's folder.

    An adapter of the shipped model names its folder in the installation that trained it, so that plain peft finds it;
    on another machine it is the shipped model all the same.
    """
    if Path(name).is_dir():
        return name
    if (folder / name).is_dir():
        return str(folder / name)
    if Path(name).parts[-len(_SHIPPED_TAIL) :] == _SHIPPED_TAIL:
        return SHIPPED_NAME
    return name


_SHIPPED_TAIL = ("tutelage", "lab", "assets", "base")


def _check_weight_name(where: Path, name: Any) -> None:
    if name is None:
        return
    inside = isinstance(name, str) and not Path(name).is_absolute() and ".." not in Path(name).parts
    if not inside or not str(name).endswith((".safetensors", ".safetensors.index.json")):
        raise UnsafeError(
            f"{where} names {name!r} as a weight file; only safetensors inside the model's folder are read",
            mend=_CONVERT,
        )


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MOST_JSON_BYTES:
        raise ModelError(f"{path} is larger than any configuration", mend="fetch or write the model again")
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}", mend="fetch or write the model again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object", mend="fetch or write the model again")
    return value
