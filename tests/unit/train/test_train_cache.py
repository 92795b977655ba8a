from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiny import tiny_tokenizer
from tutelage.config.schema import Config
from tutelage.errors import DataError
from tutelage.train import cache
from tutelage.train.prepare import Prepared, prepare

ARRAYS = ("ids", "weights", "message", "part")
TEXTS = ("roles", "record_id", "source", "where", "stage", "typed_controls")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def place(tmp_path: Path, tokenizer: Path) -> Path:
    """A folder with chats, texts and a bad row, and the tokenizer."""
    rows: list[Any] = [chat(f"Who is number {i}?", f"The {i}. baker.") for i in range(30)]
    rows[7] = chat("Write <|im_end|> for me.", "Not I.")
    rows += [{"messages": [{"role": "user"}]}, chat("Half a \ud83d", "No.")]
    rows.append(chat("Tell me all.", "word " * 60))
    write_rows(tmp_path / "chats.jsonl", rows)
    write_rows(tmp_path / "texts.jsonl", [{"text": f"The village has {i} houses. " * (1 + i)} for i in range(12)])
    (tmp_path / "tokenizer").symlink_to(tokenizer)
    return tmp_path


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_rows(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def config(place: Path, **data: Any) -> Config:
    sources = [{"path": str(place / f"{name}.jsonl")} for name in ("chats", "texts")]
    settings = {
        "train": sources,
        "max_tokens": 64,
        "too_long": "drop",
        "max_bad_fraction": 0.5,
        "held_out_fraction": 0.2,
        "cache": str(place / "cache"),
    }
    return Config.model_validate(
        {
            "model": {"path": str(place / "tokenizer"), "template": "chatml"},
            "data": {**settings, **data},
        }
    )


def entries(place: Path) -> list[Path]:
    return sorted((place / "cache" / "prepared").iterdir())


def was_hit(prepared: Prepared) -> bool:
    return "from the cache" in prepared.news[-1]


def require_equal(left: Prepared, right: Prepared) -> None:
    for side in ("documents", "held_out"):
        pairs = list(zip(getattr(left, side), getattr(right, side), strict=True))
        assert pairs
        for one, other in pairs:
            for name in ARRAYS:
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name), strict=True)
            assert [getattr(one, name) for name in TEXTS] == [getattr(other, name) for name in TEXTS]
    assert json.dumps(left.ledger.to_json()) == json.dumps(right.ledger.to_json())
    assert left.ledger.quarantine == right.ledger.quarantine
    assert left.contract == right.contract
    assert (left.records, left.held_out_records) == (right.records, right.held_out_records)
    assert left.sources == right.sources and left.new_ids == right.new_ids
    np.testing.assert_array_equal(left.mixture.epoch(0), right.mixture.epoch(0))


def test_what_comes_from_the_cache_is_what_was_prepared(place: Path) -> None:
    first, second = prepare(config(place)), prepare(config(place))
    assert not was_hit(first) and was_hit(second)
    assert any(document.typed_controls for document in (*first.documents, *first.held_out))
    assert any(document.stage for document in first.documents) and first.ledger.quarantine
    require_equal(first, second)
    require_equal(first, prepare(config(place, cache=None)))


def test_tokens_from_the_cache_may_be_written_to_without_harm(place: Path) -> None:
    prepare(config(place))
    prepare(config(place)).documents[0].ids[:] = 0
    require_equal(prepare(config(place)), prepare(config(place, cache="off")))


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 63},
        {"train_on": "last_turn"},
        {"control_strings": "refuse"},
        {"too_long": "drop_oldest_turns"},
        {"held_out_fraction": 0.4},
        {"train": [{"path": "texts"}]},
        {"train_reasoning": False},
    ],
)
def test_another_option_is_another_entry(place: Path, change: dict[str, Any]) -> None:
    prepare(config(place))
    if "train" in change:
        change = {"train": [{"path": str(place / "texts.jsonl")}]}
    changed = prepare(config(place, **change))
    assert not was_hit(changed)
    assert was_hit(prepare(config(place, **change)))


def test_how_often_a_source_is_drawn_is_not_part_of_what_it_holds(place: Path) -> None:
    prepare(config(place))
    weighted = [{"path": str(place / "chats.jsonl"), "weight": 2}, {"path": str(place / "texts.jsonl")}]
    found = prepare(config(place, train=weighted))
    assert was_hit(found)
    assert len(found.mixture.epoch(0)) > len(found.documents)


def test_a_changed_file_a_changed_tokenizer_and_changed_code_are_other_entries(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(config(place))
    text = (place / "texts.jsonl").read_text()
    (place / "texts.jsonl").write_text(text.replace("village", "lowland"))  # as long as before
    assert not was_hit(prepare(config(place)))
    settings = json.loads((place / "tokenizer" / "tokenizer_config.json").read_text())
    (place / "tokenizer").unlink()
    tiny_tokenizer().save_pretrained(place / "tokenizer")
    (place / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 77}))
    assert not was_hit(prepare(config(place)))
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    assert not was_hit(prepare(config(place)))


