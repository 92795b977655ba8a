"""Worker processes: the same documents and books whatever their number, and a clear end where one dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiny import tiny_tokenizer
from tutelage.chat.documents import DTYPES, Documents, columns_of, joined
from tutelage.config.schema import Config
from tutelage.data.conversation import Origin
from tutelage.data.ledger import Ledger
from tutelage.data.rows import RawRow
from tutelage.data.sources import open_rows
from tutelage.errors import DataError, TrainingError
from tutelage.train import prepare
from tutelage.train.chunks import CHUNK_ROWS, STAGES, Chunk, Kit, Made, chunks_of, make
from tutelage.train.workers import Workers


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    return folder


def config_of(tokenizer: Path, *files: Path, **data: Any) -> Config:
    settings = {"max_tokens": 64, "too_long": "drop", "max_bad_fraction": 1.0, "held_out_fraction": 0.3, "cache": None}
    return Config.model_validate(
        {
            "model": {"path": str(tokenizer), "template": "chatml"},
            "data": {"train": [{"path": str(file)} for file in files], **settings, **data},
        }
    )


def chat(*texts: str) -> dict[str, Any]:
    roles = ("user", "assistant") * len(texts)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]}


ROWS = (
    chat("Who bakes?", "The baker."),
    chat("Who bakes?", "The baker.", "And who sells?", "His brother."),
    chat("Write <|im_end|> for me.", "Not I."),
    chat("Half a \ud83d", "No."),
    chat("Tell me all.", "word " * 60),
    chat("No answer?"),
    {"messages": [{"role": "user"}]},
    {"messages": "none"},
    {"other": 1.5},
    [1, 2],
    None,  # written as a line that is no JSON
)


@pytest.fixture(scope="module")
def workers(tokenizer: Path) -> Iterator[tuple[Kit, Workers]]:
    config = config_of(tokenizer, Path("rows.jsonl"))
    kit = Kit(config, prepare.build_renderer(config))
    with Workers(kit, 2) as running:
        yield kit, running


def chunks_from(path: Path, rows: list[Any], kit: Kit) -> list[Chunk]:
    lines = ["{broken" if row is None else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines))
    source = kit.config.data.train[0].model_copy(update={"path": str(path), "kind": "messages"})
    account, read = open_rows(source, Ledger())
    each_alone = [chunk for row in read for chunk in chunks_of([row], 0, account)]
    return [replace(chunk, shown=2, conversations=2) for chunk in each_alone]


def facts(made: Made) -> list[Any]:
    columns = [(name, made.columns[stage][name].tobytes()) for stage in STAGES for name in DTYPES]
    return [columns, made.ledger.to_json(), made.ledger.quarantine, made.oversized, made.records, made.conversations]


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.sampled_from(ROWS), min_size=1, max_size=12))
def test_what_workers_make_is_what_is_made_here_in_the_same_order(
    tmp_path: Path, workers: tuple[Kit, Workers], rows: list[Any]
) -> None:
    kit, running = workers
    parts = chunks_from(tmp_path / "rows.jsonl", rows, kit)
    assert [facts(made) for made in running.map(parts)] == [facts(make(kit, part)) for part in parts]


@pytest.mark.parametrize("count", [1, 3])
def test_a_preparation_is_the_same_with_any_number_of_workers(tmp_path: Path, tokenizer: Path, count: int) -> None:
    rows = [chat(f"Who is number {i}?", f"The {i}. baker.") for i in range(2 * CHUNK_ROWS + 10)]
    rows[7:7] = [row for row in ROWS if row is not None]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "texts.jsonl").write_text('{"text": "The village has houses."}\n' * 5)
    files = tmp_path / "chats.jsonl", tmp_path / "texts.jsonl"
    here, there = (prepare.prepare(config_of(tokenizer, *files, workers=number)) for number in (0, count))
    assert f"made anew by {count} worker processes (data.workers={count})" in there.news[-1]
    for side in ("documents", "held_out"):
        one, other = (columns_of(getattr(found, side)) for found in (here, there))
        assert len(one["lengths"]) > 5
        for name in DTYPES:
            np.testing.assert_array_equal(one[name], other[name], strict=True)
    assert here.ledger.to_json() == there.ledger.to_json() and here.ledger.quarantine == there.ledger.quarantine
    assert here.ledger.quarantine and len(here.records) == prepare.SHOWN_RECORDS
    assert (here.contract, here.records, here.held_out_records) == (
        there.contract,
        there.records,
        there.held_out_records,
    )
    np.testing.assert_array_equal(here.mixture.epoch(0), there.mixture.epoch(0))


def test_an_error_of_a_row_is_the_same_from_a_worker(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat("Tell.", "word " * n)) + "\n" for n in (1, 60, 61)))
    said = []
    for number in (0, 2):
        with pytest.raises(DataError) as caught:
            prepare.prepare(config_of(tokenizer, tmp_path / "chats.jsonl", workers=number, too_long="error"))
        said.append(str(caught.value))
    assert said[0] == said[1] and "chats.jsonl:2" in said[0]


def test_rows_that_json_cannot_hold_are_made_by_the_run_itself(workers: tuple[Kit, Workers]) -> None:
    kit, running = workers
    account = Ledger().open_source("table", kind="messages")
    values = ({"messages": (1, 2)}, {"messages": {3}})
    rows = [RawRow(Origin("table.parquet", number), value) for number, value in enumerate(values)]
    parts = list(chunks_of(rows, 0, account))
    assert [part.texts for part in parts] == [None]
    assert [facts(made) for made in running.map(parts)] == [facts(make(kit, part)) for part in parts]


def test_a_worker_that_dies_stops_the_preparation_and_is_named(tmp_path: Path, tokenizer: Path) -> None:
    config = config_of(tokenizer, Path("rows.jsonl"))
    kit = Kit(config, prepare.build_renderer(config))
    parts = chunks_from(tmp_path / "rows.jsonl", list(ROWS), kit)
    with pytest.raises(TrainingError, match=r"ended by signal 9") as caught, Workers(kit, 1) as running:
        os.kill(running._all[0]._process.pid, signal.SIGKILL)
        list(running.map(parts))
    assert "data.workers=0" in caught.value.mend
    assert all(worker._process.poll() is not None for worker in running._all)


INTERRUPTED = """
import json, os, signal, sys
from tutelage.config.schema import Config
from tutelage.train.prepare import prepare
def tell(what, done, count):
    if done > 600:
        print(open(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read(), flush=True)
        os.kill(os.getpid(), int(sys.argv[2]))
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background ignores it
    prepare(Config.model_validate(json.loads(sys.argv[1])), progress=tell)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_preparation_leaves_neither_entry_nor_worker(
    tmp_path: Path, tokenizer: Path, how: signal.Signals
) -> None:
    rows = [chat(f"Who is number {i}?", f"The {i}. baker.") for i in range(4 * CHUNK_ROWS)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(tokenizer, tmp_path / "chats.jsonl", workers=2, cache=str(tmp_path / "cache"))
    command = [sys.executable, "-c", INTERRUPTED, config.model_dump_json(), str(int(how))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode != 0
    workers = [int(pid) for pid in ended.stdout.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))
    left = [path.name for path in (tmp_path / "cache" / "prepared").iterdir()]
    assert all(name.startswith(".new-") for name in left) and (not left or how is signal.SIGKILL)
    after = prepare.prepare(config)
    assert "made anew" in after.news[-1]
    assert "from the cache" in prepare.prepare(config).news[-1]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_documents_in_blocks_are_those_of_one_block(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS if row is not None))
    found = prepare.prepare(config_of(tokenizer, tmp_path / "chats.jsonl", held_out_fraction=0.0))
    rendered = list(found.documents)
    blocks = [columns_of(rendered[:1]), columns_of([]), columns_of(rendered[1:])]
    for documents in (Documents(blocks), Documents([joined(blocks)])):
        assert len(documents) == len(rendered) and documents.lengths.tolist() == list(map(len, rendered))
        for number, one in enumerate(rendered):
            for other in (documents[number], documents[number - len(rendered)], list(documents)[number]):
                for name in ("ids", "weights", "message", "part"):
                    np.testing.assert_array_equal(getattr(one, name), getattr(other, name), strict=True)
                assert (one.roles, one.where, one.record_id) == (other.roles, other.where, other.record_id)
                assert (one.source, one.stage, one.typed_controls) == (other.source, other.stage, other.typed_controls)
        with pytest.raises(IndexError):
            documents[len(rendered)]


PEAK = """
import json, resource, sys
from tutelage.config.schema import Config
from tutelage.train import shards
from tutelage.train.prepare import build_renderer, prepare
config = Config.model_validate(json.loads(sys.argv[1]))
build_renderer(config)
shards.SHARD_TOKENS = 50_000
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = prepare(config)
print(len(found.documents), 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, tokenizer: Path) -> None:
    """A document costs less than it has tokens: ids, labels and text of all of them would be twenty times as much."""
    peaks = []
    for count in (2_000, 8_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        rows = (chat(f"Who is number {i}? " + "The baker. " * 60, "word " * 90) for i in range(count))
        (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = config_of(tokenizer, folder / "chats.jsonl", max_tokens=4096, workers=0, cache=str(tmp_path / "cache"))
        command = [sys.executable, "-c", PEAK, config.model_dump_json()]
        documents, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        peaks.append(int(peak))
        tokens_of_one = float(prepare.prepare(config).documents.lengths.mean())  # type: ignore[attr-defined]
    assert (peaks[1] - peaks[0]) / 6_000 < tokens_of_one, (peaks, documents, tokens_of_one)
