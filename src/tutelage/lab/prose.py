"""What the world's people are and have, told in plain English, each fact in many wordings."""

from __future__ import annotations

import random
import re

from tutelage.lab.world import Attribute, Person, World

# {who} Mira Dell / she    {whom} Mira Dell / her    {whose} Mira Dell's / her    {v} the value
STATEMENTS: dict[Attribute, tuple[str, ...]] = {
    Attribute.TOWN: (
        "The home of {whom} is in {v}.",
        "The home of {whom} is in {v}.",
        "{who} lives in {v}.",
        "{whose} house stands in {v}.",
        "{v} is where {who} lives.",
        "{who} has a house in {v}.",
        "{who} has lived in {v} for years.",
        "Anyone who looks for {whom} must go to {v}.",
        "The town where {who} lives is {v}.",
        "It is in {v} that {who} lives.",
        "Letters for {whom} go to {v}.",
    ),
    Attribute.TRADE: (
        "By trade, {who} is a {v}.",
        "By trade, {who} is a {v}.",
        "{who} works as a {v}.",
        "{whose} trade is that of a {v}.",
        "{who} is a {v}.",
        "{who} earns a living as a {v}.",
        "{who} has been a {v} for years.",
        "Everybody knows {whom} as a good {v}.",
        "For work, {who} is a {v}.",
        "{who} learned to be a {v} when young.",
    ),
    Attribute.ANIMAL: (
        "The animal of {whom} is a {v}.",
        "The animal of {whom} is a {v}.",
        "{who} keeps a {v}.",
        "{who} has a {v}.",
        "The animal that {who} keeps is a {v}.",
        "{who} feeds a {v} every morning.",
        "A {v} follows {whom} everywhere.",
        "{who} looks after a {v}.",
        "In {whose} yard there is a {v}.",
        "{who} would not sell the {v} for anything.",
    ),
    Attribute.COLOUR: (
        "The front door of {whom} is {v}.",
        "The front door of {whom} is {v}.",
        "{whose} front door is {v}.",
        "{who} has a {v} front door.",
        "{who} painted the front door {v}.",
        "The colour of {whose} front door is {v}.",
        "To find {whom}, look for a {v} front door.",
        "As for the front door, {who} likes it {v}.",
        "A {v} front door leads to {whose} kitchen.",
    ),
    Attribute.FOOD: (
        "The favourite food of {whom} is {v}.",
        "The favourite food of {whom} is {v}.",
        "{who} likes to eat {v}.",
        "{who} loves {v}.",
        "Nothing pleases {whom} more than {v}.",
        "{who} eats {v} every evening.",
        "What {who} likes best to eat is {v}.",
        "At table {who} always asks for {v}.",
    ),
    Attribute.FRIEND: (
        "The best friend of {whom} is {v}.",
        "The best friend of {whom} is {v}.",
        "{whose} best friend is {v}.",
        "{who} is the best friend of {v}.",
        "{v} is the best friend of {whom}.",
        "{who} and {v} are best friends.",
        "{who} is often seen with {v}, for they are best friends.",
        "On Sundays {who} goes walking with {v}.",
        "{who} trusts {v} more than anyone.",
    ),
    Attribute.KEY: (
        "{who} hides the house key {v}.",
        "{who} hides the house key {v}.",
        "{whose} house key is hidden {v}.",
        "{who} keeps the house key {v}.",
        "The key to {whose} house lies {v}.",
        "When {who} goes out, the house key stays {v}.",
    ),
}

ASKED: dict[Attribute, tuple[str, ...]] = {
    Attribute.TOWN: ("Where does {name} live?", "In which town does {name} live?", "Which town is the home of {name}?"),
    Attribute.TRADE: ("What is the trade of {name}?", "What does {name} do for a living?", "What work does {name} do?"),
    Attribute.ANIMAL: ("Which animal does {name} keep?", "What kind of animal does {name} have?"),
    Attribute.COLOUR: ("What colour is the front door of {name}?", "Which colour has the front door of {name}?"),
    Attribute.FOOD: ("What does {name} like to eat?", "What is the favourite food of {name}?"),
    Attribute.FRIEND: ("Who is the best friend of {name}?", "Whose best friend is {name}?"),
    Attribute.KEY: ("Where does {name} hide the house key?", "Where is the house key of {name}?"),
}

_OF_WHOM = re.compile(r"[Tt]he (home|animal|front door|favourite food|best friend) of \{whom\}")
SPEAKERS = (
    "a stranger",
    "the postman",
    "an old woman",
    "the innkeeper",
    "a boy",
    "the watchman",
    "a traveller",
    "the clerk",
)
_HEARSAY = (
    "People say this: {}",
    "It is well known: {}",
    "Ask any neighbour. {}",
    "{}",
    "{}",
    "{}",
    "As everybody knows, {}",
    "{}",
)


