"""Hostile model folders, as a table: what each has that it should not have, and how it is written.

Every entry is made from a copy of a good folder of a tiny model. `canary` is a file that exists once code of the entry has run.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Change = Callable[[Path, Path], None]


@dataclass(frozen=True)
class Hostile:
    """One hostile folder: how it is made from a good one, the verb that meets it, and what the refusal must name.

    `kinds` are the errors that may be raised; empty where the folder is harmless after all and is loaded.
    """

    make: Change
    names: str
    verb: str = "model"
    kinds: tuple[str, ...] = ("UnsafeError", "ModelError")


class Bomb:
    """Touches the canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.canary,)


def pickled(canary: Path, protocol: int) -> bytes:
    return pickle.dumps(Bomb(canary), protocol=protocol)


def zipped(canary: Path) -> bytes:
    """Return what torch.save writes, with a bomb for a state dict."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(canary, 2))
        archive.writestr("archive/version", "3\n")
    return out.getvalue()


PICKLES: Mapping[str, Callable[[Path], bytes]] = {
    **{f"a pickle of protocol {number}": lambda canary, n=number: pickled(canary, n) for number in range(6)},
    "a zip of torch.save": zipped,
}

WITHOUT_SAFETENSORS = (
    "pytorch_model.bin",
    "pytorch_model-00001-of-00002.bin",
    "model.pt",
    "model.pth",
    "model.ckpt",
    "weights.pkl",
    "weights.pickle",
    "__0_0.distcp",
)
BESIDE_SAFETENSORS = (
    "pytorch_model.bin",
    "training_args.bin",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    ".metadata",
)
CONFIGURATIONS = ("config.json", "generation_config.json", "tokenizer_config.json", "adapter_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def edit(path: Path, **changes: object) -> None:
    settings = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**settings, **changes}))


def instead_of_weights(name: str, make: Callable[[Path], bytes]) -> Change:
    def change(folder: Path, canary: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(make(canary))

    return change


def written(name: str, make: Callable[[Path], bytes]) -> Change:
    return lambda folder, canary: (folder / name).write_bytes(make(canary))  # type: ignore[func-returns-value,return-value]


def in_an_index(shard: str, make: Callable[[Path], bytes]) -> Change:
    """Let an index name `shard`, a pickle, as a weight file."""

    def change(folder: Path, canary: Path) -> None:
        (folder / "model.safetensors").unlink()
        place = folder / shard.replace("ABSOLUTE", str(folder.parent))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(make(canary))
        name = shard.replace("ABSOLUTE", str(folder.parent))
        edit(folder / "model.safetensors.index.json", metadata={}, weight_map={"model.norm.weight": name})

    return change


def settings(file: str, **changes: object) -> Change:
    """Change a configuration, with the Python file `theirs.py` beside it that touches the canary when it is imported."""

    def change(folder: Path, canary: Path) -> None:
        touch = f"open({str(canary)!r}, 'w').close()\n"
        for name in ("theirs.py", "modeling_theirs.py", "tokenization_theirs.py", "configuration_theirs.py"):
            (folder / name).write_text(touch + "class Theirs: pass\n")
        edit(folder / file, **changes)

    return change


def adapter(**changes: object) -> Change:
    """Turn the folder into an adapter of the model that it was, with `changes` in its configuration."""

    def change(folder: Path, canary: Path) -> None:
        base = folder / "base"
        base.mkdir()
        for file in [file for file in folder.iterdir() if file.is_file()]:
            file.rename(base / file.name)
        header = {
            f"base_model.model.model.layers.0.self_attn.q_proj.lora_{letter}.weight": shape
            for letter, shape in (("A", [2, 32]), ("B", [32, 2]))
        }
        (folder / "adapter_model.safetensors").write_bytes(safetensors(entries(header)))
        given = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["q_proj"],
            "base_model_name_or_path": str(base),
        }
        told = {key: str(folder) if value == "ITSELF" else value for key, value in changes.items()}
        edit(folder / "adapter_config.json", **{**given, **told})
        (folder / "theirs.py").write_text(f"open({str(canary)!r}, 'w').close()\n")

    return change


def entries(shapes: Mapping[str, list[int]]) -> dict[str, Any]:
    """Return the honest header of fp32 tensors of these shapes."""
    header: dict[str, Any] = {}
    at = 0
    for name, shape in shapes.items():
        size = 4
        for count in shape:
            size *= count
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return header


def safetensors(header: object, *, data: int | None = None) -> bytes:
    """Return a safetensors file with this header, and the zeros that it describes (or `data` bytes)."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    if data is None and isinstance(header, dict):
        data = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    return struct.pack("<Q", len(text)) + text + bytes(data or 0)


