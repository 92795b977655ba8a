"""A configuration can be printed with the meaning of each key, and exported for editors."""

from __future__ import annotations

import json
from pathlib import Path

from tutelage.config.explain import explain, explain_keys, json_schema
from tutelage.config.load import known_keys, load_config

GOLDEN = Path(__file__).parents[2] / "golden" / "config_keys.txt"

FIXED_KEYS = (
    "model.path",
    "model.template",
    "data.train.N.path",
    "data.train.N.kind",
    "data.train.N.weight",
    "data.train.N.share",
    "data.max_tokens",
    "data.too_long",
    "train.method",
    "train.epochs",
    "train.max_steps",
    "train.learning_rate",
    "train.batch_tokens",
    "train.packing",
    "train.seed",
    "train.checkpoint_every_steps",
    "run.dir",
)


def test_rows_show_key_value_origin_and_meaning() -> None:
    rows = {row.key: row for row in explain(load_config(None, ["train.packing=true"]))}
    assert rows["train.packing"].value == "packed"
    assert rows["train.packing"].origin == "command line"
    assert not rows["train.packing"].is_default
    assert rows["train.betas"].value == "[0.9, 0.95]"
    assert rows["train.max_steps"].value == "null"
    assert rows["train.max_steps"].is_default


def test_every_key_says_what_it_means() -> None:
    undocumented = [row.key for row in explain_keys() if not row.doc.endswith((".", ")"))]
    assert undocumented == []


def test_what_a_key_takes_is_said_in_words() -> None:
    keys = {row.key: row for row in explain_keys()}
    assert keys["train.method"].values == "full | lora"
    assert keys["train.max_steps"].values == "whole number | null, > 0"
    assert keys["train.lora.targets"].values == "text | list of text"
    assert keys["train.betas"].values == "[number, number]"
    assert keys["data.train.N.path"].default == "(required)"


def test_the_keys_are_those_of_the_frozen_list() -> None:
    """A key that is renamed or removed breaks people's files: change the golden file knowingly, and the changelog too."""
    assert known_keys() == GOLDEN.read_text().split()
    assert set(FIXED_KEYS) <= set(known_keys())


def test_the_json_schema_is_strict_and_carries_the_meanings() -> None:
    schema = json_schema()
    json.dumps(schema)
    definitions = schema["$defs"]
    assert definitions["TrainConfig"]["additionalProperties"] is False
    assert definitions["TrainConfig"]["properties"]["learning_rate"]["description"].startswith("Peak learning rate")
