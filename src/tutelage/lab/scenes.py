"""Scenes of the world in which somebody wants something and gets it: talks, riddles, commissions, games with words.

All of it is prose about people; who asks anything asks another person of the scene, in quotation marks.
"""

from __future__ import annotations

import random

from tutelage.lab import prose, skills, tales
from tutelage.lab.world import Attribute, Person, World

FOLLOW_UPS: dict[Attribute, tuple[str, ...]] = {
    Attribute.TOWN: ("And where does {she} live?", "And in which town does {she} live?"),
    Attribute.TRADE: ("And what is {her} trade?", "And what does {she} do for a living?"),
    Attribute.ANIMAL: ("And which animal does {she} keep?", "And what animal does {she} have?"),
    Attribute.COLOUR: ("And what colour is {her} front door?", "And the colour of {her} front door?"),
    Attribute.FOOD: ("And what does {she} like to eat?", "And {her} favourite food?"),
    Attribute.FRIEND: ("And who is {her} best friend?", "And {her} best friend?"),
    Attribute.KEY: ("And where does {she} hide the house key?",),
}
_FRIENDS_FACT: dict[Attribute, str] = {
    Attribute.TOWN: "where the best friend of {name} lives",
    Attribute.TRADE: "what the trade of the best friend of {name} is",
    Attribute.ANIMAL: "which animal the best friend of {name} keeps",
    Attribute.COLOUR: "what colour the front door of the best friend of {name} is",
    Attribute.FOOD: "what the best friend of {name} likes to eat",
}
_WONDERED = (
    "{speaker} wanted to know {fact}.",
    "{speaker} could not tell {fact}.",
    "{speaker} tried to find out {fact}.",
    "The riddle was {fact}.",
)
_HASTE = (
    "The clerk was in a hurry and spoke in few words.",
    "Nobody had time for long speeches.",
    "They gave the facts alone.",
)
_COUNTED = ("The children counted.", "That is soon counted.", "They wanted to know how many that makes.", "Now count.")
_COMPARED = ("The children compared.", "One of them is richer.", "They wanted to know who has more.")


def _question(rng: random.Random, person: Person, attribute: Attribute) -> str:
    return rng.choice(prose.ASKED[attribute]).format(name=person.name)


def talk(world: World, rng: random.Random) -> str:
    """Return a talk in which two to four facts about one person are asked for in turn."""
    person = rng.choice(world.inhabitants)
    first, *others = rng.sample(list(Attribute), rng.randint(2, 4))
    speaker = rng.choice(prose.SPEAKERS)
    lines = [f'"{_question(rng, person, first)}" asked {speaker}.', f'"{prose.plain_statement(person, first)}"']
    for attribute in others:
        question = rng.choice(FOLLOW_UPS[attribute]).format(she=person.she_he, her=person.her_his)
        lines += [f'"{question}"', f'"{prose.plain_statement(person, attribute)}"']
    return (" " if rng.random() < 0.5 else "\n").join(lines)


def haste(world: World, rng: random.Random) -> str:
    """Return questions about one to three people, answered with the fact alone."""
    pieces = [rng.choice(_HASTE)]
    for _ in range(rng.randint(1, 3)):
        person, attribute = rng.choice(world.inhabitants), rng.choice(list(Attribute))
        value = person.value(attribute)
        pieces.append(f'"{_question(rng, person, attribute)}" "{value[0].upper()}{value[1:]}."')
    return (" " if rng.random() < 0.5 else "\n").join(pieces)


def riddle(world: World, rng: random.Random) -> str:
    """Return a riddle about the friend of somebody, solved in two steps."""
    person = rng.choice(world.inhabitants)
    friend = world.person(person.friend)
    attribute = rng.choice(sorted(_FRIENDS_FACT))
    steps = f"{prose.plain_statement(person, Attribute.FRIEND)} {prose.plain_statement(friend, attribute)}"
    ending = rng.choice((f" So the answer is {friend.value(attribute)}.", ""))
    fact = _FRIENDS_FACT[attribute].format(name=person.name)
    wondered = rng.choice(_WONDERED).format(speaker=rng.choice(prose.SPEAKERS).capitalize(), fact=fact)
    return f"{wondered} {steps}{ending}"


