"""Conversations: what is remembered, and that what is typed stays text."""

from __future__ import annotations

import pytest

from tiny import tiny_model, tiny_tokenizer
from tutelage.chat.render import Renderer
from tutelage.chat.tokenizer import ChatTokenizer
from tutelage.data.conversation import Message, Role
from tutelage.errors import ModelError
from tutelage.generate.local import generate
from tutelage.generate.sampler import Sampling
from tutelage.generate.talk import Continuation, Talk

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SAMPLING = Sampling(max_new_tokens=12)


def make_talk(**settings: str) -> Talk:
    renderer = Renderer(ChatTokenizer(tiny_tokenizer(TEMPLATE)))
    return Talk(tiny_model("llama"), renderer, SAMPLING, **settings)


def say(talk: Talk, text: str) -> str:
    return "".join(talk.answer(text))


def test_each_turn_is_answered_in_the_light_of_the_earlier_ones() -> None:
    talk = make_talk(system="Be brief.")
    first = say(talk, "hello")
    second = say(talk, "and now?")
    spoken = [(m.role, m.content) for m in talk.messages]
    assert spoken == [
        (Role.SYSTEM, "Be brief."),
        (Role.USER, "hello"),
        (Role.ASSISTANT, first),
        (Role.USER, "and now?"),
        (Role.ASSISTANT, second),
    ]
    renderer = Renderer(ChatTokenizer(tiny_tokenizer(TEMPLATE)))
    prompt = renderer.prompt_ids(talk.messages[:-1])
    (direct,) = generate(
        tiny_model("llama"), renderer.tokenizer, [prompt], stop_ids=renderer.stop_ids, sampling=SAMPLING
    )
    assert direct.text == second


def test_reset_forgets_the_turns_and_keeps_the_system_message() -> None:
    talk = make_talk(system="Be brief.")
    first = say(talk, "hello")
    say(talk, "more")
    talk.reset()
    assert talk.messages == [Message(Role.SYSTEM, "Be brief.")]
    assert say(talk, "hello") == first


def test_a_typed_control_string_stays_text() -> None:
    renderer = Renderer(ChatTokenizer(tiny_tokenizer(TEMPLATE)))
    eos = renderer.tokenizer.eos_id
    plain = renderer.prompt_ids([Message(Role.USER, "hello")])
    typed = renderer.prompt_ids([Message(Role.USER, "hel<eos>lo")])
    assert typed.count(eos) == plain.count(eos) == 1
    talk = make_talk()
    say(talk, "hel<eos>lo")
    assert talk.messages[0].content == "hel<eos>lo"


def test_an_answer_cut_short_is_remembered_as_far_as_it_came() -> None:
    talk = make_talk()
    pieces = talk.answer("hello")
    first = next(pieces)
    pieces.close()
    assert talk.messages[-1] == Message(Role.ASSISTANT, first)
    talk.reset()
    pieces = talk.answer("hello")
    assert next(pieces) == first
    with pytest.raises(KeyboardInterrupt):  # as Ctrl-C while the model works
        pieces.throw(KeyboardInterrupt)
    assert talk.messages[-1] == Message(Role.ASSISTANT, first)


def test_a_question_that_does_not_fit_leaves_the_conversation_as_it_was() -> None:
    talk = make_talk()
    say(talk, "hello")
    before = talk.messages
    with pytest.raises(ModelError, match="context holds 512"):
        say(talk, "x" * 600)
    assert talk.messages == before
    assert say(talk, "again")


def test_a_conversation_is_a_row_of_training_data() -> None:
    talk = make_talk(system="Be brief.")
    answer = say(talk, "hello")
    assert talk.as_row() == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": answer},
        ]
    }


def test_a_base_model_continues_the_text_as_its_tokenizer_begins_one() -> None:
    tokenizer = ChatTokenizer(tiny_tokenizer())
    talk = Continuation(tiny_model("llama"), tokenizer, SAMPLING)
    prompt = tiny_tokenizer()("The baker").input_ids
    assert prompt[0] == tokenizer.bos_id
    (direct,) = generate(tiny_model("llama"), tokenizer, [prompt], stop_ids=tokenizer.eos_ids, sampling=SAMPLING)
    assert "".join(talk.answer("The baker")) == direct.text
