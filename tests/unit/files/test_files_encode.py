"""JSON is strict and knows the types that runs are made of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.config.schema import LoraConfig, Method
from tutelage.files.encode import encode_json


@dataclass(frozen=True)
class Figure:
    name: str
    values: tuple[float, ...]


def test_the_types_of_a_run_are_written_as_the_nearest_json_type() -> None:
    value = {
        "figure": Figure("loss", (1.0, float("nan"))),
        "path": Path("a/b"),
        "enum": Method.LORA,
        "set": {"b", "a"},
        "array": np.arange(3),
        "scalar": np.float32(0.5),
        "section": LoraConfig(rank=4),
        1: True,
    }
    decoded = json.loads(encode_json(value))
    assert decoded["figure"] == {"name": "loss", "values": [1.0, None]}
    assert decoded["path"] == "a/b"
    assert decoded["enum"] == "lora"
    assert decoded["set"] == ["a", "b"]
    assert decoded["array"] == [0, 1, 2]
    assert decoded["scalar"] == 0.5
    assert decoded["section"]["rank"] == 4
    assert decoded["1"] is True


def test_half_characters_are_escaped_so_that_the_text_can_be_stored() -> None:
    assert json.loads(encode_json("a\ud800ü").encode()) == "a\\ud800ü"


def test_a_value_without_json_form_is_refused() -> None:
    with pytest.raises(TypeError, match="object"):
        encode_json({"x": object()})


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(_JSON)
def test_what_is_json_already_comes_back_unchanged(value: object) -> None:
    text = json.dumps(value)
    assert json.loads(encode_json(json.loads(text))) == json.loads(text)