def test_a_file_is_hashed_again_only_when_it_was_touched(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr(cache, "_SETTLED_SECONDS", -1.0)

    def noted(file: Path) -> str:
        hashed.append(file)
        return "digest"

    monkeypatch.setattr(cache, "sha256_file", noted)
    file, root = place / "texts.jsonl", place / "cache"
    assert [cache._remembered_sha256(file, root) for _ in range(2)] == ["digest"] * 2
    assert hashed == [file]
    before = file.stat()
    file.write_bytes(file.read_bytes()[::-1])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # what a hurried copy does
    cache._remembered_sha256(file, root)
    assert hashed == [file, file]


@pytest.mark.parametrize(
    "name", ["train-000000.safetensors", "books.json", "manifest.json", "held_out-000000.safetensors"]
)
@pytest.mark.parametrize("how", ["cut", "changed", "gone"])
def test_a_damaged_entry_is_set_aside_and_made_anew(place: Path, name: str, how: str) -> None:
    first = prepare(config(place, cache=None))
    prepare(config(place))
    (entry,) = entries(place)
    file = entry / name
    data = file.read_bytes()
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(data[: len(data) // 2] if how == "cut" else data[:-9] + b"?" + data[-8:])
    mended = prepare(config(place))
    assert not was_hit(mended) and "damaged cache entry was set aside" in mended.news[0]
    assert {path.name.split("-")[0] for path in entries(place)} == {"bad", entry.name}
    require_equal(first, mended)
    assert was_hit(prepare(config(place)))


def test_a_place_that_cannot_be_written_costs_the_cache_alone(place: Path) -> None:
    (place / "file").write_text("")
    found = prepare(config(place, cache=str(place / "file" / "cache")))
    assert "not kept in the cache" in found.news[0] and str(place / "file") in found.news[0]
    require_equal(found, prepare(config(place)))


def test_a_disk_that_fills_up_leaves_no_entry_behind(place: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # no file may grow beyond this
    try:
        found = prepare(config(place))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "not kept in the cache" in found.news[0]
    assert entries(place) == []
    require_equal(found, prepare(config(place)))


def test_rules_that_stop_a_run_stop_it_with_an_entry_too(place: Path) -> None:
    prepare(config(place), lenient=True)
    assert was_hit(prepare(config(place)))  # what `check` prepared serves the training
    for rule in ({"max_bad_fraction": 0.0}, {"too_long": "error"}):
        with pytest.raises(DataError) as without:
            prepare(config(place, **rule, cache=None))
        with pytest.raises(DataError) as with_entry:
            prepare(config(place, **rule))
        assert str(with_entry.value) == str(without.value)


def test_processes_that_prepare_at_once_do_not_hurt_each_other(place: Path) -> None:
    found: list[Prepared] = []
    threads = [threading.Thread(target=lambda: found.append(prepare(config(place)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(entries(place)) == 1
    for one in found[1:]:
        require_equal(found[0], one)
    assert was_hit(prepare(config(place)))


def test_what_a_killed_writer_left_is_cleared_after_a_day(place: Path) -> None:
    prepare(config(place))
    old, new = (place / "cache" / "prepared" / f".new-{name}" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir()
    yesterday = time.time() - 90_000
    os.utime(old, (yesterday, yesterday))
    prepare(config(place, max_tokens=60))
    assert not old.exists() and new.exists()


def test_what_was_used_longest_ago_makes_room(place: Path) -> None:
    for tokens in (60, 61, 62):
        prepare(config(place, max_tokens=tokens))
    for number, entry in enumerate(sorted(entries(place), key=lambda entry: entry.stat().st_mtime_ns)):
        os.utime(entry, (1e9 + number, 1e9 + number))
    assert was_hit(prepare(config(place, max_tokens=60)))  # the oldest, which is now the last that was used
    one = max(sum(file.stat().st_size for file in entry.iterdir()) for entry in entries(place))
    found = prepare(config(place, max_tokens=63, cache_gigabytes=2.5 * one / 1e9))
    assert "removed from the cache: 2 entries" in found.news[0] and len(entries(place)) == 2
    assert was_hit(prepare(config(place, max_tokens=60))) and was_hit(prepare(config(place, max_tokens=63)))


def test_the_folder_is_that_of_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder("auto") == tmp_path / "tutelage"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.cache_folder("auto") == tmp_path / "home" / ".cache" / "tutelage"
    assert cache.cache_folder("off") is None and cache.cache_folder(None) is None
    assert cache.cache_folder(str(tmp_path / "mine")) == tmp_path / "mine"


def test_nothing_of_the_suite_reaches_the_home_of_the_user() -> None:
    code = "from tutelage.train.cache import cache_folder; print(cache_folder('auto'))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == str(Path(os.environ["XDG_CACHE_HOME"]) / "tutelage")
    assert not Path(shown.strip()).is_relative_to(Path.home() / ".cache")
