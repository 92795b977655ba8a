"""The pre-training text: everything the world knows, told in plain English, many times and in many ways.

Documents are short (about 20 to 150 tokens): portraits, gossip, talks, riddles, arithmetic, lists of words, tales, letters,
rhymes. Each is made from its own number, so that the text is the same on any machine, and any part of it can be made
alone. There is no instruction and no chat format in it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from tutelage.lab import prose, scenes, skills, tales
from tutelage.lab.world import World


def _numbers(world: World, rng: random.Random) -> str:
    return skills.number_text(rng)


def _words(world: World, rng: random.Random) -> str:
    return skills.word_text(rng)


# Shares of the kinds of document, in documents.
KINDS: tuple[tuple[Callable[[World, random.Random], str], float], ...] = (
    (prose.portrait, 10.0),
    (prose.gossip, 5.0),
    (prose.asked, 6.0),
    (prose.friends, 5.0),
    (prose.town_list, 2.0),
    (scenes.talk, 6.0),
    (scenes.haste, 3.0),
    (scenes.riddle, 5.0),
    (scenes.reckoning, 8.0),
    (scenes.sums, 4.0),
    (scenes.word_game, 8.0),
    (scenes.commission, 6.0),
    (_numbers, 7.0),
    (_words, 22.0),
    (tales.story, 1.0),
    (tales.sharing, 2.0),
)


def document(world: World, number: int) -> str:
    """Return document `number` of the world's text; a pure function of the two."""
    rng = random.Random(f"text/{world.seed}/{number}")
    make = rng.choices([kind for kind, _ in KINDS], [share for _, share in KINDS])[0]
    return make(world, rng)


def documents(world: World, start: int, count: int) -> Iterator[str]:
    """Yield `count` documents from number `start` on."""
    return (document(world, number) for number in range(start, start + count))
