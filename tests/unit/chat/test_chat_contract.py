"""The contract finds every way in which a template, a tokenizer and a mask can disagree."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chat_samples import CONVERSATIONS, assistant, tokenizer_of, user
from tutelage.chat import clauses
from tutelage.chat.clauses import Sample
from tutelage.chat.contract import check_contract
from tutelage.chat.render import Renderer, RenderOptions
from tutelage.chat.template import NAMED_TEMPLATES, Template, load_template, special_tokens_needed
from tutelage.config.schema import ControlStrings
from tutelage.data.conversation import Conversation, Origin
from tutelage.errors import TemplateError

SPECIAL = ("<|im_start|>", "<|im_end|>")
ROW = replace(CONVERSATIONS["no_system"], origin=Origin("rows.jsonl", 0, 1))
TURN = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def broken(source: str, *rows: Conversation, name: str = "byte-level") -> dict[str, str]:
    renderer = Renderer(tokenizer_of(name, SPECIAL), Template(source))
    return {check.name: check.detail for check in check_contract(renderer, rows or (ROW,)).checks if not check.passed}


@pytest.mark.parametrize("name", NAMED_TEMPLATES)
def test_the_templates_that_ship_keep_it_for_every_shape(name: str) -> None:
    template, tokenizer = load_template(name), tokenizer_of("byte-level")
    tokenizer = tokenizer.with_special_tokens(special_tokens_needed(template, tokenizer))
    report = check_contract(Renderer(tokenizer, template), list(CONVERSATIONS.values()))
    assert report.passed, report
    report.raise_if_broken()
    details = {check.name: check.detail for check in report.checks}
    assert "to be added to the saved generation configuration" in details["a stop token ends each turn and is trained"]


def test_a_sound_template_keeps_it() -> None:
    assert broken(TURN + PROMPT) == {}


def test_a_missing_generation_prompt_is_found() -> None:
    (detail,) = broken(TURN).values()
    assert "rows.jsonl:1, turn of message 1" in detail and "'<|im_start|>assistant\\n'" in detail


def test_a_generation_prompt_with_more_than_the_turn_is_found() -> None:
    (detail,) = broken(TURN + PROMPT.replace("assistant\n", "assistant\n<think>\n")).values()
    assert "the generation prompt ends" in detail and "<think>" in detail


def test_a_switch_of_the_template_may_make_the_prompt() -> None:
    thinking = (
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' + ('' if quick else '<think>\n') }}{% endif %}"
    )
    assert broken(TURN + thinking) == {}


def test_a_prompt_that_merges_with_the_answer_is_found() -> None:
    source = TURN.replace("m.role + '\n' + ", "m.role + ': ' + ") + PROMPT.replace("assistant\n", "assistant: ")
    (detail,) = broken(source).values()
    assert "merges the end of the prompt with the beginning of the answer" in detail


def test_a_missing_stop_token_is_found() -> None:
    headers = TURN.replace("<|im_start|>", "").replace("<|im_end|>", "")
    (detail,) = broken(headers + PROMPT.replace("<|im_start|>", "")).values()
    assert "would not learn to stop" in detail and "message 1" in detail


def test_a_stop_text_of_several_tokens_is_found() -> None:
    details = broken(TURN.replace("<|im_end|>", "<|stop|>") + PROMPT)
    assert "<|stop|>" in details["a stop token ends each turn and is trained"]


def test_turns_that_only_the_next_header_stops_need_a_next_message() -> None:
    source = TURN.replace("<|im_end|>\n", "") + PROMPT
    assert broken(source) == {}
    (detail,) = broken(source, Conversation((user("What?"), assistant("It is four.")))).values()
    assert "no conversation goes on after an answer" in detail


def test_a_doubled_bos_is_found() -> None:
    details = broken("{{ bos_token + bos_token }}" + TURN + PROMPT)
    assert "tokens 0 and 1" in details["one BOS at most"]


def test_marks_of_the_template_that_disagree_are_found() -> None:
    marked = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% generation %}{{ m.content[:2] }}{% endgeneration %}"
        "{{ m.content[2:] + '<|im_end|>\n' }}{% endfor %}"
    )
    assert "the template marks" in broken(marked + PROMPT)["{% generation %} agrees"]


def test_a_template_that_refuses_every_row_breaks_it_and_one_row_does_not() -> None:
    picky = "{% if messages[0].role == 'system' %}{{ raise_exception('no system, please') }}{% endif %}" + TURN + PROMPT
    assert broken(picky, ROW, CONVERSATIONS["chat"]) == {}
    details = broken(picky, CONVERSATIONS["chat"])
    assert "no system, please" in details["the template renders the conversations"]


def test_refusing_control_strings_is_checked_too() -> None:
    options = RenderOptions(control_strings=ControlStrings.REFUSE)
    report = check_contract(Renderer(tokenizer_of("byte-level", SPECIAL), Template(TURN + PROMPT), options), [ROW])
    assert report.passed, report


def test_a_broken_contract_raises_with_every_clause() -> None:
    renderer = Renderer(tokenizer_of("byte-level", SPECIAL), Template(TURN))
    with pytest.raises(TemplateError, match="breaks the render contract"):
        check_contract(renderer, [ROW]).raise_if_broken()


def planted(change: str) -> list[str]:
    """Return the faults found in a document whose mask or tokens were tampered with."""
    renderer = Renderer(tokenizer_of("byte-level", SPECIAL), Template(TURN + PROMPT))
    (document,) = renderer.inspect(ROW)
    rendered = document.rendered
    weights, ids = rendered.weights.copy(), rendered.ids.copy()
    if change == "user":
        weights[3] = 1
    elif change == "stop":
        weights[rendered.part == 4] = 0
    elif change == "nothing":
        weights[:] = 0
    else:
        ids[3] += 1
    tampered = replace(document, rendered=replace(rendered, weights=weights, ids=ids))
    samples = [Sample(ROW, tampered, synthetic=False)]
    clause = {"user": clauses.wrong_masks, "nothing": clauses.wrong_masks, "stop": clauses.wrong_stops}
    return list(clause.get(change, clauses.wrong_ids)(renderer, samples))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("user", "carries loss"),
        ("nothing", "none of its tokens carries loss"),
        ("stop", "its stop token '<|im_end|>' carries no loss"),
        ("id", "transformers has token 3"),
    ],
)
def test_planted_faults_are_found(change: str, found: str) -> None:
    assert found in planted(change)[0]
