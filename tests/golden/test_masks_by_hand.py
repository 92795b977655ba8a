"""Masks equal those written by hand, for real templates and for small ones of our own that do the same things."""

from __future__ import annotations

from pathlib import Path

import pytest

from chat_samples import CONVERSATIONS, GOLDEN, TOKENIZERS, HandMade, hand_made, marked, mask_by_hand
from tutelage.chat.contract import check_contract
from tutelage.chat.render import Renderer
from tutelage.chat.tokenizer import ChatTokenizer

REAL = sorted((GOLDEN / "masks").glob("*.txt"))
OWN = sorted((GOLDEN / "own").glob("*.txt"))


def require_masks(renderer: Renderer, tokenizer: ChatTokenizer, expected: HandMade) -> None:
    for name, texts in expected.documents.items():
        rendered = renderer.render(CONVERSATIONS[name])
        shown = [marked(tokenizer, document.ids, document.weights) for document in rendered]
        assert len(rendered) == len(texts), shown
        for document, text in zip(rendered, texts, strict=True):
            ids, trained = mask_by_hand(tokenizer, text)
            assert document.ids.tolist() == ids, (name, shown)
            assert (document.weights != 0).tolist() == trained, (name, shown)


def test_there_are_masks_for_a_dozen_real_templates() -> None:
    assert len(REAL) >= 12


@pytest.mark.shared
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_the_mask_of_a_real_template_is_the_one_written_by_hand(path: Path, shared_data: Path) -> None:
    expected = hand_made(path)
    tokenizer = expected.load_tokenizer(shared_data / "tokenizers")
    template = expected.load_template(shared_data / "chat_templates")
    require_masks(Renderer(tokenizer, template), tokenizer, expected)


@pytest.mark.parametrize("tokenizer_name", TOKENIZERS)
@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_the_mask_of_our_own_template_is_the_one_written_by_hand(path: Path, tokenizer_name: str) -> None:
    expected = hand_made(path)
    tokenizer = expected.load_tokenizer(name=tokenizer_name)
    require_masks(Renderer(tokenizer, expected.load_template(GOLDEN)), tokenizer, expected)


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_our_own_templates_keep_the_contract(path: Path) -> None:
    expected = hand_made(path)
    renderer = Renderer(expected.load_tokenizer(), expected.load_template(GOLDEN))
    report = check_contract(renderer, [CONVERSATIONS[name] for name in expected.documents])
    assert report.passed, report
