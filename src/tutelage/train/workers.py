"""Processes that make chunks of documents. Each is a Python of its own, told over its standard input what to do.

A worker imports neither torch nor transformers, so that it begins within a second. What it is told and what it answers is
JSON and the bytes of arrays. It ends when its input does, so that none outlives the run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

import numpy as np

import tutelage
from tutelage import errors
from tutelage.chat.documents import DTYPES
from tutelage.chat.render import Renderer, RenderOptions
from tutelage.chat.template import Template
from tutelage.chat.tokenizer import ChatTokenizer, TokenizerFacts
from tutelage.config.schema import Config
from tutelage.data.conversation import Json, Origin
from tutelage.data.ledger import Ledger
from tutelage.data.reasons import RowError
from tutelage.data.retrieve import open_retriever
from tutelage.data.rows import RawRow
from tutelage.errors import TrainingError, TutelageError
from tutelage.train.chunks import Chunk, Kit, Made, Trainable, make
from tutelage.train.shards import record_from_json, record_to_json
from tutelage.train.stop import SIGNALS

_LENGTH_BYTES = 8
_SHOWN_ERROR_CHARACTERS = 400


class Workers:
    """So many processes, each with a kit of its own. A context: leaving it ends them, at once where something is raised."""

    def __init__(self, kit: Kit, count: int) -> None:
        self._kit = kit
        told = [json.dumps(_told_kit(kit)).encode()]
        self._all = [_Worker(told) for _ in range(count)]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._all:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="preparation")

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._all:
            worker.end()
        self._threads.shutdown(cancel_futures=True)

    def map(self, chunks: Iterable[Chunk]) -> Iterator[Made]:
        """Yield what comes of the chunks, in their order; a few are in the making while the next are read.

        Raises:
            TrainingError: a worker died.
            TutelageError: what `make` raises.
        """
        waiting: deque[Future[Made] | Chunk] = deque()
        for chunk in chunks:
            waiting.append(self._threads.submit(self._make, chunk) if chunk.texts is not None else chunk)
            if len(waiting) > 2 * len(self._all):
                yield self._result(waiting.popleft())
        while waiting:
            yield self._result(waiting.popleft())

    def _result(self, first: Future[Made] | Chunk) -> Made:
        return make(self._kit, first) if isinstance(first, Chunk) else first.result()

    def _make(self, chunk: Chunk) -> Made:
        worker = self._idle.get()
        try:
            return worker.make(chunk)
        finally:
            self._idle.put(worker)


class _Worker:
    def __init__(self, told_kit: list[bytes]) -> None:
        package = str(Path(tutelage.__file__).parents[1])
        threads = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `end`
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tutelage.train.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **threads, "PYTHONPATH": package},
        )
        self._told_kit: list[bytes] | None = told_kit

    def make(self, chunk: Chunk) -> Made:
        """Return what the process makes of a chunk."""
        told = _told_chunk(chunk)
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            if self._told_kit is not None:
                _send(stdin, self._told_kit)
                self._told_kit = None
            _send(stdin, told)
            answer = _receive(stdout)
        except OSError:
            answer = None
        if answer is None:
            raise self._death()
        return _made(answer)

    def _death(self) -> TrainingError:
        status = self._process.wait()
        how = f"was ended by signal {-status}" if status < 0 else f"ended with exit status {status}"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        last = f": {lines[-1][:_SHOWN_ERROR_CHARACTERS]}" if lines else ""
        return TrainingError(
            f"a process that prepares documents {how}{last}",
            mend="data.workers=0 prepares in the process of the run itself; fewer workers need less memory",
        )

    def end(self) -> None:
        """End the process; it keeps nothing that would be lost."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # what was still to be told to it
                    continue


def main() -> None:
    """Make chunks until there are no more."""
    for number in SIGNALS:  # Ctrl-C and schedulers reach all processes; the run ends its workers itself
        signal.signal(number, signal.SIG_IGN)
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # what a library prints is no answer
    told_kit = _receive(questions)
    if told_kit is None:
        return
    kit = _kit(json.loads(told_kit[0]))
    while (told := _receive(questions)) is not None:
        try:
            answer = _told_made(make(kit, _chunk(told)))
        except TutelageError as error:
            answer = [json.dumps({"error": [_known_type(error), error.problem, error.mend]}).encode()]
        _send(answers, answer)