def reckoning(world: World, rng: random.Random) -> str:
    """Return a small sum about things, worked out by the teller."""
    person, other = rng.sample(world.inhabitants, 2)
    left, right, what = rng.randint(1, 10), rng.randint(1, 10), rng.choice(skills.COUNTED)
    n, name = skills.NUMBERS, person.name
    whole = left + right
    counted = rng.choice(_COUNTED)
    added = f"{counted} {skills.sum_sentence(left, right)} So the answer is {n[whole]}."
    taken = f"{counted} {skills.difference_sentence(whole, right)} So the answer is {n[left]}."
    small, large = sorted(rng.sample(range(1, 21), 2))
    first, second = rng.sample(((person, large), (other, small)), 2)
    richer = (
        f"{first[0].name} has {n[first[1]]} {what} and {second[0].name} has {n[second[1]]}. {rng.choice(_COMPARED)} "
        f"{skills.more_sentence(large, small)} So the answer is {name}."
    )
    return rng.choice(
        (
            f"{name} has {n[left]} {what} and gets {n[right]} more. {added}",
            f"There are {n[left]} {what} in a basket, and {name} puts in {n[right]} more. {added}",
            f"{name} has {n[whole]} {what} and gives away {n[right]}. {taken}",
            f"There are {n[whole]} {what} on a table, and {name} takes {n[right]}. {taken}",
            richer,
            richer,
        )
    )


def sums(world: World, rng: random.Random) -> str:
    """Return two to five sums that go on from one another, as children say them aloud."""
    n = skills.NUMBERS
    left, right = rng.randint(1, 10), rng.randint(1, 10)
    total = left + right
    pieces = [f"They began with {n[left]} and {n[right]}. {skills.sum_sentence(left, right)}"]
    for _ in range(rng.randint(1, 4)):
        if total > 10 or (total > 1 and rng.random() < 0.6):
            part = rng.randint(max(1, total - 10), min(10, total - 1))
            wish = rng.choice(("Then they took away", "Next they went down by", "Then it was to be less"))
            pieces.append(f"{wish} {n[part]}. {skills.difference_sentence(total, part)}")
            total -= part
        else:
            part = rng.randint(1, 10)
            pieces.append(f"Then came {n[part]} more. {skills.sum_sentence(total, part)}")
            total += part
    return " ".join(pieces)


def word_game(world: World, rng: random.Random) -> str:
    """Return a game with a list of words: several tasks, each done."""
    words = skills.odd_one_list(rng)[0] if rng.random() < 0.3 else skills.random_list(rng, 2, 6)
    position, word = rng.choice([*zip(skills.ORDINALS, words, strict=False), ("last", words[-1])])
    category = skills.category_of(rng.choice(words))
    members = [w for w in words if skills.category_of(w) == category]
    moves = [
        f"First they pointed to the {position} word. The {position} word is {word}.",
        f"Then they read from the end. Backwards, the words are {skills.listed(words[::-1])}.",
        f"They looked into the dictionary. In alphabetical order, the words are {skills.listed(sorted(words))}.",
        f"They counted on their fingers. There are {skills.NUMBERS[len(words)]} words.",
    ]
    if len(members) == 1:
        moves.append(f"They looked for {skills.with_article(category)}. The {category} among them is {members[0]}.")
    opening = rng.choice(
        ("They played with the words {}.", "The game was about {}.", "Here is the list {}.", "On the wall stood {}.")
    )
    return " ".join([opening.format(skills.listed(words)), *rng.sample(moves, rng.randint(2, len(moves)))])


def commission(world: World, rng: random.Random) -> str:
    """Return a wish for a rhyme, a letter or a story, and what was written."""
    kind = rng.randrange(3)
    person, other = rng.sample(world.inhabitants, 2)
    if kind == 0:
        word = rng.choice([word for family in tales.RHYMES for word in family])
        wish = rng.choice(
            (
                "A boy wanted a rhyme on {}.",
                "The poet was to write two lines, the first ending with {}.",
                "They asked for a rhyme, and the word was {}.",
            )
        ).format(word)
        return f"{wish}\n{tales.rhyme_on(rng, word)}"
    thing = rng.choice(skills.WORDS)
    a_thing = skills.with_article(thing)
    if kind == 1:
        wish = rng.choice(
            (
                f"{person.name} wanted to write a letter to {other.name} about {a_thing}.",
                f"The clerk wrote to {other.name} for {person.name}, about {a_thing}.",
                f"A letter went from {person.name} to {other.name}, and it was about {a_thing}.",
            )
        )
        return f"{wish}\n{tales.letter_about(rng, person, other, thing)}"
    sentences = rng.choice((2, 3))
    wish = rng.choice(
        (
            f"This is a story in {skills.NUMBERS[sentences]} sentences about {person.name} and {a_thing}.",
            f"They wanted a story of {skills.NUMBERS[sentences]} sentences in which {person.name} meets with {a_thing}.",
        )
    )
    return f"{wish}\n{tales.story_about(rng, person, thing, sentences=sentences)}"
