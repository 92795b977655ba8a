"""Files, folders, tables and data sets are found and read, and the ledger says what was taken for what."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tutelage.config.schema import Columns, SourceConfig
from tutelage.data.conversation import Conversation, Document, PreferencePair, Record
from tutelage.data.ledger import Ledger
from tutelage.data.sources import default_name, find_files, read_source
from tutelage.errors import DataError

ROWS = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(5)]
QUESTIONS = [row["prompt"] for row in ROWS]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def read(path: Path | str, **settings: Any) -> tuple[list[Record], Ledger]:
    ledger = Ledger()
    records = read_source(SourceConfig(path=str(path), **settings), ledger)
    ledger.check_balanced()
    return records, ledger


def questions(path: Path | str, **settings: Any) -> list[str]:
    return [record.messages[0].content for record in read(path, **settings)[0]]  # type: ignore[union-attr]


def write_every_format(folder: Path) -> list[Path]:
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    (folder / "a.jsonl").write_text(lines(ROWS))
    (folder / "b.ndjson").write_text(lines(ROWS))
    (folder / "c.json").write_text(json.dumps(ROWS))
    (folder / "d.json").write_text(json.dumps(ROWS, indent=2))
    (folder / "e.json").write_text(lines(ROWS))
    (folder / "f.jsonl.gz").write_bytes(gzip.compress(lines(ROWS).encode()))
    (folder / "g.json.gz").write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    (folder / "h.csv").write_text("prompt,completion\n" + "".join(f"{r['prompt']},{r['completion']}\n" for r in ROWS))
    (folder / "i.tsv").write_text("prompt\tcompletion\n" + "".join(f"{r['prompt']}\t{r['completion']}\n" for r in ROWS))
    (folder / "j.csv.gz").write_bytes(gzip.compress((folder / "h.csv").read_bytes()))
    parquet.write_table(arrow.Table.from_pylist(ROWS), folder / "k.parquet")
    return sorted(folder.iterdir())


def test_every_file_format_gives_the_same_records(tmp_path: Path) -> None:
    files = write_every_format(tmp_path)
    assert len(files) == 11
    ids = [[record.id for record in read(file)[0]] for file in files]
    assert len(ids[0]) == len(set(ids[0])) == 5
    assert all(each == ids[0] for each in ids)


def test_a_folder_and_a_pattern_are_read_file_by_file_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text(lines(ROWS[2:]))
    (tmp_path / "a.jsonl").write_text(lines(ROWS[:2]))
    (tmp_path / "README.md").write_text("# no data")
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "c.jsonl").write_text(lines(ROWS))
    records, ledger = read(tmp_path)
    assert [record.messages[0].content for record in records] == QUESTIONS  # type: ignore[union-attr]
    assert [str(record.origin) for record in records][1:3] == [f"{tmp_path}/a.jsonl:2", f"{tmp_path}/b.jsonl:1"]
    assert list(ledger.sources) == [tmp_path.name]
    assert questions(tmp_path / "*.jsonl") == QUESTIONS
    assert questions(tmp_path / "b*") == QUESTIONS[2:]


def test_of_a_folder_only_the_split_that_was_asked_for_is_read(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name, rows in (("train-00000-of-00001", ROWS[:2]), ("validation-0", ROWS[2:3]), ("test-0", ROWS[3:4])):
        (tmp_path / "data" / f"{name}.jsonl").write_text(lines(rows))
    (tmp_path / "more.jsonl").write_text(lines(ROWS[4:]))
    assert questions(tmp_path) == [*QUESTIONS[:2], QUESTIONS[4]]
    (account,) = read(tmp_path)[1].sources.values()
    assert [Path(file).name for file in account.left_out] == ["test-0.jsonl", "validation-0.jsonl"]
    assert account.taken_as.endswith("2 files of other splits left out: test-0.jsonl, validation-0.jsonl")
    assert questions(tmp_path, split="dev") == QUESTIONS[2:3] + QUESTIONS[4:]
    assert find_files(str(tmp_path), split="test")[0].name == "test-0.jsonl"
    (tmp_path / "more.jsonl").unlink()
    with pytest.raises(DataError, match="no file of the split 'other'"):
        read(tmp_path, split="other")


def test_parquet_nulls_inside_objects_are_absent_keys(tmp_path: Path) -> None:
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    call = {"function": {"name": "f", "arguments": {"x": 1}}}
    other = {"function": {"name": "g", "arguments": {"y": "2"}}}
    rows = [
        {
            "messages": [
                {"role": "user", "content": "hello"},
                {"role": "assistant", "tool_calls": [tool_call]},
                {"role": "tool", "content": "1"},
                {"role": "assistant", "content": "done", "weight": 0.5},
            ],
            "score": float("nan"),
        }
        for tool_call in (call, other)
    ]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    records, _ = read(tmp_path / "rows.parquet")
    assert all(isinstance(record, Conversation) for record in records)
    arguments = [dict(record.messages[1].tool_calls[0].arguments) for record in records]  # type: ignore[union-attr]
    assert arguments == [{"x": 1}, {"y": "2"}]
    assert records[0].messages[3].weight == 0.5  # type: ignore[union-attr]
    assert records[0].metadata == {"score": None}


def test_a_data_set_saved_to_disk_is_read_by_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    train, test = datasets.Dataset.from_list(ROWS[:3]), datasets.Dataset.from_list(ROWS[3:])
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "both")
    train.save_to_disk(tmp_path / "one")
    assert questions(tmp_path / "both") == QUESTIONS[:3]
    assert questions(tmp_path / "both", split="test") == QUESTIONS[3:]
    assert questions(tmp_path / "one") == QUESTIONS[:3]
    with pytest.raises(DataError, match="no split 'dev'") as caught:
        read(tmp_path / "both", split="dev")
    assert "train, test" in caught.value.mend


def test_a_subset_of_a_data_set_is_loaded_as_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    for name, rows in (("main", ROWS[:2]), ("other", ROWS[2:])):
        (folder / f"{name}.jsonl").write_text(lines(rows))
    subsets = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("main", "other"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{subsets}---\n")
    assert questions(f"hub:{folder}:other") == QUESTIONS[2:]
    with pytest.raises(DataError, match="cannot be loaded") as caught:
        read(f"hub:{folder}")  # which subset is not said
    assert "main" in str(caught.value)


def test_a_data_set_that_is_a_script_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "set.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(DataError, match="cannot be loaded"):
        read(f"hub:{folder}")
    assert not (tmp_path / "ran").exists()


def test_a_name_that_is_no_data_set_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="hub:nobody/nothing cannot be loaded"):
        read("hub:nobody/nothing")


def test_text_files_are_cut_at_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(b"\n\n  one\nmore\r\n\n \n\ntwo\n")
    records, _ = read(file)
    assert [record.text for record in records] == ["  one\nmore", "two"]  # type: ignore[union-attr]
    assert [record.origin.line for record in records] == [3, 8]  # type: ignore[union-attr]
    assert all(isinstance(record, Document) for record in records)


@pytest.mark.parametrize("text", ["one\ntwo", "\none\ntwo\n", "one\ntwo\n\n\n"])
def test_text_files_without_blank_lines_in_between_are_read_line_by_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "text.txt"
    file.write_text(text)
    assert [record.text for record in read(file)[0]] == ["one", "two"]  # type: ignore[union-attr]


def test_the_ledger_says_what_was_taken_for_what_and_from_which_bytes(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text(lines([{"question": "a", "answer": "b", "id": 1}]))
    _, ledger = read(file)
    account = ledger.sources["chats"]
    assert account.kind == "prompt_completion"
    assert account.taken_as == (
        "prompt_completion: question as prompt, answer as completion; not trained on: id (detected)"
    )
    assert list(account.files) == [str(file)]
    _, other = read(file, kind="prompt_completion", name="mine")
    assert "detected" not in other.sources["mine"].taken_as
    assert other.sources["mine"].files == account.files


def test_columns_that_nobody_knows_stop_with_the_way_to_map_them(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(lines([{"foo": "a", "bar": "b"}]))
    with pytest.raises(DataError, match="the columns are foo, bar") as caught:
        read(file)
    assert "columns" in caught.value.mend
    assert questions(file, columns=Columns(prompt="foo", completion="bar")) == ["a"]


@pytest.mark.parametrize(
    ("columns", "kind", "problem", "mend"),
    [
        ({"prompt": "questoin"}, "auto", "'questoin', which no row has", "question"),
        ({"prompt": "question", "completion": "runs.0.txt"}, "auto", "'runs.0.txt', which no row has", "runs"),
        ({"text": "question"}, "prompt_completion", "rows of kind prompt_completion have no text", "set kind"),
        ({"prompt": "question"}, "messages", "rows of kind messages have no prompt", "messages"),
    ],
)
def test_a_mapping_that_does_not_fit_is_an_error_and_is_never_ignored(
    tmp_path: Path, columns: dict[str, str], kind: Any, problem: str, mend: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(lines([{"question": "a", "answer": "b", "text": "c", "runs": [{"text": "d"}]}]))
    with pytest.raises(DataError, match=problem) as caught:
        read(file, kind=kind, columns=Columns(**columns))
    assert mend in caught.value.mend


def test_rows_that_a_rule_leaves_out_do_not_stop_the_reading(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(lines([{**row, "label": row is ROWS[0]} for row in ROWS]))
    records, ledger = read(file)
    assert len(records) == 1
    assert ledger.totals.dropped == {"labelled undesirable": 4}


def test_a_limit_reads_the_first_rows_only(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(lines(ROWS) + "oops")
    assert questions(file, limit=3) == QUESTIONS[:3]


def test_two_sources_of_one_name_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(lines(ROWS))
    ledger = Ledger()
    for _ in range(3):
        records = read_source(SourceConfig(path=str(file)), ledger)
    assert list(ledger.sources) == ["rows", "rows-2", "rows-3"]
    assert records[0].source == "rows-3"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/a.jsonl", "a"),
        ("a.b.jsonl.gz", "a.b"),
        ("hub:owner/set", "set"),
        ("hub:owner/set:part@v1.0", "set"),
        ("folder/set/", "set"),
        ("data/*.jsonl", "data"),
        ("data/part-*.jsonl", "part-"),
    ],
)
def test_a_source_is_called_by_its_file(path: str, name: str) -> None:
    assert default_name(path) == name


@pytest.mark.shared
@pytest.mark.parametrize(
    ("path", "kept", "kind", "columns"),
    [
        ("formats/alpaca_en_demo.json", 999, "alpaca", {}),
        ("formats/identity.json", 91, "alpaca", {}),
        ("formats/c4_demo.jsonl", 300, "text", {}),
        ("formats/dpo_en_demo.json", 300, "preference", {}),
        ("formats/kto_en_demo.json", 150, "messages", {}),
        ("formats/glaive_toolcall_en_demo.json", 300, "sharegpt", {}),
        ("formats/reason_tool_use_demo_50.jsonl", 50, "messages", {}),
        ("formats/v1_sft_demo.jsonl", 500, "messages", {}),
        ("formats/wiki_demo.txt", 30, "text", {}),
        ("instructions/dolly_13k.jsonl.gz", 13447, "alpaca", {}),
        ("instructions/toolformer_similarity-0.7.json.gz", 3487, "alpaca", {}),
        ("instructions/ifeval_prompts.jsonl", 540, "text", {"text": "prompt"}),
        (
            "instructions/self_instruct_seed_tasks.jsonl",
            175,
            "alpaca",
            {"input": "instances.0.input", "output": "instances.0.output"},
        ),
        (
            "instructions/code_seed_tasks.jsonl.gz",
            21,
            "alpaca",
            {"input": "instances.0.input", "output": "instances.0.output"},
        ),
        ("dialogues/sgd_dev.jsonl.gz", 2098, "messages", {}),
        ("preferences/gsm8k_solution_pairs.jsonl.gz", 967, "preference", {}),
        ("reasoning/gsm8k_train.jsonl.gz", 7473, "prompt_completion", {}),
        (
            "reasoning/gsm8k_model_solutions.jsonl.gz",
            1319,
            "prompt_completion",
            {"completion": "175b_verification.solution"},
        ),
        ("text/wikinews.jsonl.gz", 19291, "text", {}),
        ("text/tiny_shakespeare.txt", 7222, "text", {}),
    ],
)
def test_real_files_read(shared_data: Path, path: str, kept: int, kind: str, columns: dict[str, str]) -> None:
    records, ledger = read(shared_data / path, columns=Columns(**columns))
    assert len(records) == kept
    (account,) = ledger.sources.values()
    assert account.kind == kind
    types = {"text": Document, "preference": PreferencePair}
    assert all(type(record) is types.get(kind, Conversation) for record in records)


@pytest.mark.shared
def test_tool_calls_of_real_dialogues_are_read(shared_data: Path) -> None:
    records, _ = read(shared_data / "dialogues" / "sgd_dev.jsonl.gz")
    messages = [message for record in records for message in record.messages]  # type: ignore[union-attr]
    assert sum(len(message.tool_calls) for message in messages) == 6027
    assert sum(message.role == "tool" for message in messages) == 6027


@pytest.mark.shared
def test_weights_of_a_real_file_are_read(shared_data: Path) -> None:
    records, _ = read(shared_data / "formats" / "v1_sft_demo.jsonl")
    for record in records:
        assert isinstance(record, Conversation)
        assert [message.train for message in record.messages if message.role == "user"] == [False]
        assert [message.weight for message in record.messages if message.role == "assistant"] == [1.0]
