from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tutelage.files.manifest import sha256_file
from tutelage.train.pieces import DTYPES, hold, open_pieces, write_pieces

SHAPES = {"matrix": (3, 5), "number": (), "nothing": (0, 4), "one": (1,), "cube": (2, 3, 4)}


def tensors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        f"{name}/{dtype}": (100 * torch.randn(shape, generator=draw)).abs().to(dtype)
        for name, shape in SHAPES.items()
        for dtype in DTYPES
    }


def test_any_reader_of_safetensors_reads_what_was_written_whatever_type_and_shape(tmp_path: Path) -> None:
    written = tensors()
    ((name, digest),) = write_pieces(tmp_path, "weights", hold(written, copied=False), together=False).items()
    assert (digest.size, digest.sha256) == ((tmp_path / name).stat().st_size, sha256_file(tmp_path / name))
    with safe_open(tmp_path / name, framework="pt") as file:
        assert set(file.keys()) == written.keys()
        for key, tensor in written.items():
            read = file.get_tensor(key)
            assert read.dtype == tensor.dtype and torch.equal(read, tensor), key


def test_every_tensor_is_aligned_to_its_elements(tmp_path: Path) -> None:
    write_pieces(tmp_path, "weights", hold(tensors(), copied=False), together=False)
    content = (tmp_path / "weights.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    assert (8 + length) % 8 == 0
    for key, facts in header.items():
        if key != "__metadata__":
            assert facts["data_offsets"][0] % tensors()[key].element_size() == 0


def test_tensors_that_are_views_are_written_in_their_own_order(tmp_path: Path) -> None:
    matrix = torch.arange(12.0).reshape(3, 4)
    write_pieces(tmp_path, "weights", hold({"turned": matrix.t(), "part": matrix[:, 1]}, copied=False), together=False)
    with open_pieces(tmp_path, "weights") as pieces:
        assert torch.equal(pieces.part_of("turned", torch.empty(4, 3)), matrix.t())
        assert torch.equal(pieces.part_of("part", torch.empty(3)), matrix[:, 1])


@pytest.mark.parametrize("copied", [False, True])
def test_copies_stay_as_they_were(copied: bool) -> None:
    weight = torch.zeros(3)
    held = hold({"weight": weight}, copied=copied)
    weight += 1
    assert torch.equal(held.parts["weight"], torch.zeros(3)) == copied
    assert held.num_bytes == 12
