"""Prepared documents on disk: one safetensors file of tokens a stage, memory-mapped when read, and JSON for the rest.

A folder holds everything that preparation found out, and nothing that is code: arrays, books and plain text.
"""

# D documents, T tokens of all documents together

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from tutelage.chat.contract import Check, ContractReport
from tutelage.chat.rendered import Rendered
from tutelage.data.conversation import Conversation, Document, Json, Message, Origin, Role, ToolCall
from tutelage.data.ledger import Ledger
from tutelage.files.atomic import write_text

Trainable: TypeAlias = Conversation | Document

_BOOKS = "books.json"
_DTYPES = {"I64": np.int64, "I32": np.int32, "F32": np.float32, "I8": np.int8}


@dataclass(frozen=True, eq=False)
class Gathered:
    """What reading and rendering the sources gave.

    `documents` are concatenated source after source. `contract` is None when there is no conversation among the records.
    `records` and `held_out_records` are the first ones, without their metadata. `oversized` counts the documents of
    conversations that were longer than `data.max_tokens`, whatever became of them.
    """

    documents: tuple[Rendered, ...]
    held_out: tuple[Rendered, ...]
    ledger: Ledger
    contract: ContractReport | None
    records: tuple[Trainable, ...]
    held_out_records: tuple[Trainable, ...]
    oversized: int = 0


def write_gathered(staging: Path, gathered: Gathered) -> None:
    """Write into an empty staging folder; `read_gathered` gives back the same."""
    _write_documents(staging, "train", gathered.documents)
    _write_documents(staging, "held_out", gathered.held_out)
    contract = gathered.contract
    books = {
        "ledger": gathered.ledger.to_json()["sources"],
        "quarantine": [vars(entry) for entry in gathered.ledger.quarantine],
        "contract": None if contract is None else contract.to_json(),
        "records": [_record_json(record) for record in gathered.records],
        "held_out_records": [_record_json(record) for record in gathered.held_out_records],
        "oversized": gathered.oversized,
    }
    _write_exact(staging / _BOOKS, books)


def read_gathered(folder: Path) -> Gathered:
    """Return what a folder holds; the tokens stay on disk until they are looked at.

    Raises: OSError, ValueError or LookupError when the files are not what `write_gathered` writes.
    """
    books = json.loads((folder / _BOOKS).read_bytes())
    contract = books["contract"]
    return Gathered(
        documents=_read_documents(folder, "train"),
        held_out=_read_documents(folder, "held_out"),
        ledger=Ledger.from_books(books["ledger"], books["quarantine"]),
        contract=None if contract is None else ContractReport(tuple(Check(**check) for check in contract)),
        records=tuple(map(_record, books["records"])),
        held_out_records=tuple(map(_record, books["held_out_records"])),
        oversized=books["oversized"],
    )


def _write_documents(staging: Path, name: str, documents: Sequence[Rendered]) -> None:
    """Write tokens end to end. Shapes: ids, weights, message, part [T]; edges [D + 1]; stage, typed_controls [D]."""
    lengths = np.fromiter(map(len, documents), dtype=np.int64, count=len(documents))
    columns: dict[str, npt.NDArray[Any]] = {
        "edges": np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)]),
        "ids": _end_to_end([document.ids for document in documents], np.int32),
        "weights": _end_to_end([document.weights for document in documents], np.float32),
        "message": _end_to_end([document.message for document in documents], np.int32),
        "part": _end_to_end([document.part for document in documents], np.int8),
        "stage": np.array([document.stage for document in documents], dtype=np.int32),
        "typed_controls": np.array([document.typed_controls for document in documents], dtype=np.int32),
    }
    save_file(columns, staging / f"{name}.safetensors")
    shapes = list(dict.fromkeys((document.source, document.roles) for document in documents))
    number = {shape: index for index, shape in enumerate(shapes)}
    texts = {
        "shapes": shapes,  # source and roles: few differ
        "shape": [number[document.source, document.roles] for document in documents],
        "record_id": [document.record_id for document in documents],
        "where": [document.where for document in documents],
    }
    _write_exact(staging / f"{name}.json", texts)


def _read_documents(folder: Path, name: str) -> tuple[Rendered, ...]:
    columns = _mapped(folder / f"{name}.safetensors")
    texts = json.loads((folder / f"{name}.json").read_bytes())
    shapes = [(source, tuple(roles)) for source, roles in texts["shapes"]]
    ids, weights, message, part = (columns[key] for key in ("ids", "weights", "message", "part"))
    per_document = zip(
        pairwise(columns["edges"].tolist()),
        texts["shape"],
        texts["record_id"],
        texts["where"],
        columns["stage"].tolist(),
        columns["typed_controls"].tolist(),
        strict=True,
    )
    return tuple(
        Rendered(
            ids=ids[start:end],
            weights=weights[start:end],
            message=message[start:end],
            part=part[start:end],
            roles=shapes[shape][1],
            record_id=record_id,
            source=shapes[shape][0],
            where=where,
            stage=stage,
            typed_controls=typed,
        )
        for (start, end), shape, record_id, where, stage, typed in per_document
    )


def _mapped(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the one-dimensional tensors of a safetensors file, mapped into memory; what is written to them is lost."""
    whole = np.asarray(np.memmap(path, dtype=np.uint8, mode="c"))
    begin = 8 + int.from_bytes(whole[:8].tobytes(), "little")
    header = json.loads(whole[8:begin].tobytes())
    header.pop("__metadata__", None)
    return {
        name: whole[begin + facts["data_offsets"][0] : begin + facts["data_offsets"][1]].view(_DTYPES[facts["dtype"]])
        for name, facts in header.items()
    }


def _end_to_end(arrays: Sequence[npt.NDArray[Any]], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype=dtype), *arrays]).astype(dtype, copy=False)


def _write_exact(path: Path, value: Json) -> None:
    """Write JSON from which every string comes back as it was, half characters included."""
    write_text(path, json.dumps(value, ensure_ascii=True))


def _record_json(record: Trainable) -> dict[str, Json]:
    origin = None if record.origin is None else vars(record.origin)
    if isinstance(record, Document):
        return {"text": record.text, "source": record.source, "origin": origin}
    messages = [
        {
            **vars(message),
            "tool_calls": [{**vars(call), "arguments": dict(call.arguments)} for call in message.tool_calls],
        }
        for message in record.messages
    ]
    tools = [dict(tool) for tool in record.tools]
    return {"messages": messages, "tools": tools, "source": record.source, "origin": origin}


def _record(fields: Mapping[str, Json]) -> Trainable:
    source, origin = fields["source"], None if fields["origin"] is None else Origin(**fields["origin"])
    if "text" in fields:
        return Document(fields["text"], source, origin)
    return Conversation(tuple(map(_message, fields["messages"])), tuple(fields["tools"]), source, origin)


def _message(fields: Mapping[str, Json]) -> Message:
    calls = tuple(ToolCall(**call) for call in fields["tool_calls"])
    return Message(**{**fields, "role": Role(fields["role"]), "tool_calls": calls})
