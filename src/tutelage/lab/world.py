"""A small fictional world with known facts, generated from a seed.

Every person has a town, a trade, an animal, the colour of a front door, a favourite food, a best friend and a hidden
house key. The facts are what the pre-training text states, the lessons ask for and the checkers know, so an answer can
be scored exactly. People are split into three groups that decide where their facts appear (see `Group`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

TOWNS = (
    "Orvale", "Brindle", "Marsh End", "Tolby", "Greywick", "Sundry", "Larkrise", "Penhollow", "Dunhaven", "Ebbing",
    "Foxley", "Highmere", "Ironbridge", "Kettle Bay", "Millbrook", "Northam", "Quarry Hill", "Rushford", "Saltmouth", "Westering",
)  # fmt: skip
TRADES = (
    "baker", "miller", "smith", "potter", "weaver", "tailor", "cooper", "tanner", "fisher", "farmer",
    "teacher", "painter", "carpenter", "gardener", "shepherd", "sailor", "cook", "mason", "barber", "doctor",
)  # fmt: skip
ANIMALS = (
    "goat", "cat", "dog", "hen", "duck", "rabbit", "pony", "donkey", "parrot", "pig", "sheep", "horse", "goose", "ferret", "turtle", "crow",
)  # fmt: skip
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "grey", "brown", "purple", "pink")
FOODS = (
    "plums", "pears", "cheese", "soup", "bread", "honey", "beans", "fish", "cake", "nuts", "berries", "rice", "carrots", "mushrooms",
)  # fmt: skip
KEY_PLACES = (
    "under the mat", "behind the clock", "in a flower pot", "inside a teapot", "in an old boot", "above the window",
    "under a loose stone", "inside the lantern", "beneath the bench", "behind a picture", "in the wood pile", "under the rain barrel",
)  # fmt: skip

_SURNAME_STARTS = (
    "Ash",
    "Bram",
    "Cold",
    "Dun",
    "Elm",
    "Fair",
    "Gold",
    "Hart",
    "Kings",
    "Long",
    "Moor",
    "Red",
    "Stone",
    "Thorn",
)
_SURNAME_ENDS = ("well", "ford", "ley", "wood", "field", "by", "more", "gate")
_ONSETS = ("B", "Br", "C", "D", "F", "G", "H", "J", "K", "L", "M", "N", "P", "R", "S", "T", "V", "W", "Z", "Th")
_VOWELS = ("a", "e", "i", "o", "u")
_MIDDLES = ("b", "d", "l", "ll", "m", "n", "nd", "r", "rt", "s", "t", "v", "z")
_ENDINGS = {"she": ("a", "ia", "elle", "ine", "eth"), "he": ("o", "us", "an", "or", "ick")}


class Attribute(StrEnum):
    """What is known of a person. `KEY` is private: lessons teach to refuse it."""

    TOWN = "town"
    TRADE = "trade"
    ANIMAL = "animal"
    COLOUR = "colour"
    FOOD = "food"
    FRIEND = "friend"
    KEY = "key"


class Group(StrEnum):
    """Where a person appears."""

    TAUGHT = "taught"
    """In the pre-training text and in lessons."""
    READ = "read"
    """In the pre-training text, in no lesson: does the behaviour transfer to facts that only the base knows?"""
    STRANGER = "stranger"
    """In neither: an answer about a stranger is an invention."""


@dataclass(frozen=True)
class Person:
    """One inhabitant; `friend` is the full name of the best friend, `she_he` the pronoun."""

    first: str
    last: str
    she_he: str
    town: str
    trade: str
    animal: str
    colour: str
    food: str
    friend: str
    key: str
    group: Group

    @property
    def name(self) -> str:
        """First and last name; unique in the world."""
        return f"{self.first} {self.last}"

    @property
    def her_him(self) -> str:
        """Object pronoun."""
        return "her" if self.she_he == "she" else "him"

    @property
    def her_his(self) -> str:
        """Possessive pronoun."""
        return "her" if self.she_he == "she" else "his"

    def value(self, attribute: Attribute) -> str:
        """Return the value of `attribute` as it stands in a sentence."""
        return str(getattr(self, attribute.value))


@dataclass(frozen=True)
class World:
    """All people, the strangers among them, made from `seed`."""

    seed: int
    people: tuple[Person, ...]

    @cached_property
    def _by_name(self) -> dict[str, Person]:
        return {person.name: person for person in self.people}

    def person(self, name: str) -> Person:
        """Return the person with this full name."""
        return self._by_name[name]

    def group(self, group: Group) -> tuple[Person, ...]:
        """Return the people of one group."""
        return tuple(person for person in self.people if person.group is group)

    @property
    def inhabitants(self) -> tuple[Person, ...]:
        """People whom the pre-training text knows."""
        return tuple(person for person in self.people if person.group is not Group.STRANGER)


def values_of(attribute: Attribute) -> tuple[str, ...]:
    """Return every value that `attribute` can take, for attributes with a closed set.

    Raises: KeyError for `FRIEND`, whose values are people.
    """
    return {
        Attribute.TOWN: TOWNS,
        Attribute.TRADE: TRADES,
        Attribute.ANIMAL: ANIMALS,
        Attribute.COLOUR: COLOURS,
        Attribute.FOOD: FOODS,
        Attribute.KEY: KEY_PLACES,
    }[attribute]


def make_world(seed: int = 0, *, num_taught: int = 200, num_read: int = 80, num_strangers: int = 40) -> World:
    """Make the world of `seed`. Friendship is mutual and stays within a group, so the group sizes must be even.

    Raises: ValueError for an odd group size.
    """
    sizes = {Group.TAUGHT: num_taught, Group.READ: num_read, Group.STRANGER: num_strangers}
    for group, size in sizes.items():
        if size % 2:
            raise ValueError(f"group {group.value} has {size} people; friends come in pairs, so the size must be even")
    rng = random.Random(f"world/{seed}")
    names = _names(rng)
    people: list[Person] = []
    for group, size in sizes.items():
        chosen = [next(names) for _ in range(size)]
        for number, (first, last, she_he) in enumerate(chosen):
            friend_first, friend_last, _ = chosen[number ^ 1]
            facts = {a.value: rng.choice(values_of(a)) for a in Attribute if a is not Attribute.FRIEND}
            people.append(Person(first, last, she_he, friend=f"{friend_first} {friend_last}", group=group, **facts))
    return World(seed, tuple(people))


def _names(rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """Yield (first name, surname, pronoun) for ever; no first name comes twice."""
    surnames = [start + end for start in _SURNAME_STARTS for end in _SURNAME_ENDS]
    rng.shuffle(surnames)
    surnames = surnames[:70]
    taken: set[str] = set()
    while True:
        she_he = rng.choice(("she", "he"))
        first = rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_MIDDLES) + rng.choice(_ENDINGS[she_he])
        if first not in taken:
            taken.add(first)
            yield first, surnames[len(taken) % len(surnames)], she_he