def lie(**changes: object) -> bytes:
    """Return a file of two tensors whose header is honest but for these fields of the second one."""
    header = entries({"a": [2, 2], "b": [4]})
    size = header["b"]["data_offsets"][1]
    header["b"] = {key: value for key, value in {**header["b"], **changes}.items() if value is not Ellipsis}
    return safetensors(header, data=size)


_HONEST = safetensors(entries({"a": [2, 2], "b": [4]}))
_TWICE = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
_INSIDE_TWICE = b'{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}'
_SPACES = 9_000_000

HEADER_LIES: Mapping[str, bytes] = {
    "an empty file": b"",
    "seven bytes": b"\0" * 7,
    "no header": struct.pack("<Q", 0),
    "a header of 2 ** 63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "a header of -1 bytes": struct.pack("<q", -1) + b"{}",
    "a header one byte longer than the file": struct.pack("<Q", 3) + b"{}",
    "a length that is not little endian": struct.pack(">Q", len(_HONEST) - 40) + _HONEST[8:],
    "a header of nine megabytes": safetensors(b"{" + b" " * _SPACES + b"}"),
    "a header that is a list": safetensors(b"[]"),
    "a header that is a number": safetensors(b"12345678"),
    "a header that is not JSON": safetensors(b"{'a': 1}"),
    "a header that ends early": safetensors(b'{"a": {"dtype": "F32", "shape"'),
    "a header in Latin-1": safetensors('{"é": {}}'.encode("latin-1")),
    "a header in UTF-16": safetensors('{"a": {}}'.encode("utf-16")),
    "lists in lists without end": safetensors(b'{"a": ' + b"[" * 1_000_000 + b"}"),
    "objects in objects without end": safetensors(b'{"a": ' * 200_000 + b"1" + b"}" * 200_000),
    "a number of a million digits": safetensors(b'{"a": ' + b"9" * 1_000_000 + b"}"),
    "NaN for a tensor": safetensors(b'{"a": NaN}'),
    "a tensor twice": safetensors(_TWICE, data=4),
    "a type twice": safetensors(_INSIDE_TWICE, data=4),
    "a tensor that is null": safetensors(b'{"a": null}'),
    "a tensor without a shape": lie(shape=...),
    "a tensor without offsets": lie(data_offsets=...),
    "a tensor with one field more": lie(code="import os"),
    "offsets beyond the file": lie(shape=[400], data_offsets=[16, 1616]),
    "offsets before the data": lie(data_offsets=[-16, 0]),
    "offsets the wrong way round": lie(data_offsets=[32, 16]),
    "offsets that overlap": lie(data_offsets=[8, 24]),
    "two tensors in one place": lie(data_offsets=[0, 16]),
    "offsets with a gap": lie(shape=[2], data_offsets=[24, 32]),
    "three offsets": lie(data_offsets=[16, 24, 32]),
    "offsets as text": lie(data_offsets=["16", "32"]),
    "offsets as fractions": lie(data_offsets=[16.0, 32.0]),
    "offsets near 2 ** 64": lie(data_offsets=[2**64 - 16, 2**64]),
    "a type that does not exist": lie(dtype="PICKLE"),
    "a type that is a list": lie(dtype=["F32"]),
    "a type of another width": lie(dtype="F64"),
    "a shape of another size": lie(shape=[5]),
    "a shape that overflows": lie(shape=[2**62, 4]),
    "a shape that overflows to zero": lie(shape=[2**32, 2**32]),
    "a negative shape": lie(shape=[-2, -2]),
    "a shape of fractions": lie(shape=[4.0]),
    "a shape of truth values": lie(shape=[True, True, 4]),
    "a shape of a thousand dimensions": lie(shape=[1] * 1000 + [4]),
    "bytes behind the tensors": _HONEST + b"#!/bin/sh\n",
    "bytes missing": _HONEST[:-1],
    "metadata that is a list": safetensors(b'{"__metadata__": []}'),
    "metadata that holds numbers": safetensors(b'{"__metadata__": {"a": 1}}'),
    "a web page": b"<!DOCTYPE html><html>Sign in to continue</html>",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "a GGUF file": b"GGUF\x03\0\0\0" + bytes(64),
}

