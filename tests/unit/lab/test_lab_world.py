"""The world is consistent, the same on every machine, and its text says what is true."""

import re

import pytest

from tutelage.lab import prose
from tutelage.lab import text as world_text
from tutelage.lab.world import Attribute, Group, make_world, values_of

WORLD = make_world(0)


def test_the_same_seed_gives_the_same_world_and_another_seed_another() -> None:
    assert make_world(0) == WORLD
    assert {p.name for p in make_world(1).people} != {p.name for p in WORLD.people}


def test_first_names_are_unique_so_that_a_name_means_one_person() -> None:
    firsts = [person.first for person in WORLD.people]
    assert len(firsts) == len(set(firsts)) == 320


def test_friends_are_mutual_and_of_the_same_group() -> None:
    for person in WORLD.people:
        friend = WORLD.person(person.friend)
        assert friend is not person
        assert friend.friend == person.name
        assert friend.group is person.group


def test_every_value_comes_from_its_closed_set() -> None:
    for person in WORLD.people:
        for attribute in set(Attribute) - {Attribute.FRIEND}:
            assert person.value(attribute) in values_of(attribute)


def test_no_name_of_a_person_is_a_town() -> None:
    towns = set(values_of(Attribute.TOWN))
    assert not towns & {word for person in WORLD.people for word in (person.first, person.last)}


def test_an_odd_group_is_refused_because_friends_come_in_pairs() -> None:
    with pytest.raises(ValueError, match="group read has 3 people"):
        make_world(0, num_read=3)


def test_a_document_is_a_pure_function_of_world_and_number() -> None:
    once = list(world_text.documents(WORLD, 50, 30))
    assert once == [world_text.document(make_world(0), number) for number in range(50, 80)]
    assert len(set(once)) > 25


def test_the_text_speaks_of_every_inhabitant_and_of_no_stranger() -> None:
    text = "\n".join(world_text.documents(WORLD, 0, 8000))
    words = set(re.findall(r"[A-Z][a-z]+", text))
    assert {person.first for person in WORLD.inhabitants} <= words
    assert not {person.first for person in WORLD.group(Group.STRANGER)} & words


def test_the_text_holds_no_chat_or_instruction_format() -> None:
    text = "\n".join(world_text.documents(WORLD, 0, 8000))
    markers = r"<\||\|>|\[INST|### |\b(user|assistant|system|human|instruction|response|question|answer)s?\s*:"
    assert re.search(markers, text, re.IGNORECASE) is None


def test_sentences_in_the_text_that_name_a_town_name_the_right_one() -> None:
    text = "\n".join(world_text.documents(WORLD, 0, 8000))
    claims = re.findall(r"[Tt]he home of (\w+ \w+) is in ([A-Z]\w+(?: [A-Z]\w+)?)\.", text)
    by_name = {person.name: person for person in WORLD.people}
    checked = [by_name[name].town == town for name, town in claims if name in by_name]
    assert len(checked) > 200
    assert all(checked)


@pytest.mark.parametrize("attribute", list(Attribute))
def test_every_wording_of_a_fact_holds_its_value_and_who_it_is_about(attribute: Attribute) -> None:
    import random

    person = WORLD.people[0]
    for pronoun in (False, True):
        for number in range(40):
            sentence = prose.statement(random.Random(number), person, attribute, pronoun=pronoun)
            assert person.value(attribute) in sentence
            assert "{" not in sentence
            subject = rf"\b({person.she_he}|{person.her_him}|{person.her_his})\b" if pronoun else re.escape(person.name)
            assert re.search(subject, sentence, re.IGNORECASE)
            assert not (pronoun and person.name in sentence)
