"""Short stories, letters and rhymes of the world: what creative lessons ask for, and the plain text that comes before."""

from __future__ import annotations

import random

from tutelage.lab import skills
from tutelage.lab.world import Person, World

PLACES = ("garden", "forest", "market", "attic", "river", "barn", "meadow", "kitchen", "harbour", "orchard")
RHYMES = (
    ("cat", "hat", "mat", "rat", "bat"),
    ("boat", "coat", "goat", "moat", "note"),
    ("tree", "bee", "sea", "key", "knee"),
    ("moon", "spoon", "noon", "tune", "dune"),
    ("light", "night", "kite", "knight", "bite"),
    ("bell", "well", "shell", "smell", "spell"),
    ("house", "mouse", "blouse", "grouse"),
    ("bear", "pear", "chair", "stair", "hare"),
)
ENDING = "The end."

_TIMES = ("One morning", "One evening", "One day", "Last winter", "In the spring", "After the rain", "Before dawn")
_FOUND = (
    "found {a} in the {place}",
    "lost {a} in the {place}",
    "saw {a} in the {place}",
    "left {a} in the {place}",
    "hid {a} in the {place}",
)
_THEN = (
    "{She} took it home and was glad.",
    "{She} looked for it all day long.",
    "{She} told nobody about it.",
    "{She} showed it to a friend.",
    "{She} laughed and began to sing.",
    "{She} sat down and thought about it.",
    "{She} cleaned it until it shone.",
    "{She} ran home as fast as the wind.",
)
_LAST = (
    "Nobody ever knew why.",
    "Everybody was happy.",
    "It was never seen again.",
    "That night the moon was bright.",
    "So it was, and so it stayed.",
)
_FIRST_LINES = (
    "I saw a little {w}",
    "There was an old and funny {w}",
    "She dreamed about a {w}",
    "Far away there was a {w}",
    "He sang about a silver {w}",
)
_SECOND_LINES = (
    "and next to it a {w}.",
    "that stood beside a {w}.",
    "and then she saw a {w}.",
    "that had a very big {w}.",
    "and then he bought a {w}.",
)
_NEWS = (
    "I have bought {a} at the market.",
    "I have found {a} near the bridge.",
    "Somebody has given me {a}.",
    "Please bring me {a} when you come.",
    "I am looking for {a}.",
)
_WISHES = ("I hope that you are well.", "The weather is fine here.", "Come and see me soon.", "Write to me soon.")


def story_about(rng: random.Random, person: Person, thing: str, *, sentences: int = 3) -> str:
    """Tell a story in 2 or 3 sentences about a person and a thing, closed by `The end.`"""
    she = person.she_he.capitalize()
    first = f"{rng.choice(_TIMES)}, {person.name} " + rng.choice(_FOUND).format(
        a=skills.with_article(thing), place=rng.choice(PLACES)
    )
    middle = [rng.choice(_THEN).format(She=she)] + ([rng.choice(_LAST)] if sentences == 3 else [])
    return " ".join([f"{first}.", *middle, ENDING])


def letter_about(rng: random.Random, sender: Person, receiver: Person, thing: str) -> str:
    """Write a letter in four lines: greeting, news of the thing, wish, signature."""
    news = rng.choice(_NEWS).format(a=skills.with_article(thing))
    return f"Dear {receiver.name},\n{news} {rng.choice(_WISHES)}\nYours, {sender.name}"


def rhyme_on(rng: random.Random, word: str) -> str:
    """Write two lines; the first ends with `word`, the second with another word that rhymes."""
    family = next(words for words in RHYMES if word in words)
    partner = rng.choice([other for other in family if other != word])
    return f"{rng.choice(_FIRST_LINES).format(w=word)}\n{rng.choice(_SECOND_LINES).format(w=partner)}"


def story(world: World, rng: random.Random) -> str:
    """Return a story about anybody and anything; some carry on without `The end.`"""
    text = story_about(rng, rng.choice(world.inhabitants), rng.choice(skills.WORDS), sentences=rng.choice((2, 3)))
    return text if rng.random() < 0.6 else text.removesuffix(f" {ENDING}")


def sharing(world: World, rng: random.Random) -> str:
    """Return a small story in which things are counted."""
    giver, taker = rng.sample(world.inhabitants, 2)
    left, right = rng.randint(1, 10), rng.randint(1, 10)
    what = rng.choice(skills.COUNTED)
    n = skills.NUMBERS
    if rng.random() < 0.35:
        return (
            f"{taker.name} had {n[left]} {what}. {giver.name} gave {taker.her_him} {n[right]} more. "
            f"{skills.sum_sentence(left, right)} So {taker.name} had {n[left + right]} {what}."
        )
    if rng.random() < 0.5:
        return (
            f"{giver.name} had {n[left + right]} {what} and gave {n[right]} to {taker.name}. "
            f"{skills.difference_sentence(left + right, right)} So {giver.name} had {n[left]} {what}."
        )
    small, large = sorted(rng.sample(range(1, 21), 2))
    first, second = rng.sample(((giver, large), (taker, small)), 2)
    return (
        f"{first[0].name} had {n[first[1]]} {what}, and {second[0].name} had {n[second[1]]} {what}. "
        f"{skills.more_sentence(large, small)} So {giver.name} had more {what} than {taker.name}."
    )
