"""Tensors of a checkpoint in as many files as ranks wrote them, read back by any number of ranks.

Every file is safetensors. One process writes `weights.safetensors`; the ranks of a sharded model write `weights-00000-of-00002.safetensors`
and so on, each the rows that it holds, with a note in the file's header of the row at which they begin. Whoever reads takes the rows
that it needs from whichever files have them, and holds no others in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tutelage.errors import RunDirError
from tutelage.parallel import agree
from tutelage.parallel.shard import first_row, own_part, spread_over_ranks

FIRST_ROWS = "first_rows"


def write_pieces(staging: Path, stem: str, tensors: Mapping[str, Tensor], *, together: bool) -> None:
    """Write what this rank holds of `tensors` to a file of its own; those that every rank holds whole, the main rank writes.

    `together` says that every rank writes.
    """
    rows: dict[str, int] = {}
    parts: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        part = own_part(tensor.detach())
        if (spread_over_ranks(tensor) and part.numel()) or (not spread_over_ranks(tensor) and agree.is_main()):
            parts[name], rows[name] = part.cpu().contiguous(), first_row(tensor)
    which = f"-{agree.rank():05d}-of-{agree.world_size():05d}" if together else ""
    save_file(parts, staging / f"{stem}{which}.safetensors", metadata={FIRST_ROWS: json.dumps(rows)})


@dataclass(frozen=True)
class Pieces:
    """The tensors of a checkpoint by name, each in pieces: (open file, first row) in the order of rows."""

    folder: Path
    found: Mapping[str, list[tuple[Any, int]]]

    def part_of(self, name: str, like: Tensor) -> Tensor:
        """Return the rows of tensor `name` that this rank holds of `like`.

        Raises:
            RunDirError: the rows are not all there, or are of another shape.
        """
        wanted = own_part(like)
        if wanted.ndim == 0:
            return self.scalar(name)
        first, parts = first_row(like), []
        last = first + wanted.shape[0]
        for file, start in self.found[name]:
            piece = file.get_slice(name)
            stop = start + piece.get_shape()[0]
            if start < last and first < stop:
                parts.append(piece[max(first, start) - start : min(last, stop) - start])
        found = torch.cat(parts) if parts else wanted.new_empty(0, *wanted.shape[1:])
        if found.shape != wanted.shape:
            raise RunDirError(
                f"{self.folder} holds {tuple(found.shape)} of {name} where the model has {tuple(wanted.shape)}",
                mend="resume with the same model.path and train.method as before",
            )
        return found

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
            found: dict[str, list[tuple[Any, int]]] = {}
            for path in paths:
                file = files.enter_context(safe_open(path, framework="pt"))
                rows = json.loads((file.metadata() or {}).get(FIRST_ROWS, "{}"))
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    found.setdefault(name, []).append((file, rows.get(name, 0)))
            yield Pieces(folder, {name: sorted(pieces, key=lambda piece: piece[1]) for name, pieces in found.items()})
    except (SafetensorError, OSError) as error:
        raise RunDirError(
            f"{folder} cannot be read: {error}", mend="remove this checkpoint and resume again"
        ) from error
