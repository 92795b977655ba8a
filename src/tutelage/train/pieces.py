"""Tensors of a checkpoint in as many files as ranks wrote them, read back by any number of ranks.

Every file is safetensors. One process writes `weights.safetensors`; the ranks of a sharded model write `weights-00000-of-00002.safetensors`
and so on, each the parts that it holds, with a note in the file's header of where they begin. Whoever reads takes what it needs from
whichever files have it, and holds nothing else in memory.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tutelage.errors import RunDirError
from tutelage.files.atomic import Digest, write_stream
from tutelage.parallel import agree
from tutelage.parallel.shard import own_part, place_of_part, spread_over_ranks

PLACES = "places"
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}
"""What a checkpoint may hold, under the names of the safetensors format."""
ALIGNMENT = 8  # of the data in the file: the header is filled up with spaces


@dataclass(frozen=True)
class Held:
    """What this rank is to write of some tensors: its part of each by name, and where in the whole that part begins."""

    parts: Mapping[str, Tensor]
    places: Mapping[str, list[int]]
    num_bytes: int
    """Size of the whole tensors, of which all ranks together write every byte once."""


def hold(tensors: Mapping[str, Tensor], *, copied: bool) -> Held:
    """Return what this rank is to write of `tensors`; those that every rank holds whole, the main rank writes.

    With `copied` the parts are in memory of the host that nothing else writes to; otherwise they are the tensors themselves.
    """
    places: dict[str, list[int]] = {}
    parts: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        part = own_part(tensor.detach())
        if (spread_over_ranks(tensor) and part.numel()) or (not spread_over_ranks(tensor) and agree.is_main()):
            parts[name] = _copy(part) if copied else part
            places[name] = [along.start for along in place_of_part(tensor)]
    return Held(parts, places, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))


def write_pieces(staging: Path, stem: str, held: Held, *, together: bool) -> dict[str, Digest]:
    """Write a file of what this rank holds and return its name and digest. `together` says that every rank writes one.

    Raises: OSError when the disk is full.
    """
    which = f"-{agree.rank():05d}-of-{agree.world_size():05d}" if together else ""
    name = f"{stem}{which}.safetensors"
    return {name: write_stream(staging / name, _safetensors(held))}


def _safetensors(held: Held) -> Iterator[memoryview]:
    """Yield the bytes of a safetensors file: its length, its header, and the tensors, one at a time on the host.

    Source: the format's description in the README of the safetensors project. The largest elements come first, so that each tensor is
    aligned to its own.
    """
    names = sorted(held.parts, key=lambda name: (-held.parts[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {PLACES: json.dumps(held.places)}}
    end = 0
    for name in names:
        part = held.parts[name]
        begin, end = end, end + part.numel() * part.element_size()
        header[name] = {"dtype": DTYPES[part.dtype], "shape": list(part.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    yield memoryview(struct.pack("<Q", len(text)) + text)
    for name in names:
        flat = held.parts[name].cpu().contiguous().reshape(-1).view(torch.uint8)
        yield flat.numpy().data


def _copy(part: Tensor) -> Tensor:
    return part.to("cpu", copy=True, memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Pieces:
    """The tensors of a checkpoint by name, each in pieces: (open file, where the piece begins in every dimension)."""

    folder: Path
    found: Mapping[str, list[tuple[Any, list[int]]]]

    def part_of(self, name: str, like: Tensor) -> Tensor:
        """Return the part of tensor `name` that this rank holds of `like`.

        Raises:
            RunDirError: the part is not all there, or the whole is of another shape.
        """
        wanted = own_part(like)
        if wanted.ndim == 0:
            return self.scalar(name)
        place, part = place_of_part(like), torch.empty(wanted.shape, dtype=wanted.dtype)
        covered, ends = 0, [0] * like.ndim
        for file, begins in self.found[name]:
            piece = file.get_slice(name)
            of_piece = [slice(begin, begin + size) for begin, size in zip(begins, piece.get_shape(), strict=True)]
            ends = [max(end, along.stop) for end, along in zip(ends, of_piece, strict=True)]
            both = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(place, of_piece, strict=True)]
            if all(along.start < along.stop for along in both):
                part[_within(both, place)] = piece[_within(both, of_piece)].to(part.dtype)
                covered += math.prod(along.stop - along.start for along in both)
        if ends != list(like.shape) or covered != part.numel():
            raise RunDirError(
                f"{self.folder} holds {tuple(ends)} of {name} where the model has {tuple(like.shape)}",
                mend="resume with the same model.path and train.method as before",
            )
        return part

    def scalar(self, name: str) -> Tensor:
        """Return a tensor that every rank holds whole."""
        tensor: Tensor = self.found[name][0][0].get_tensor(name)
        return tensor


@contextmanager
def open_pieces(folder: Path, stem: str) -> Iterator[Pieces]:
    """Open every file of a checkpoint whose name begins with `stem`.

    Raises:
        RunDirError: a file cannot be read.
    """
    paths = sorted([*folder.glob(f"{stem}.safetensors"), *folder.glob(f"{stem}-*-of-*.safetensors")])
    try:
        with ExitStack() as files:
            found: dict[str, list[tuple[Any, list[int]]]] = {}
            for path in paths:
                file = files.enter_context(safe_open(path, framework="pt"))
                places = json.loads((file.metadata() or {}).get(PLACES, "{}"))
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    found.setdefault(name, []).append((file, places[name]))
            yield Pieces(folder, found)
    except (SafetensorError, OSError) as error:
        raise RunDirError(
            f"{folder} cannot be read: {error}", mend="remove this checkpoint and resume again"
        ) from error


def _within(slices: Sequence[slice], outer: Sequence[slice]) -> tuple[slice, ...]:
    return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(slices, outer, strict=True))
