"""What is wrong with a configuration, in the user's words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from tutelage.errors import ConfigError
from tutelage.redact import redact

# What other trainers call it, for people who bring their habits.
_ELSEWHERE = {
    "base_model": "model.path",
    "batch_size": "train.batch_sequences",
    "bf16": "train.precision",
    "chat_template": "model.template",
    "cutoff_len": "data.max_tokens",
    "dataset": "data.train",
    "datasets": "data.train",
    "finetuning_type": "train.method",
    "fp16": "train.precision",
    "gradient_accumulation_steps": "train.batch_tokens",
    "gradient_clipping": "train.clip_grad_norm",
    "lora_alpha": "train.lora.alpha",
    "lora_dropout": "train.lora.dropout",
    "lora_r": "train.lora.rank",
    "lora_rank": "train.lora.rank",
    "lora_target": "train.lora.targets",
    "lora_target_modules": "train.lora.targets",
    "lr": "train.learning_rate",
    "lr_scheduler": "train.schedule",
    "lr_scheduler_type": "train.schedule",
    "max_grad_norm": "train.clip_grad_norm",
    "max_length": "data.max_tokens",
    "max_seq_len": "data.max_tokens",
    "max_seq_length": "data.max_tokens",
    "micro_batch_size": "train.micro_tokens",
    "model_name_or_path": "model.path",
    "neftune_noise_alpha": "train.neftune_alpha",
    "noisy_embedding_alpha": "train.neftune_alpha",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "optim": "train.learning_rate",
    "output_dir": "run.dir",
    "per_device_train_batch_size": "train.batch_sequences",
    "sample_packing": "train.packing",
    "save_steps": "train.checkpoint_every_steps",
    "sequence_len": "data.max_tokens",
    "eval_steps": "train.evaluate_every_steps",
    "val_set_size": "data.held_out_fraction",
    "warmup_ratio": "train.warmup_fraction",
    "warmup_steps": "train.warmup_fraction",
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where it was written, what, and the mend."""

    origin: str
    what: str
    mend: str


def raise_all(problems: Sequence[Problem]) -> None:
    """Raise one ConfigError that names every problem; do nothing when there is none."""
    if len(problems) == 1:
        raise ConfigError(f"{problems[0].origin}: {problems[0].what}", mend=problems[0].mend)
    if problems:
        lines = [
            f"  {problem.origin}: {problem.what}" + (f" ({problem.mend})" if problem.mend else "")
            for problem in problems
        ]
        raise ConfigError(
            "\n".join([f"{len(problems)} problems in the configuration:", *lines]),
            mend="`tutelage config explain` lists every key with its meaning",
        )


def unknown_key(key: str, section: str, siblings: Iterable[str], all_keys: Iterable[str], origin: str) -> Problem:
    """Return the problem of a key that is not in the schema, with the nearest key that is."""
    full = f"{section}.{key}" if section else key
    nearest = _nearest(key, section, list(siblings), list(all_keys))
    meant = " or ".join(f"`{name}`" for name in nearest)
    mend = f"did you mean {meant}?" if meant else f"keys here: {', '.join(siblings)}"
    return Problem(origin, f"unknown key `{full}`", mend)


def secret(key: str, origin: str, kind: str) -> Problem:
    """Return the problem of a value in which a secret stands; it is not shown, as configurations are stored and printed."""
    mend = "take it out of the configuration, and give it in the environment, as HF_TOKEN for the Hub"
    return Problem(origin, f"`{key}` holds {kind}, and a configuration is stored with its run", mend)


def _nearest(key: str, section: str, siblings: list[str], all_keys: list[str]) -> list[str]:
    """Return the keys that may be meant: a slip in the key, a key of another section, or another trainer's word for it."""
    prefix = f"{section}." if section else ""
    by_last = _by_last_word(all_keys)
    slips = [prefix + name for name in siblings if _one_edit_apart(key, name)][:1]
    elsewhere = [by_last[key]] if key in by_last else []
    if slips or elsewhere:
        return slips + elsewhere
    if key in _ELSEWHERE:
        return [_ELSEWHERE[key]]
    if close := get_close_matches(key, siblings, 1, cutoff=0.75):
        return [prefix + close[0]]
    if close := get_close_matches(key, list(by_last), 1, cutoff=0.75):
        return [by_last[close[0]]]
    return [prefix + close for close in get_close_matches(key, siblings, 1, cutoff=0.5)]


def _by_last_word(all_keys: list[str]) -> dict[str, str]:
    """Return the full key, or the section, for every last word; the first of the schema where several end alike."""
    found: dict[str, str] = {}
    for dotted in all_keys:
        parts = dotted.split(".")
        for length in range(1, len(parts) + 1):
            found.setdefault(parts[length - 1], ".".join(parts[:length]))
    return found


def _one_edit_apart(word: str, other: str) -> bool:
    """Whether one letter left out, put in, exchanged, or swapped with its neighbour makes `other` of `word`.

    Example:
        >>> [_one_edit_apart(word, "rank") for word in ("rnk", "rannk", "rink", "rnak", "bonk")]
        [True, True, True, True, False]
    """
    if abs(len(word) - len(other)) > 1 or word == other:
        return False
    start = next((at for at, pair in enumerate(zip(word, other, strict=False)) if pair[0] != pair[1]), None)
    if start is None:  # one is the beginning of the other
        return True
    rest, wanted = word[start:], other[start:]
    return rest[1:] == wanted or rest == wanted[1:] or rest[1:] == wanted[1:] or (rest[1::-1] + rest[2:]) == wanted


def wrong_value(key: str, error: Mapping[str, Any], origin: str) -> Problem:
    """Return the problem behind one entry of pydantic's `ValidationError.errors()`."""
    value = error.get("input")
    context: Mapping[str, Any] = error.get("ctx") or {}
    if error["type"] == "missing":
        return Problem(origin, f"`{key}` is missing", "add it")
    wants, mend = _expectation(str(error["type"]), context, value)
    if wants is None:
        return Problem(origin, f"`{key}`: {context.get('error') or error['msg']}", "")
    return Problem(origin, f"`{key}` is {_show(value)}, but must be {wants}", mend or f"give {wants}")


def _expectation(kind: str, context: Mapping[str, Any], value: Any) -> tuple[str | None, str]:
    bounds = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}
    phrases = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}
    if kind in bounds:
        bound = bounds[kind]
        return f"{phrases[bound]} {context[bound]:g}", "give another number"
    if kind in ("enum", "literal_error"):
        expected = str(context["expected"])
        options = [option.strip(" '") for option in expected.replace(" or ", ", ").split(",")]
        close = get_close_matches(str(value), options, 1, cutoff=0.5)
        return f"one of {', '.join(options)}", f"did you mean `{close[0]}`?" if close else ""
    if kind in ("int_parsing", "int_type", "int_from_float"):
        return "a whole number", ""
    if kind in ("float_parsing", "float_type", "finite_number"):
        return "a number", ""
    if kind in ("bool_parsing", "bool_type"):
        return "true or false", ""
    if kind == "string_type":
        return "text", "put it in quotes" if isinstance(value, int | float) else ""
    if kind in ("list_type", "tuple_type"):
        return "a list", "write it as [a, b] or as lines that begin with `- `"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "a section with keys of its own", "write `key: value` lines below it, indented"
    return None, ""


def _show(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return "a section" if value else "empty"
    if isinstance(value, bool):
        return str(value).lower()
    text = redact(repr(value))  # as a whole: half a secret has no shape any more
    return text if len(text) <= 60 else text[:57] + "..."
