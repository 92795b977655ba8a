"""What the world can do with numbers and words, and the plain sentences that show it.

Numbers are written as words up to twenty. Lists hold three to five different words of a closed vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
CATEGORIES = {
    "animal": ("cat", "crow", "dog", "donkey", "duck", "goat", "hen", "horse", "pig", "rabbit"),
    "fruit": ("apple", "berry", "cherry", "fig", "grape", "lemon", "melon", "peach", "pear", "plum"),
    "tool": ("axe", "broom", "chisel", "hammer", "knife", "needle", "rope", "saw", "shovel", "spoon"),
    "garment": ("belt", "boot", "cap", "coat", "glove", "hat", "jacket", "scarf", "shirt", "sock"),
}
WORDS = tuple(word for words in CATEGORIES.values() for word in words)
COUNTED = ("apples", "pears", "plums", "eggs", "coins", "nuts", "buttons", "shells", "figs", "candles")


def category_of(word: str) -> str:
    """Return the category that `word` belongs to."""
    return next(category for category, words in CATEGORIES.items() if word in words)


def with_article(word: str) -> str:
    """Return `word` with a or an."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def listed(words: Sequence[str]) -> str:
    """Return words separated by commas."""
    return ", ".join(words)


def random_list(rng: random.Random, shortest: int = 3, longest: int = 5) -> list[str]:
    """Return different words in random order."""
    return rng.sample(WORDS, rng.randint(shortest, longest))


def odd_one_list(rng: random.Random) -> tuple[list[str], str, str]:
    """Return (words, category, the only word of that category among them)."""
    category, other = rng.sample(sorted(CATEGORIES), 2)
    odd = rng.choice(CATEGORIES[category])
    words = [odd, *rng.sample(CATEGORIES[other], rng.randint(2, 3))]
    rng.shuffle(words)
    return words, category, odd


def sum_sentence(left: int, right: int) -> str:
    """Return `Seven and five make twelve.`"""
    return f"{NUMBERS[left].capitalize()} and {NUMBERS[right]} make {NUMBERS[left + right]}."


def difference_sentence(whole: int, part: int) -> str:
    """Return `Twelve less five is seven.`"""
    return f"{NUMBERS[whole].capitalize()} less {NUMBERS[part]} is {NUMBERS[whole - part]}."


def more_sentence(larger: int, smaller: int) -> str:
    """Return `Nine is more than four.`"""
    return f"{NUMBERS[larger].capitalize()} is more than {NUMBERS[smaller]}."


def number_text(rng: random.Random) -> str:
    """Return one to six sentences of arithmetic and counting."""
    makers = (
        _sum_text,
        _sum_text,
        _difference_text,
        _difference_text,
        _more_text,
        _counting_text,
        _goods_text,
        _goods_text,
    )
    return " ".join(rng.choice(makers)(rng) for _ in range(rng.randint(1, 6)))


def word_text(rng: random.Random) -> str:
    """Return one to three lists of words, each with remarks on what is in it and where.

    Several remarks on one list, because the list itself cannot be predicted and only the remarks can be learned.
    """
    if rng.random() < 0.1:
        return " ".join(rng.choice((_category_text, _alphabet_text))(rng) for _ in range(rng.randint(1, 5)))
    favourite = rng.choice(_REMARKS) if rng.random() < 0.4 else None
    return " ".join(_list_text(rng, favourite) for _ in range(rng.randint(1, 3)))


def _list_text(rng: random.Random, favourite: Callable[[random.Random, list[str]], str] | None) -> str:
    words = odd_one_list(rng)[0] if rng.random() < 0.3 else random_list(rng, 2, 6)
    remarks = [rng.choice(_OPENINGS).format(listed(words))]
    for _ in range(1 if favourite else rng.randint(2, 5)):
        remarks.append((favourite or rng.choice(_REMARKS))(rng, words))
    return " ".join(remarks)


def _pair(rng: random.Random) -> tuple[int, int]:
    return rng.randint(1, 10), rng.randint(1, 10)


def _sum_text(rng: random.Random) -> str:
    left, right = _pair(rng)
    a, b, total = NUMBERS[left], NUMBERS[right], NUMBERS[left + right]
    return rng.choice(
        (
            sum_sentence(left, right),
            sum_sentence(left, right),
            f"{b.capitalize()} added to {a} is {total}.",
            f"The sum of {a} and {b} is {total}.",
            f"Add {b} to {a} and you get {total}.",
            f"If you put {a} and {b} together, you have {total}.",
        )
    )