def _send(stream: IO[bytes], parts: Sequence[bytes]) -> None:
    """Write a message: how many parts, and each with its length before it."""
    stream.write(len(parts).to_bytes(_LENGTH_BYTES, "little"))
    for part in parts:
        stream.write(len(part).to_bytes(_LENGTH_BYTES, "little"))
        stream.write(part)
    stream.flush()


def _receive(stream: IO[bytes]) -> list[bytes] | None:
    """Return the parts of the next message; None where the stream ends, or breaks off."""
    parts = []
    for _ in range(_number(stream)):
        length = _number(stream)
        parts.append(stream.read(length))
        if len(parts[-1]) != length:
            return None
    return parts or None


def _number(stream: IO[bytes]) -> int:
    return int.from_bytes(stream.read(_LENGTH_BYTES), "little")


def _told_kit(kit: Kit) -> dict[str, Any]:
    renderer = kit.renderer
    template = renderer.given_template
    return {
        "config": kit.config.model_dump_json(),
        "tokenizer": asdict(renderer.tokenizer.facts),
        "template": None if template is None else [template.source, template.name],
        "variables": json.dumps(renderer.extra_variables),
    }


def _kit(told: dict[str, Any]) -> Kit:
    config = Config.model_validate_json(told["config"])
    tokenizer = ChatTokenizer.from_facts(TokenizerFacts(**told["tokenizer"]))
    template = None if told["template"] is None else Template(told["template"][0], name=told["template"][1])
    options = RenderOptions.from_config(config.data)
    renderer = Renderer(tokenizer, template, options, variables=json.loads(told["variables"]))
    return Kit(config, renderer, open_retriever(config.data.retrieve))


def _told_chunk(chunk: Chunk) -> list[bytes]:
    """Return a chunk as a message: all but the values, and a line of JSON for each value."""
    assert chunk.texts is not None
    rows = []
    for row in chunk.rows:
        problem = None if row.problem is None else (str(row.problem.reason), row.problem.cause, row.problem.mend)
        rows.append((vars(row.origin), problem, row.excerpt))
    head = {**vars(chunk), "rows": rows, "texts": ()}
    return [json.dumps(head).encode(), "\n".join(chunk.texts).encode()]


def _chunk(told: Sequence[bytes]) -> Chunk:
    head = json.loads(told[0])
    rows = [
        RawRow(
            Origin(**origin),
            json.loads(text),
            None if problem is None else RowError(problem[0], problem[1], mend=problem[2]),
            excerpt,
        )
        for (origin, problem, excerpt), text in zip(head["rows"], told[1].split(b"\n"), strict=True)
    ]
    return Chunk(**{**head, "rows": tuple(rows)})


def _told_made(made: Made) -> list[bytes]:
    """Return what came of a chunk as a message: the books, and each column of each stage."""
    head = {
        "stages": list(made.columns),
        "books": made.ledger.to_json()["sources"],
        "quarantine": [vars(entry) for entry in made.ledger.quarantine],
        "oversized": made.oversized,
        "records": _told_records(made.records),
        "conversations": _told_records(made.conversations),
    }
    columns = [columns[name].tobytes() for columns in made.columns.values() for name in DTYPES]
    return [json.dumps(head).encode(), *columns]


def _told_records(by_stage: Mapping[str, Sequence[Trainable]]) -> dict[str, list[Json]]:
    return {stage: [record_to_json(record) for record in records] for stage, records in by_stage.items()}


def _made(answer: Sequence[bytes]) -> Made:
    """Raises: the error that the answer tells of."""
    head = json.loads(answer[0])
    if "error" in head:
        kind, problem, mend = head["error"]
        raise getattr(errors, kind)(problem, mend=mend)
    columns = iter(answer[1:])
    records, conversations = (
        {stage: [record_from_json(fields) for fields in shown] for stage, shown in head[what].items()}
        for what in ("records", "conversations")
    )
    return Made(
        columns={
            stage: {name: np.frombuffer(next(columns), dtype=dtype) for name, dtype in DTYPES.items()}
            for stage in head["stages"]
        },
        ledger=Ledger.from_books(head["books"], head["quarantine"]),
        oversized=head["oversized"],
        records=records,
        conversations=conversations,
    )


def _known_type(error: TutelageError) -> str:
    """Return the name of the most special type of this error that the tree of errors has."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)


if __name__ == "__main__":
    main()
