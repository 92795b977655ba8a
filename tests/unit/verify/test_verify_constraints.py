"""Every constraint, kept and broken, and the layouts of IFEval's own prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tutelage.verify.constraints import CONSTRAINTS, count_sentences, loose, strict

CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["cat", "mat"]}, "A Cat on a mat.", "A cat."),
    ("keywords:frequency", {"keyword": "cat", "frequency": 2, "relation": "at least"}, "cat Cat", "cat"),
    ("keywords:frequency", {"keyword": "cat", "frequency": 2, "relation": "less than"}, "cat", "cat cat"),
    ("keywords:forbidden_words", {"forbidden_words": ["can"]}, "A scan of candles.", "Yes you Can."),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 1, "let_relation": "less than"}, "abc", "Quit"),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "less than"}, "One. Two!", "A. B. C."),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "one two three", "one two"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo", "one\n\ntwo"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "elm"},
        "One.\n\n**Elm** trees.",
        "Elm.\n\nOne.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] of [town]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Yours.\nP.S. More.", "Yours."),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Yours.\nP.P.S More.", "Yours.\nP.S. More."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n- two", "* one\n* two\n* three"),
    ("detectable_format:constrained_response", {}, "My answer is no.", "No."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and **two**", "*one* and ** **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2\nb",
        "Section 1\na",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<On cats>>\nCats.", "<< >>\nCats."),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "say it. It.", "It."),
    ("startend:end_checker", {"end_phrase": "The end."}, 'So it was. the end."', "The end. Or not."),
    ("startend:quotation", {}, '"So."', '"So.'),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "less than"}, "A cat", "A CAT"),
    ("change_case:english_capital", {}, "A CAT!", "A Cat"),
    ("change_case:english_lowercase", {}, "a cat!", "A cat"),
    ("punctuation:no_comma", {}, "one and two", "one, two"),
]


@pytest.mark.parametrize(("name", "settings", "kept", "broken"), CASES, ids=[case[0] for case in CASES])
def test_each_constraint_tells_kept_from_broken(name: str, settings: dict[str, Any], kept: str, broken: str) -> None:
    assert strict(name, settings, kept) is True
    assert strict(name, settings, broken) is False
    assert strict(name, settings, "  ") is False


def test_every_constraint_has_a_case_but_the_one_that_is_never_decided() -> None:
    assert CONSTRAINTS.keys() - {case[0] for case in CASES} == {"language:response_language"}
    assert strict("language:response_language", {"language": "de"}, "Ja.") is None
    assert loose("language:response_language", {"language": "de"}, "Ja.") is None


def test_loose_takes_an_introduction_a_closing_line_and_stars_away() -> None:
    answer = "Sure, here it is:\n*a cat*\nAnything else, friend?"
    assert strict("punctuation:no_comma", {}, answer) is False
    assert loose("punctuation:no_comma", {}, answer) is True
    assert loose("startend:quotation", {}, '**"So."**') is True
    assert loose("punctuation:no_comma", {}, "one, two") is False


def test_sentences_are_counted_by_marks_before_white_space() -> None:
    assert count_sentences("It is 3.5 m. Is it? Yes") == 3
    assert count_sentences('He said "No." Then he left.') == 2
    assert count_sentences("...") == 0


def test_settings_that_a_constraint_does_not_have_are_an_error() -> None:
    with pytest.raises(TypeError):
        strict("punctuation:no_comma", {"num_words": 3}, "one")
    with pytest.raises(TypeError, match="neither"):
        strict("length_constraints:number_words", {"num_words": 3, "relation": "around"}, "one")
    with pytest.raises(KeyError):
        strict("no:such", {}, "one")


def test_prompts_of_ifeval_itself_can_be_scored(shared_data: Path) -> None:
    rows = (shared_data / "instructions" / "ifeval_prompts.jsonl").read_text().splitlines()
    constraints = 0
    for row in map(json.loads, rows):
        for name, settings in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            assert strict(name, settings, "An answer.") in (True, False, None)
            constraints += 1
    assert constraints > 800
