"""Settings that nothing reads, because another setting leaves them without effect.

A setting without effect is a mistake that nobody sees: a rank of adapters in a run that trains no adapters. Where both were
written in one place, `require_all_read` refuses it and names both. Where the setting comes from below (a preset, or the file
under the command line), or the schema says that the one replaces the other, somebody has decided: the keys of `overruled` go back
to their defaults when a configuration is loaded, so that it never holds a value that does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.config.problems import Problem, raise_all
from tutelage.config.schema import Config, Gate, Method, Schedule


@dataclass(frozen=True)
class Unread:
    """A key, or a section, that nothing reads: because of what the key `decided_by` says, in words `why`.

    `replaced` says that the schema itself gives `decided_by` as what takes its place, so that both may be written side by side.
    """

    key: str
    decided_by: str
    why: str
    mend: str = ""
    replaced: bool = False


def unread(config: Config) -> Iterator[Unread]:
    """Yield every key of the schema that nothing would read in a run of `config`, set or not.

    Switches are no such reasons: what belongs to `sample.count: 0` or `data.cache: off` stays for when it is on again.
    """
    train, data, sample = config.train, config.data, config.sample
    if train.method is not Method.LORA:
        yield Unread("train.lora", "train.method", f"train.method is {train.method.value}", "train.method=lora")
    if not data.held_out and not data.held_out_fraction:
        for key in ("train.early_stopping", "train.evaluate_every_steps", "train.evaluate_every_tokens", "train.gate"):
            yield Unread(key, "data.held_out_fraction", "nothing is held out", "data.held_out_fraction=0.02")
    else:
        yield from _of_gate(train.gate)
    if train.evaluate_every_tokens is not None:
        why = "train.evaluate_every_tokens says when"
        yield Unread(
            "train.evaluate_every_steps", "train.evaluate_every_tokens", why, "train.evaluate_every_tokens=null"
        )
    if data.retrieve.corpus is None:
        yield Unread("data.retrieve", "data.retrieve.corpus", "there is no corpus", "data.retrieve.corpus=texts.txt")
    if train.batch_sequences is not None:
        yield Unread("train.batch_tokens", "train.batch_sequences", "train.batch_sequences replaces it", replaced=True)
    if train.max_steps is not None:
        yield Unread("train.epochs", "train.max_steps", "train.max_steps replaces it", replaced=True)
    if train.schedule is Schedule.CONSTANT:
        yield Unread("train.final_fraction", "train.schedule", "the schedule is constant", "train.schedule=cosine")
    if sample.prompts:
        yield Unread("sample.count", "sample.prompts", "sample.prompts are all that is asked")
    else:
        why = "prompts taken from the data bring their own system message"
        yield Unread("sample.system", "sample.prompts", why, "sample.prompts=['Who are you?']")
    if config.run.dir is not None:
        yield Unread("run.name", "run.dir", "run.dir names the folder", replaced=True)
    if config.model.path == "lab" or Path(config.model.path).is_dir():
        yield Unread("model.revision", "model.path", f"{config.model.path} is no model of the Hub")
    yield from _of_sources(config)


def require_all_read(config: Config, origins: Mapping[str, str]) -> None:
    """Refuse keys that were set, to another value than their default, and that nothing reads.

    Raises: ConfigError that names each, with where it was set, what leaves it without effect, and the mend.
    """
    problems = [
        Problem(
            origin,
            f"`{key}` is set, but nothing reads it: {one.why}",
            f"take it away, or give {one.mend}" if one.mend else f"take it away, or `{one.decided_by}`",
        )
        for one in unread(config)
        for key, origin in _below(one.key, origins)
        if layer(origin) > 0 and not _is_default(config, key)
    ]
    raise_all(problems)


def overruled(config: Config, origins: Mapping[str, str]) -> list[str]:
    """Return the keys that were set, and that nothing reads because of a key that replaces them or was set in a higher place."""
    return [
        key
        for one in unread(config)
        for key, origin in _below(one.key, origins)
        if layer(origin) > 0 and (one.replaced or layer(origin) < layer(origins.get(one.decided_by, "default")))
    ]


def layer(origin: str) -> int:
    """Return how high a value was set: 0 default, 1 preset, 2 file, 3 command line.

    Example:
        >>> layer("default"), layer("preset sft-lora:12"), layer("mine.yaml:3"), layer("command line")
        (0, 1, 2, 3)
    """
    if origin == "default":
        return 0
    return 3 if origin == "command line" else 1 if origin.startswith("preset ") else 2


def _of_gate(gate: Gate) -> Iterator[Unread]:
    answers = gate.style is not None or gate.instruction is not None
    if gate.forgetting is None:
        why = "train.gate.forgetting gives no budget"
        for key in ("most_replay_weight",) if answers else ("most_replay_weight", "on_breach"):
            yield Unread(f"train.gate.{key}", "train.gate.forgetting", why, "train.gate.forgetting=0.03")
    if not answers:
        for key in ("prompts", "max_new_tokens"):
            why = "neither train.gate.style nor train.gate.instruction gives a budget"
            yield Unread(f"train.gate.{key}", "train.gate.style", why, "train.gate.style=0.2")


def _of_sources(config: Config) -> Iterator[Unread]:
    data = config.data
    for part, sources in (("train", data.train), ("held_out", data.held_out)):
        for index, source in enumerate(sources):
            key = f"data.{part}.{index}"
            if Path(source.path).is_file():
                yield Unread(f"{key}.split", f"{key}.path", "a single file has no splits")
            if part == "held_out":
                for name in ("weight", "share", "epochs"):
                    yield Unread(f"{key}.{name}", "data.held_out", "held-out rows are not drawn, each counts once")


def _below(key: str, origins: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, origin in origins.items():
        if name == key or name.startswith(f"{key}."):
            yield name, origin


def _is_default(config: Config, key: str) -> bool:
    """Whether a value is the one it would have if nobody had set it, as most of a configuration written out in full are."""
    value: Any = config
    default: Any = Config()
    for part in key.split("."):
        if part.isdecimal():
            value = value[int(part)]
            default = type(value).model_construct()
        else:
            value, default = getattr(value, part), getattr(default, part, None)
    return bool(value == default)
