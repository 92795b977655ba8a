"""The header of a safetensors file, read strictly before anything else reads the file.

A safetensors file is eight bytes with the length of a header, the header as JSON, and the tensors end to end. What the header
says is checked against the file here, in little time and memory whatever it says; and a file that is something else under this
name is told by its first bytes. Needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tutelage.errors import ModelError, UnsafeError

MOST_HEADER_BYTES = 1 << 23  # some sixty thousand tensors, in one file
_MOST_DIMENSIONS = 16
_LENGTH_BYTES = 8
_METADATA = "__metadata__"

# Bits of one element; types below a byte are packed.
ELEMENT_BITS: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
_PICKLE = "a pickle, which can run any code when it is loaded"
_BEGINNINGS = (
    *((bytes([0x80, protocol]), _PICKLE) for protocol in range(1, 6)),
    (b"PK\x03\x04", "a zip archive, as torch.save writes around a pickle"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"version https://git-lfs", "a Git LFS pointer; the weights themselves were not fetched"),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
    (b"GGUF", "a GGUF file"),
    (b"\x93NUMPY", "a NumPy file"),
)
_REMEDY = "fetch or write the file again; weights of other kinds are converted once with safetensors.torch.save_file"


@dataclass(frozen=True)
class StoredTensor:
    """What the header says of one tensor: its type as safetensors names it, and its shape."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors that a safetensors file holds, by name.

    Raises: UnsafeError when the file is a pickle or an archive under this name; ModelError, which says what is wrong, when its
    header is not one that describes exactly the bytes that follow it.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        beginning = file.read(32)
        length = int.from_bytes(beginning[:_LENGTH_BYTES], "little")
        if length > size - _LENGTH_BYTES or beginning[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{":
            _refuse_other_files(path, beginning)
        if size < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
            raise _damaged(path, f"its header would have {length:,} bytes, and the file has {size:,}")
        if length > MOST_HEADER_BYTES:
            raise _damaged(path, f"its header has {length:,} bytes, more than {MOST_HEADER_BYTES:,}")
        file.seek(_LENGTH_BYTES)
        header = _parsed(path, file.read(length))
    _check_metadata(path, header.pop(_METADATA, {}))
    places = [_place_of(path, name, entry) for name, entry in header.items()]
    _check_places(path, places, size - _LENGTH_BYTES - length)
    return {name: StoredTensor(entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}


def _refuse_other_files(path: Path, beginning: bytes) -> None:
    kind = next((kind for start, kind in _BEGINNINGS if beginning.startswith(start)), None)
    # The oldest pickles are lines of text, and begin with a name to import or an open bracket.
    if kind is None and beginning[:1] in (b"c", b"(") and b"\n" in beginning:
        kind = _PICKLE
    if kind is not None:
        raise UnsafeError(f"{path} is no safetensors file but {kind}", mend=_REMEDY)


def _parsed(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except UnicodeDecodeError:
        raise _damaged(path, "its header is not UTF-8") from None
    except RecursionError:
        raise _damaged(path, "its header is nested without end") from None
    except ValueError as error:
        raise _damaged(path, f"its header is not JSON: {str(error)[:80]}") from None
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a JSON object")
    return header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands in it twice")
    return found


def _check_metadata(path: Path, metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, f"{_METADATA} is not a mapping of text to text")


def _place_of(path: Path, name: str, entry: Any) -> tuple[int, int, str]:
    """Return (begin, end, name) of a tensor in the bytes behind the header, having compared its size with its shape."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"{name[:80]!r} does not have exactly dtype, shape and data_offsets")
    bits = ELEMENT_BITS.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if bits is None:
        raise _damaged(
            path, f"{name[:80]!r} has the type {str(entry['dtype'])[:40]!r}, which safetensors does not have"
        )
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_counts(shape) or len(shape) > _MOST_DIMENSIONS:
        raise _damaged(path, f"{name[:80]!r} has no possible shape")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(path, f"{name[:80]!r} has no possible data_offsets")
    if 8 * (offsets[1] - offsets[0]) != bits * prod(shape):
        raise _damaged(path, f"{name[:80]!r} does not fill the bytes that its data_offsets give it")
    return offsets[0], offsets[1], name


def _are_counts(value: Any) -> bool:
    # JSON has no integers of its own: 1.0 is a float, true a bool, and neither is a count.
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_places(path: Path, places: list[tuple[int, int, str]], size: int) -> None:
    """Require that the tensors lie end to end from the first byte behind the header to the last of the file."""
    at = 0
    for begin, end, name in sorted(places):
        if begin != at:
            what = "overlaps another tensor" if begin < at else "leaves a gap before it"
            raise _damaged(path, f"{name[:80]!r} {what}")
        at = end
    if at != size:
        raise _damaged(path, f"its tensors end at byte {at:,} of {size:,}")


def _damaged(path: Path, what: str) -> ModelError:
    return ModelError(f"{path} is damaged: {what}", mend=_REMEDY)