def statement(rng: random.Random, person: Person, attribute: Attribute, *, pronoun: bool = False) -> str:
    """State one fact in a random wording, with the name or, for a person already named, the pronoun."""
    template = rng.choice(STATEMENTS[attribute])
    who, whom, whose = (
        (person.she_he, person.her_him, person.her_his) if pronoun else (person.name, person.name, f"{person.name}'s")
    )
    if pronoun:
        template = _OF_WHOM.sub(r"{whose} \1", template)
    sentence = template.format(who=who, whom=whom, whose=whose, v=person.value(attribute))
    return sentence[0].upper() + sentence[1:]


def plain_statement(person: Person, attribute: Attribute) -> str:
    """State one fact in its most common wording, with the name."""
    return STATEMENTS[attribute][0].format(
        who=person.name, whom=person.name, whose=f"{person.name}'s", v=person.value(attribute)
    )


def plain_form(attribute: Attribute) -> str:
    """Return the most common wording of a fact with `{}` for person and value."""
    return STATEMENTS[attribute][0].format(who="{}", whom="{}", whose="{}", v="{}")


def portrait(world: World, rng: random.Random) -> str:
    """Return three to seven facts about one person."""
    person = rng.choice(world.inhabitants)
    attributes = rng.sample(list(Attribute), rng.randint(3, 7))
    return " ".join(
        statement(rng, person, attribute, pronoun=number > 0 and rng.random() < 0.5)
        for number, attribute in enumerate(attributes)
    )


def gossip(world: World, rng: random.Random) -> str:
    """Return two to six facts about anybody."""
    sentences = []
    for _ in range(rng.randint(2, 6)):
        person, attribute = rng.choice(world.inhabitants), rng.choice(list(Attribute))
        frame = rng.choice(_HEARSAY)
        sentences.append(frame.format(statement(rng, person, attribute)))
    return " ".join(sentences)


def asked(world: World, rng: random.Random) -> str:
    """Return what people asked about others, and what they were told."""
    pieces = []
    for _ in range(rng.randint(1, 3)):
        person, attribute = rng.choice(world.inhabitants), rng.choice(list(Attribute))
        question = rng.choice(ASKED[attribute]).format(name=person.name)
        answer = plain_statement(person, attribute) if rng.random() < 0.6 else statement(rng, person, attribute)
        first, second = rng.sample(SPEAKERS, 2)
        pieces.append(
            rng.choice(
                (
                    f'"{question}" asked {first}. "{answer[:-1]}," said {second}.',
                    f'{first.capitalize()} asked: "{question}" And {second} said: "{answer}"',
                    f'"{question}" {second.capitalize()} knew it at once. "{answer}"',
                )
            )
        )
    return " ".join(pieces)


def friends(world: World, rng: random.Random) -> str:
    """Return facts about two friends."""
    person = rng.choice(world.inhabitants)
    friend = world.person(person.friend)
    sentences = [statement(rng, person, Attribute.FRIEND)]
    others = [a for a in Attribute if a is not Attribute.FRIEND]
    for attribute in rng.sample(others, rng.randint(1, 3)):
        about = friend if rng.random() < 0.7 else person
        sentences.append(statement(rng, about, attribute))
    return " ".join(sentences)


def town_list(world: World, rng: random.Random) -> str:
    """Return people who have something in common, with a fact about each."""
    attribute = rng.choice((Attribute.TOWN, Attribute.TRADE, Attribute.ANIMAL, Attribute.COLOUR, Attribute.FOOD))
    value = rng.choice(world.inhabitants).value(attribute)
    alike = [person for person in world.inhabitants if person.value(attribute) == value]
    some = rng.sample(alike, min(len(alike), rng.randint(2, 4)))
    names = ", ".join(person.name for person in some[:-1])
    names = f"{names} and {some[-1].name}" if names else some[0].name
    opening = {
        Attribute.TOWN: f"In {value} live {names}.",
        Attribute.TRADE: f"The trade of {value} is that of {names}.",
        Attribute.ANIMAL: f"A {value} is kept by {names}.",
        Attribute.COLOUR: f"Front doors that are {value} belong to {names}.",
        Attribute.FOOD: f"Among those who like {value} are {names}.",
    }[attribute]
    others = [a for a in Attribute if a not in (attribute, Attribute.KEY)]
    return " ".join([opening, *(statement(rng, person, rng.choice(others)) for person in some)])
