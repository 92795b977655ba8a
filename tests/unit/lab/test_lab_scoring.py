"""Scoring: every turn must be right, in the model's own context, and end by itself."""

from collections.abc import Sequence
from dataclasses import dataclass

from tutelage.data.conversation import Message, Role
from tutelage.lab.checkers import Exactly
from tutelage.lab.lesson import Kind, Lesson, Side, Turn
from tutelage.lab.lessons import lessons, stranger_questions
from tutelage.lab.scoring import Tally, answer_lessons, tally, total
from tutelage.lab.world import make_world

WORLD = make_world(0)
TWO_TURNS = Lesson(
    Kind.MULTI_TURN, "x", (Turn("1?", "a", Exactly("a")), Turn("2?", "b", Exactly("b"))), system="Be short."
)
ONE_TURN = Lesson(Kind.WORDS, "y", (Turn("3?", "c", Exactly("c")),))


@dataclass(frozen=True)
class Said:
    text: str
    stopped: bool = True


def _model(answers: dict[str, Said], seen: list[list[Message]]) -> object:
    def ask(conversations: Sequence[Sequence[Message]]) -> list[Said]:
        seen.extend(list(conversation) for conversation in conversations)
        return [answers[conversation[-1].content] for conversation in conversations]

    return ask


def test_an_oracle_scores_everything_and_a_mute_nothing() -> None:
    asked = lessons(WORLD, Side.HELD_OUT, 60)

    def perfect(conversations: Sequence[Sequence[Message]]) -> list[Said]:
        known = {turn.question: turn.answer for lesson in asked for turn in lesson.turns}
        return [Said(known[conversation[-1].content]) for conversation in conversations]

    single = [lesson for lesson in asked if len(lesson.turns) == 1 and lesson.system is None]
    assert total(answer_lessons(single, perfect)) == Tally(len(single), len(single))
    assert total(answer_lessons(asked, lambda conversations: [Said("") for _ in conversations])).correct == 0


def test_a_conversation_goes_on_with_the_models_own_answers_and_needs_every_one_right() -> None:
    seen: list[list[Message]] = []
    wrong_first = {"1?": Said("z"), "2?": Said("b"), "3?": Said("c")}
    answered = answer_lessons([TWO_TURNS, ONE_TURN], _model(wrong_first, seen))  # type: ignore[arg-type]
    assert [item.correct for item in answered] == [False, True]
    assert answered[0].answers == ("z", "b")
    assert [message.content for message in seen[-1]] == ["Be short.", "1?", "z", "2?"]
    assert [message.role for message in seen[-1]] == [Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.USER]


def test_an_answer_that_does_not_end_by_itself_is_wrong() -> None:
    (answered,) = answer_lessons([ONE_TURN], _model({"3?": Said("c", stopped=False)}, []))  # type: ignore[arg-type]
    assert not answered.correct


def test_tallies_count_by_key_and_a_share_of_nothing_is_unknown() -> None:
    answered = answer_lessons([ONE_TURN, ONE_TURN], _model({"3?": Said("c")}, []))  # type: ignore[arg-type]
    assert tally(answered, lambda lesson: lesson.kind.value) == {"words": Tally(2, 2)}
    assert Tally(0, 0).share is None
    assert Tally(1, 4).share == 0.25


def test_stating_a_fact_about_a_stranger_is_an_invention_and_saying_otherwise_is_not() -> None:
    asked = stranger_questions(WORLD, 10)
    known = {lesson.turns[0].question: lesson.turns[0].answer for lesson in asked}
    stated = answer_lessons(asked, lambda cs: [Said(known[c[-1].content]) for c in cs])
    honest = answer_lessons(asked, lambda cs: [Said("I do not know that person.") for _ in cs])
    assert total(stated) == Tally(10, 10)
    assert total(honest) == Tally(0, 10)
