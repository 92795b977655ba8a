"""Prepared documents on disk: safetensors files of so many tokens each, memory-mapped when read, and JSON for the rest.

A folder holds everything that preparation found out, and nothing that is code: arrays, books and plain text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import save_file

from tutelage.chat.contract import Check, ContractReport
from tutelage.chat.documents import Columns, Documents, joined
from tutelage.data.conversation import Conversation, Document, Json, Message, Origin, Role, ToolCall
from tutelage.data.ledger import Ledger
from tutelage.files.atomic import write_text
from tutelage.train.chunks import HELD_OUT, TRAIN, Trainable

SHARD_TOKENS = 8_000_000  # 32 MB of ids

_BOOKS = "books.json"
_DTYPES = {"F64": np.float64, "I64": np.int64, "I32": np.int32, "F32": np.float32, "I8": np.int8, "U8": np.uint8}


@dataclass(frozen=True, eq=False)
class Gathered:
    """What reading and rendering the sources gave.

    `documents` are concatenated source after source. `contract` is None when there is no conversation among the records.
    `records` and `held_out_records` are the first ones, without their metadata. `oversized` counts the documents of
    conversations that were longer than `data.max_tokens`, whatever became of them.
    """

    documents: Documents
    held_out: Documents
    ledger: Ledger
    contract: ContractReport | None
    records: tuple[Trainable, ...]
    held_out_records: tuple[Trainable, ...]
    oversized: int = 0


class Shelf:
    """Takes the documents of one stage as they are made, and puts them on disk a shard at a time.

    No more than a shard is held in memory, unless there is no folder, or its disk refuses: `problem` says so, and what
    could not be written stays in memory.
    """

    def __init__(self, stage: str, folder: Path | None) -> None:
        self.problem = ""
        self._stage = stage
        self._folder = folder
        self._pending: list[Columns] = []
        self._tokens = 0
        self._shards: list[Columns] = []

    def add(self, columns: Columns) -> None:
        """Take the documents that come next."""
        self._pending.append(columns)
        self._tokens += len(columns["ids"])
        if self._tokens >= SHARD_TOKENS:
            self._settle()

    def documents(self) -> Documents:
        """Return all documents, those on disk mapped into memory."""
        if any(len(columns["lengths"]) for columns in self._pending):
            self._settle()
        return Documents(self._shards)

    def _settle(self) -> None:
        shard: Columns = joined(self._pending)
        self._pending, self._tokens = [], 0
        if self._folder is not None and not self.problem:
            try:
                shard = _written(self._folder, f"{self._stage}-{len(self._shards):06d}.safetensors", shard)
            except (OSError, SafetensorError) as error:  # a full disk
                self.problem = str(error)
        self._shards.append(shard)


def _written(staging: Path, name: str, shard: Columns) -> Columns:
    """Return the shard mapped from the file to which it was written."""
    save_file(dict(shard), staging / name)
    return _mapped(staging / name)


def write_books(staging: Path, gathered: Gathered) -> None:
    """Write beside the documents, which shelves have put there; `read_gathered` then gives back the same."""
    contract = gathered.contract
    books = {
        "ledger": gathered.ledger.to_json()["sources"],
        "quarantine": [vars(entry) for entry in gathered.ledger.quarantine],
        "contract": None if contract is None else contract.to_json(),
        "records": [record_to_json(record) for record in gathered.records],
        "held_out_records": [record_to_json(record) for record in gathered.held_out_records],
        "oversized": gathered.oversized,
    }
    _write_exact(staging / _BOOKS, books)


def read_gathered(folder: Path) -> Gathered:
    """Return what a folder holds; the tokens stay on disk until they are looked at.

    Raises: OSError, ValueError or LookupError when the files are not what a preparation writes.
    """
    books = json.loads((folder / _BOOKS).read_bytes())
    contract = books["contract"]
    return Gathered(
        documents=_read_documents(folder, TRAIN),
        held_out=_read_documents(folder, HELD_OUT),
        ledger=Ledger.from_books(books["ledger"], books["quarantine"]),
        contract=None if contract is None else ContractReport(tuple(Check(**check) for check in contract)),
        records=tuple(map(record_from_json, books["records"])),
        held_out_records=tuple(map(record_from_json, books["held_out_records"])),
        oversized=books["oversized"],
    )


def _read_documents(folder: Path, stage: str) -> Documents:
    return Documents([_mapped(file) for file in sorted(folder.glob(f"{stage}-*.safetensors"))])


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


def _write_exact(path: Path, value: Json) -> None:
    """Write JSON from which every string comes back as it was, half characters included."""
    write_text(path, json.dumps(value, ensure_ascii=True))


def record_to_json(record: Trainable) -> dict[str, Json]:
    """Return a record, but for its metadata, as JSON values."""
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


def record_from_json(fields: Mapping[str, Json]) -> Trainable:
    """Return the record of which `record_to_json` made these."""
    source, origin = fields["source"], None if fields["origin"] is None else Origin(**fields["origin"])
    if "text" in fields:
        return Document(fields["text"], source, origin)
    return Conversation(tuple(map(_message, fields["messages"])), tuple(fields["tools"]), source, origin)


def _message(fields: Mapping[str, Json]) -> Message:
    calls = tuple(ToolCall(**call) for call in fields["tool_calls"])
    return Message(**{**fields, "role": Role(fields["role"]), "tool_calls": calls})