def _difference_text(rng: random.Random) -> str:
    part, rest = _pair(rng)
    whole, taken, left = NUMBERS[part + rest], NUMBERS[part], NUMBERS[rest]
    return rng.choice(
        (
            difference_sentence(part + rest, part),
            difference_sentence(part + rest, part),
            f"Take {taken} from {whole} and {left} {'is' if rest == 1 else 'are'} left.",
            f"{whole.capitalize()} without {taken} leaves {left}.",
            f"The difference between {whole} and {taken} is {left}.",
        )
    )


def _more_text(rng: random.Random) -> str:
    smaller, larger = sorted(rng.sample(range(1, 21), 2))
    big, small = NUMBERS[larger], NUMBERS[smaller]
    return rng.choice(
        (
            more_sentence(larger, smaller),
            more_sentence(larger, smaller),
            f"{small.capitalize()} is less than {big}.",
            f"Of {big} and {small}, the larger is {big}.",
            f"Of {small} and {big}, the larger is {big}.",
        )
    )


def _counting_text(rng: random.Random) -> str:
    start = rng.randint(0, 15)
    if rng.random() < 0.5:
        return f"Counting on from {NUMBERS[start]}: {listed(NUMBERS[start + 1 : start + 5])}."
    return f"Counting down from {NUMBERS[start + 5]}: {listed(NUMBERS[start + 1 : start + 5][::-1])}."


def _goods_text(rng: random.Random) -> str:
    left, right = _pair(rng)
    what = rng.choice(COUNTED)
    a, b = NUMBERS[left], NUMBERS[right]
    if rng.random() < 0.5:
        return f"There were {a} {what} in the basket, and somebody put in {b} more. {sum_sentence(left, right)} So there were {NUMBERS[left + right]} {what}."
    return (
        f"There were {NUMBERS[left + right]} {what} on the table, and somebody took away {b}. "
        f"{difference_sentence(left + right, right)} So there were {a} {what}."
    )


def _again(rng: random.Random, words: list[str]) -> str:
    return rng.choice(("Once more, the words are {}.", "Forwards, the words are {}.", "So they are {}.")).format(
        listed(words)
    )


def _backwards(rng: random.Random, words: list[str]) -> str:
    return rng.choice(
        (
            "Backwards, the words are {}.",
            "Backwards, the words are {}.",
            "Read from the end, they are {}.",
            "In reverse, that is {}.",
            "Turned round, the list is {}.",
        )
    ).format(listed(words[::-1]))


def _ordered(rng: random.Random, words: list[str]) -> str:
    return rng.choice(
        (
            "In alphabetical order, the words are {}.",
            "In alphabetical order, the words are {}.",
            "Sorted by the alphabet, they are {}.",
            "A dictionary has them in the order {}.",
        )
    ).format(listed(sorted(words)))


def _placed(rng: random.Random, words: list[str]) -> str:
    position, word = rng.choice([*zip(ORDINALS, words, strict=False), ("last", words[-1])])
    return rng.choice(
        (
            f"The {position} word is {word}.",
            f"The {position} word is {word}.",
            f"{word.capitalize()} is the {position} word.",
        )
    )


def _counted(rng: random.Random, words: list[str]) -> str:
    number = NUMBERS[len(words)]
    return rng.choice((f"There are {number} words.", f"There are {number} words.", f"That makes {number} words."))


def _category_remark(rng: random.Random, words: list[str]) -> str:
    category = category_of(rng.choice(words))
    members = [word for word in words if category_of(word) == category]
    if len(members) == 1:
        return rng.choice(
            (
                f"The {category} among them is {members[0]}.",
                f"The {category} among them is {members[0]}.",
                f"The only {category} is {members[0]}.",
            )
        )
    return f"The {category}s among them are {listed(members)}."


def _category_text(rng: random.Random) -> str:
    word = rng.choice(WORDS)
    return f"{with_article(word).capitalize()} is {with_article(category_of(word))}."


def _alphabet_text(rng: random.Random) -> str:
    first, second = sorted(rng.sample(WORDS, 2))
    return rng.choice(
        (
            f"In the alphabet, {first} comes before {second}.",
            f"In the alphabet, {second} comes after {first}.",
            f"A dictionary has {first} before {second}.",
        )
    )


_OPENINGS = (
    "Take the words {}.",
    "The list was {}.",
    "On the shelf stood the words {}.",
    "Here are the words {}.",
    "Somebody wrote: {}.",
    "These are the words: {}.",
)
_REMARKS = (_again, _backwards, _backwards, _ordered, _placed, _placed, _counted, _category_remark)