_MAP = {
    "AutoConfig": "theirs.Theirs",
    "AutoModelForCausalLM": "theirs.Theirs",
    "AutoTokenizer": ["theirs.Theirs", None],
}
_EVER = "(a+)+$"

FOLDERS: Mapping[str, Hostile] = {
    # Pickles, under the names of pickles and under any other.
    **{
        f"{name} that is {what}": Hostile(instead_of_weights(name, make), name, kinds=("UnsafeError",))
        for name in WITHOUT_SAFETENSORS
        for what, make in list(PICKLES.items())[2::4]
    },
    **{
        f"model.safetensors that is {what}": Hostile(
            written("model.safetensors", make), "model.safetensors", kinds=("UnsafeError",)
        )
        for what, make in PICKLES.items()
    },
    **{
        f"{name} that is {what}": Hostile(written(name, make), name)
        for name in CONFIGURATIONS
        for what, make in list(PICKLES.items())[::3]
    },
    **{
        f"{name} of a tokenizer that is {what}": Hostile(
            written(name, make), name if name != "tokenizer.json" else "tokenizer", "tokenizer"
        )
        for name in TOKENIZER_FILES
        for what, make in list(PICKLES.items())[::3]
    },
    **{
        f"{name} beside the weights": Hostile(written(name, PICKLES["a zip of torch.save"]), "", kinds=())
        for name in BESIDE_SAFETENSORS
    },
    "an index that is a pickle": Hostile(
        lambda folder, canary: (
            (folder / "model.safetensors").unlink(),
            (folder / "model.safetensors.index.json").write_bytes(pickled(canary, 4)),
        )[0],
        "model.safetensors.index.json",
    ),
    # Weight files outside of the folder.
    **{
        f"an index that names {shard}": Hostile(
            in_an_index(shard, PICKLES["a pickle of protocol 4"]), "index.json", kinds=("UnsafeError",)
        )
        for shard in ("shard.bin", "../x.safetensors", "../../x.bin", "ABSOLUTE/x.safetensors", "a/../../x.safetensors")
    },
    "an index that names a pickle with a good name": Hostile(
        in_an_index("model-00001-of-00001.safetensors", PICKLES["a pickle of protocol 2"]),
        "model-00001-of-00001.safetensors",
        kinds=("UnsafeError",),
    ),
    "a configuration that names a pickle": Hostile(
        settings("config.json", transformers_weights="x.bin"), "x.bin", kinds=("UnsafeError",)
    ),
    "a configuration that names weights elsewhere": Hostile(
        settings("config.json", transformers_weights="../x.safetensors"), "../x.safetensors", kinds=("UnsafeError",)
    ),
    # Code that comes with the model, or that the model asks for.
    **{
        f"auto_map in {file}": Hostile(settings(file, auto_map=_MAP), "auto_map", verb, kinds=("UnsafeError",))
        for file in ("config.json", "tokenizer_config.json", "generation_config.json", "processor_config.json")
        for verb in ("model",)
    },
    "auto_map of a tokenizer alone": Hostile(
        settings("tokenizer_config.json", auto_map=_MAP), "auto_map", "tokenizer", ("UnsafeError",)
    ),
    "auto_map in a part of the configuration": Hostile(
        settings("config.json", text_config={"auto_map": _MAP}), "auto_map", kinds=("UnsafeError",)
    ),
    "auto_map of a model type of its own": Hostile(
        settings("config.json", model_type="theirs", auto_map=_MAP), "auto_map", kinds=("UnsafeError",)
    ),
    "a model type of its own": Hostile(
        settings("config.json", model_type="theirs", architectures=["Theirs"]), "config.json"
    ),
    "trust_remote_code in the configuration": Hostile(
        settings("config.json", trust_remote_code=True, auto_map=_MAP), "auto_map", kinds=("UnsafeError",)
    ),
    "custom pipelines": Hostile(
        settings("config.json", custom_pipelines={"x": {"impl": "theirs.Theirs"}}), "", kinds=()
    ),
    "a tokenizer class in Python": Hostile(
        settings("tokenizer_config.json", tokenizer_class="theirs.Theirs"), "", "tokenizer", ()
    ),
    "a slow tokenizer class in Python": Hostile(
        settings("tokenizer_config.json", tokenizer_class="os.system", slow_tokenizer_class="theirs.Theirs"),
        "",
        "tokenizer",
        (),
    ),
    "an attention kernel from the Hub": Hostile(
        settings("config.json", _attn_implementation="x/y"), "x/y", kinds=("UnsafeError",)
    ),
    "an attention kernel for a part": Hostile(
        settings("config.json", attn_implementation={"text_config": "x/y:f"}), "x/y:f", kinds=("UnsafeError",)
    ),
    "an attention kernel within a part": Hostile(
        settings("config.json", text_config={"_attn_implementation": "flash|x/y"}), "x/y", kinds=("UnsafeError",)
    ),
    "an experts kernel from the Hub": Hostile(
        settings("config.json", _experts_implementation="x/y"), "x/y", kinds=("UnsafeError",)
    ),
    # Configurations that would take all memory or all time.
    "a hundred million layers": Hostile(
        settings("config.json", num_hidden_layers=10**8), "num_hidden_layers", kinds=("ModelError",)
    ),
    "a vocabulary of a hundred million": Hostile(
        settings("config.json", vocab_size=10**8), "vocab_size", kinds=("ModelError",)
    ),
    "a configuration nested without end": Hostile(
        written("config.json", lambda _: b'{"a": ' * 100_000 + b"1" + b"}" * 100_000),
        "config.json",
        kinds=("ModelError",),
    ),
    "a tokenizer configuration nested without end": Hostile(
        written("tokenizer_config.json", lambda _: b'{"a": ' * 100_000 + b"1" + b"}" * 100_000),
        "tokenizer_config.json",
        "tokenizer",
        ("ModelError",),
    ),
    "a configuration of 20 megabytes": Hostile(
        written("config.json", lambda _: b'{"a": "' + b"x" * 20_000_000 + b'"}'), "config.json", kinds=("ModelError",)
    ),
    "a chat template that is a number": Hostile(
        settings("tokenizer_config.json", chat_template=5), "", "tokenizer", ()
    ),
    # Adapters.
    "an adapter that imports a module": Hostile(
        adapter(megatron_config={"a": 1}, megatron_core="theirs"), "megatron_config", kinds=("UnsafeError",)
    ),
    "an adapter with auto_map": Hostile(adapter(auto_map=_MAP), "auto_map", kinds=("UnsafeError",)),
    **{
        f"an adapter whose {key} runs for ever": Hostile(adapter(**{key: value}), key, kinds=("UnsafeError",))
        for key, value in (
            ("target_modules", _EVER),
            ("exclude_modules", ".*.*.*.*.*.*.*x"),
            ("layers_pattern", [_EVER]),
            ("rank_pattern", {"(.*)*": 2}),
            ("alpha_pattern", {r"(\w+\.?)+!": 2}),
        )
    },
    "an adapter of an enormous rank": Hostile(adapter(r=10**9), "rank", kinds=("ModelError",)),
    "an adapter with an enormous rank for one module": Hostile(
        adapter(rank_pattern={"q_proj": 10**9}), "rank", kinds=("ModelError",)
    ),
    "an adapter of a pickle": Hostile(
        lambda folder, canary: (
            adapter()(folder, canary),
            (folder / "adapter_model.safetensors").unlink(),
            (folder / "adapter_model.bin").write_bytes(pickled(canary, 2)),
        )[0],
        "adapter_model.bin",
    ),
    "an adapter that is a pickle under a good name": Hostile(
        lambda folder, canary: (
            adapter()(folder, canary),
            (folder / "adapter_model.safetensors").write_bytes(zipped(canary)),
        )[0],
        "adapter_model.safetensors",
        kinds=("UnsafeError",),
    ),
    **{
        f"an adapter of the base {name}": Hostile(adapter(base_model_name_or_path=name), "", kinds=("ModelError",))
        for name in ("../../../../etc", "/etc/passwd", "../x", "\0", "file:///etc/passwd", "")
    },
    "an adapter of itself": Hostile(
        adapter(base_model_name_or_path="ITSELF"), "adapts another adapter", kinds=("ModelError",)
    ),
    # Headers that lie.
    **{
        f"a safetensors file with {what}": Hostile(
            written("model.safetensors", lambda _, data=data: data), "model.safetensors"
        )
        for what, data in HEADER_LIES.items()
    },
}


