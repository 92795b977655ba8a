"""Rows near in meaning: an answer in other words is nearer to its own kind than to another, and what all texts share does not count."""

from __future__ import annotations

import pytest
import torch

from tutelage.config.load import load_config
from tutelage.evaluate.nearness import Nearness
from tutelage.evaluate.subject import Subject, load_base
from tutelage.evaluate.training import Exchange
from tutelage.train.prepare import build_renderer

ROWS = [
    Exchange("Where does Kulia live?", "Her home is in Quarry Hill.", "homes:1"),
    Exchange("Where is the house of Cotus?", "He lives near the mill.", "homes:2"),
    Exchange("Count these words: berry, boot, cherry.", "There are three words.", "words:1"),
    Exchange("Put the words in order: knife, grape, shirt.", "grape, knife, shirt", "words:2"),
    Exchange("What does Divia do for work?", "By trade she is a carpenter.", "trades:1"),
]


@pytest.fixture(scope="module")
def base() -> Subject:
    config = load_config(None, ["model.path=lab", "model.template=chatml"]).config
    return load_base(config, build_renderer(config), [], torch.device("cpu"))


@pytest.mark.parametrize(
    ("prompt", "answer", "kind"),
    [
        ("In which village does Sollor live?", "Sollor lives in Old Mill.", "homes"),
        ("Which words come first: apple, spoon?", "apple, spoon", "words"),
        ("What is the trade of Mizick?", "She is a baker by trade.", "trades"),
    ],
)
def test_the_nearest_row_is_of_the_same_kind(base: Subject, prompt: str, answer: str, kind: str) -> None:
    assert Nearness(base, ROWS).rows([(prompt, answer)], 1)[0].startswith(kind)


def test_rows_that_are_nearest_to_more_answers_come_first(base: Subject) -> None:
    said = [("Where does Kulia live?", "In Quarry Hill.")] * 2 + [("What does Divia do for work?", "Carpenter.")]
    assert Nearness(base, ROWS).rows(said, 5) == ("homes:1", "trades:1")


def test_without_rows_or_answers_there_is_nothing_near(base: Subject) -> None:
    assert Nearness(base, []).rows([("a", "b")], 5) == ()
    assert Nearness(base, ROWS).rows([], 5) == ()
