"""Secrets do not reach text that is shown or stored."""

from __future__ import annotations

import pytest

from tutelage.redact import redact


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("token hf_AbCdEfGhIjKlMnOpQrSt!", "token ***!"),
        ("sk-proj-abcdefghijklmnop1234", "***"),
        ("ghp_abcdefghijklmnopqrstuv", "***"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer ***"),
        ("https://user:pass@host/x and http://u@h", "https://***@host/x and http://***@h"),
    ],
)
def test_known_shapes_are_hidden(text: str, hidden: str) -> None:
    assert redact(text) == hidden


@pytest.mark.parametrize("text", ["hf_hub", "task-list", "https://host/a@b", "ask-me-anything", "me@example.org"])
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text) == text


def test_values_of_secret_variables_are_hidden_wherever_they_appear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_API_KEY", "correct-horse")
    monkeypatch.setenv("OTHER_TOKEN", "correct-horse-battery")
    monkeypatch.setenv("SHORT_KEY", "the")
    assert redact("the correct-horse-battery and correct-horse") == "the *** and ***"