def gzip_bomb(megabytes: int) -> bytes:
    """Return a small file that is one line of so many megabytes."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return b"".join([*(packer.compress(bytes(2**20)) for _ in range(megabytes)), packer.flush()])


def aliases(levels: int) -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, levels)]
    return "\n".join(lines).encode()


# Other files: the verb that meets each, its name, and its content.
INPUTS: Mapping[str, tuple[str, str, Callable[[Path], bytes]]] = {
    **{f"a configuration that is {what}": ("config", "run.yaml", make) for what, make in PICKLES.items()},
    "a configuration with a Python tag": (
        "config",
        "run.yaml",
        lambda canary: f"model: !!python/object/apply:os.system ['touch {canary}']".encode(),
    ),
    "a configuration with a Python name": ("config", "run.yaml", lambda canary: b"model: !!python/name:os.system"),
    "a configuration with a new Python object": (
        "config",
        "run.yaml",
        lambda canary: f"a: !!python/object/new:os.system ['touch {canary}']".encode(),
    ),
    "a configuration with a module": ("config", "run.yaml", lambda canary: b"a: !!python/module:antigravity"),
    "a configuration of aliases of aliases": ("config", "run.yaml", lambda canary: aliases(12)),
    "a configuration of a quarter of a megabyte": (
        "config",
        "run.yaml",
        lambda canary: b"a:\n" + b"- [1, 2]\n" * 29_000,
    ),
    "a configuration of ten megabytes": ("config", "run.yaml", lambda canary: b"# nothing\n" * 1_000_000),
    "a configuration of brackets": ("config", "run.yaml", lambda canary: b"a: " + b"[" * 100_000),
    **{f"rows that are {what}": ("data", "rows.jsonl", make) for what, make in list(PICKLES.items())[2:]},
    "rows that are a pickle called Parquet": ("data", "rows.parquet", PICKLES["a pickle of protocol 4"]),
    "rows compressed from 100 MB": ("data", "rows.jsonl.gz", lambda canary: gzip_bomb(100)),
    "an array compressed from 100 MB": ("data", "rows.json.gz", lambda canary: gzip_bomb(100)),
    "rows of brackets": ("data", "rows.jsonl", lambda canary: b"[" * 1_000_000),
    "an array of brackets": ("data", "rows.json", lambda canary: b"[" * 1_000_000),
    "an array of commas": ("data", "rows.json", lambda canary: b"[" + b"," * 1_000_000 + b"]"),
    "rows of numbers without end": ("data", "rows.jsonl", lambda canary: b'{"a": ' + b"9" * 4_000_000 + b"}"),
}
