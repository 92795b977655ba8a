"""The held-out split depends on the prompt's words alone."""

from __future__ import annotations

import pytest

from tutelage.data.conversation import Conversation, Document, Message, PreferencePair, Record, Role
from tutelage.data.split import is_held_out, split_held_out


def chat(question: str, answer: str = "yes") -> Conversation:
    return Conversation((Message(Role.USER, question), Message(Role.ASSISTANT, answer)))


CHATS: list[Record] = [chat(f"question {i}") for i in range(2000)]


def test_about_the_fraction_is_held_out_and_nothing_is_lost() -> None:
    train, held_out = split_held_out(CHATS, 0.1)
    assert 150 < len(held_out) < 250
    assert sorted(record.id for record in train + held_out) == sorted(record.id for record in CHATS)
    assert train == [record for record in CHATS if record not in held_out]


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_nothing_and_everything_can_be_held_out(fraction: float) -> None:
    _, held_out = split_held_out(CHATS, fraction)
    assert len(held_out) == fraction * len(CHATS)


def test_the_side_does_not_depend_on_the_other_records() -> None:
    _, held_out = split_held_out(CHATS, 0.2)
    _, of_half = split_held_out(CHATS[::-2], 0.2)
    assert {record.id for record in of_half} == {record.id for record in held_out} & {r.id for r in CHATS[::-2]}


def test_a_larger_fraction_only_adds() -> None:
    small, large = ({r.id for r in split_held_out(CHATS, fraction)[1]} for fraction in (0.1, 0.3))
    assert small < large


def test_seeds_give_other_splits() -> None:
    left, right = ({r.id for r in split_held_out(CHATS, 0.5, seed=seed)[1]} for seed in (0, 1))
    assert 300 < len(left & right) < 700


@pytest.mark.parametrize(
    "variant",
    [
        "what is the capital of france",
        "  What is\tthe capital\nof France?! ",
        "WHAT IS THE CAPITAL OF FRANCE",
        "“What is the capital of France?”",
        "What is the capital of ＦＲＡＮＣＥ ?",
        "*What is the capital of France* …",
    ],
)
def test_prompts_of_the_same_words_are_on_one_side(variant: str) -> None:
    asked = chat("What is the capital of France?", "Paris")
    for seed in range(20):
        assert is_held_out(chat(variant, "It is Paris."), 0.5, seed=seed) == is_held_out(asked, 0.5, seed=seed)


def test_prompts_of_other_words_are_told_apart() -> None:
    sides = {
        tuple(is_held_out(chat(question), 0.5, seed=seed) for seed in range(30))
        for question in ("Add 1 and 2", "Add 1 and 3", "Add 1.5 and 2", "Add 15 and 2")
    }
    assert len(sides) == 4


def test_later_turns_and_answers_do_not_matter() -> None:
    short = chat("hello")
    long = Conversation((*short.messages[:1], Message(Role.ASSISTANT, "no"), *chat("and now?").messages))
    assert short.prompt_key == long.prompt_key == "hello"


def test_a_greeting_by_the_assistant_does_not_make_all_prompts_equal() -> None:
    greeting = (Message(Role.SYSTEM, "Be kind."), Message(Role.ASSISTANT, "How can I help?"))
    one, other = (Conversation((*greeting, *chat(question).messages)) for question in ("one", "other"))
    assert one.prompt_key == "be kind how can i help one"
    assert one.prompt_key != other.prompt_key


def test_documents_and_pairs_have_a_side_too() -> None:
    assert Document("One, two.").prompt_key == "one two"
    prompt = chat("Hello!").messages[:1]
    pair = PreferencePair(prompt, (Message(Role.ASSISTANT, "a"),), (Message(Role.ASSISTANT, "b"),))
    assert pair.prompt_key == chat("hello").prompt_key
    for seed in range(20):
        assert is_held_out(pair, 0.5, seed=seed) == is_held_out(chat("hello"), 0.5, seed=seed)
