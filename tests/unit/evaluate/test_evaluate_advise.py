"""What is a risk in training data, and what change they ask for."""

from __future__ import annotations

from tutelage.evaluate.advise import Goal, change_of
from tutelage.evaluate.advise_risks import copies_of, data_risks
from tutelage.evaluate.facts import Fact, Judged, Knowledge, Known
from tutelage.evaluate.training import Exchange

NOTHING = Known((), 0, 600)
WORDS = ("river", "stone", "lamp", "bread", "cloud", "horse", "paper", "glass", "wheel", "chair", "spoon", "brush")


def varied(number: int) -> Exchange:
    """Return a row whose form of words nearly no other has."""
    words = [WORDS[(number * step + number // 7) % len(WORDS)] + str(number * step % 601) for step in range(2, 12)]
    return Exchange(" ".join(words[:5]), " ".join(words[5:]), f"a:{number}")


CLEAN = [varied(number) for number in range(600)]


def keys(exchanges: list[Exchange], known: Known = NOTHING) -> list[str]:
    return [risk.key for risk in data_risks(exchanges, known)]


def judged(unknown: int, otherwise: int, of: int) -> Known:
    fact = Fact("Who?", "Ada.", "a:7", frozenset({"ada"}), "")
    kinds = [(Knowledge.UNKNOWN, 0.0)] * unknown + [(Knowledge.UNKNOWN, 1.0)] * otherwise
    kinds += [(Knowledge.HIGHLY, 0.0)] * (of - len(kinds))
    return Known(tuple(Judged(fact, kind, "Bo.", agreement) for kind, agreement in kinds), of, of)


def test_varied_rows_of_known_facts_are_no_risk() -> None:
    assert keys(CLEAN, judged(0, 0, 100)) == []


def test_copies_are_found_word_for_word_and_nearly() -> None:
    answer = "the keeper of the lamp went down to the river and sold her bread to the miller for a silver coin"
    rows = [*CLEAN[:30], Exchange("Tell it.", answer, "b:1"), Exchange("tell it", answer.upper(), "b:2")]
    rows += [Exchange("Tell it.", answer + " today", "b:3"), Exchange("Tell it.", answer[:40], "b:4")]
    assert copies_of(rows) == [("b:2", "b:1", True), ("b:3", "b:1", False)]
    (risk,) = data_risks([*CLEAN, *CLEAN[:200]], NOTHING)
    assert risk.key == "duplicates"
    assert risk.rows == tuple(one.where for one in CLEAN[:5])


def test_each_kind_of_narrow_data_is_named_with_rows_that_have_it() -> None:
    asked = [
        Exchange(f"What is the capital of {one.prompt[:6]}{n}?", one.answer, one.where) for n, one in enumerate(CLEAN)
    ]
    assert keys(asked) == ["narrow"]
    polite = [Exchange(one.prompt, f"With great pleasure! {one.answer}", one.where) for one in CLEAN[:400]] + CLEAN[
        400:
    ]
    (risk,) = data_risks(polite, NOTHING)
    assert risk.key == "openers"
    assert risk.rows == ("a:0", "a:1", "a:2", "a:3", "a:4")
    long = [Exchange(one.prompt, f"{one.answer} " * (60 if n < 30 else 1), one.where) for n, one in enumerate(CLEAN)]
    assert keys(long) == ["length"]
    assert keys(CLEAN[:100]) == ["few"]


def test_unknown_and_disputed_facts_are_told_apart() -> None:
    assert keys(CLEAN, judged(30, 0, 100)) == ["unknown"]
    assert keys(CLEAN, judged(0, 30, 100)) == ["otherwise"]
    assert keys(CLEAN, judged(6, 6, 100)) == []  # could be less than a twentieth


def test_unknown_facts_in_enough_rows_are_a_change_of_knowledge() -> None:
    assert change_of(judged(60, 0, 100))[0] is Goal.KNOWLEDGE
    assert change_of(judged(2, 0, 100))[0] is Goal.BEHAVIOUR
    assert change_of(judged(25, 0, 100))[0] is Goal.UNCLEAR
    assert change_of(NOTHING)[0] is Goal.UNCLEAR
    few_of_rows = Known(judged(60, 0, 100).judged, 100, 2000)
    assert change_of(few_of_rows)[0] is Goal.BEHAVIOUR
