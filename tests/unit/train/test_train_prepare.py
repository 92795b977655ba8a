from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tiny import tiny_tokenizer
from tutelage.config.schema import Config
from tutelage.errors import ConfigError, DataError, TemplateError
from tutelage.train.prepare import Prepared, prepare


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepare")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    chats = [[("user", f"Who is {i}?"), ("assistant", f"Number {i}.")] for i in range(20)]
    chats.append([("user", "Tell me all."), ("assistant", "word " * 60)])
    write_rows(
        folder / "chats.jsonl",
        [{"messages": [dict(zip(("role", "content"), m, strict=True)) for m in c]} for c in chats],
    )
    write_rows(folder / "texts.jsonl", [{"text": f"The village has {i} houses."} for i in range(10)])
    write_rows(folder / "pairs.jsonl", [{"prompt": "Hi", "chosen": "Hello.", "rejected": "Go."}])
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prepared(place: Path, *names: str, template: str | None = "chatml", **data: Any) -> Prepared:
    return prepare(
        Config.model_validate(
            {
                "model": {"path": str(place / "tokenizer"), "template": template},
                "data": {"train": [{"path": str(place / f"{name}.jsonl")} for name in names], "max_tokens": 64, **data},
            }
        )
    )


def test_documents_stand_source_after_source_as_the_mixture_numbers_them(place: Path) -> None:
    found = prepared(place, "texts", "chats", too_long="drop")
    assert [d.source for d in found.documents] == ["texts"] * 10 + ["chats"] * 20
    assert [(s.name, s.num_documents) for s in found.mixture.sources] == [("texts", 10), ("chats", 20)]
    assert sorted(found.mixture.epoch(0).tolist()) == list(range(30))
    assert found.sources == ("texts", "chats")


def test_a_named_template_brings_new_tokens_and_is_checked(place: Path) -> None:
    found = prepared(place, "chats", too_long="drop")
    assert found.new_ids == (tiny_tokenizer().vocab_size, tiny_tokenizer().vocab_size + 1)
    assert found.contract is not None and found.contract.passed


def test_text_alone_needs_no_template(place: Path) -> None:
    found = prepared(place, "texts", template=None)
    assert found.contract is None and found.new_ids == ()
    assert all(d.supervised_tokens == len(d) - 1 for d in found.documents)


def test_conversations_without_a_template_are_refused(place: Path) -> None:
    with pytest.raises(TemplateError, match="no chat template"):
        prepared(place, "chats", template=None)


def test_a_document_too_long_stops_the_run_or_is_dropped_and_counted(place: Path) -> None:
    with pytest.raises(DataError, match=r"chats\.jsonl:21: .* more than data\.max_tokens"):
        prepared(place, "chats")
    account = prepared(place, "chats", too_long="drop").ledger.sources["chats"]
    assert (account.rows, account.kept, dict(account.dropped)) == (21, 20, {"longer than data.max_tokens": 1})
    assert account.tokens["dropped"].documents == 1


def test_the_held_out_part_is_set_apart_and_both_sides_are_booked(place: Path) -> None:
    found = prepared(place, "chats", too_long="drop", held_out_fraction=0.3)
    train, away = {d.record_id for d in found.documents}, {d.record_id for d in found.held_out}
    assert train and away and not train & away and len(train) + len(away) == 20
    booked = found.ledger.sources["chats"].tokens
    assert booked["train"].tokens == sum(map(len, found.documents))
    assert booked["held_out"].supervised == sum(d.supervised_tokens for d in found.held_out)


def test_held_out_sources_are_never_trained_on(place: Path) -> None:
    found = prepared(place, "texts", held_out=[{"path": str(place / "chats.jsonl")}], too_long="drop")
    assert {d.source for d in found.documents} == {"texts"}
    assert {d.source for d in found.held_out} == {"chats"}


def test_preference_pairs_are_refused_with_a_way_to_use_them(place: Path) -> None:
    with pytest.raises(ConfigError, match="preference pairs") as caught:
        prepared(place, "pairs")
    assert "prompt_completion" in caught.value.mend


def test_progress_is_told_to_the_end(place: Path) -> None:
    told: list[tuple[str, int, int]] = []
    config = Config.model_validate(
        {
            "model": {"path": str(place / "tokenizer")},
            "data": {"train": [{"path": str(place / "texts.jsonl")}], "max_tokens": 64, "cache": None},
        }
    )
    prepare(config, progress=lambda what, done, count: told.append((what, done, count)))
    assert ("preparing rows", 10, 10) in told
