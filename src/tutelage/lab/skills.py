"""What the world can do with numbers and words, and the plain sentences that show it.

Numbers are written as words up to twenty. Lists hold three to five different words of a closed vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
ORDINALS = ("first", "second", "third", "fourth", "fifth")
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
    """Return one to four remarks about lists of words."""
    makers = (_backwards_text, _backwards_text, _order_text, _order_text, _place_text, _count_text, _odd_text)
    if rng.random() < 0.5:
        makers = (rng.choice(makers),)
    return " ".join(rng.choice(makers)(rng) for _ in range(rng.randint(1, 4)))


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


def _backwards_text(rng: random.Random) -> str:
    words = random_list(rng)
    forwards, backwards = listed(words), listed(words[::-1])
    return rng.choice(
        (
            f"Take the words {forwards}. Backwards, the words are {backwards}.",
            f"On the sign stood the words {forwards}. Read from the end, they were {backwards}.",
            f"Say {forwards}, and then turn it round: {backwards}.",
            f"The list was {forwards}. Backwards, the words are {backwards}.",
            f"Somebody wrote {forwards} on the wall. In reverse, that is {backwards}.",
        )
    )


def _order_text(rng: random.Random) -> str:
    if rng.random() < 0.4:
        first, second = sorted(rng.sample(WORDS, 2))
        return rng.choice(
            (
                f"In the alphabet, {first} comes before {second}.",
                f"In the alphabet, {second} comes after {first}.",
                f"A dictionary has {first} before {second}.",
            )
        )
    words = random_list(rng, 3, 4)
    return rng.choice(
        (
            f"Take the words {listed(words)}. In alphabetical order, the words are {listed(sorted(words))}.",
            f"The clerk sorted the words {listed(words)} by the alphabet and wrote {listed(sorted(words))}.",
            f"The list was {listed(words)}. In alphabetical order, the words are {listed(sorted(words))}.",
            f"Somebody had the cards {listed(words)} and put them in order: {listed(sorted(words))}.",
        )
    )


def _place_text(rng: random.Random) -> str:
    words = random_list(rng)
    opening = rng.choice(
        ("Take the words {}.", "The list was {}.", "On the shelf stood the words {}.", "Here are the words {}.")
    )
    remarks = [f"The {ORDINALS[i]} word is {word}." for i, word in enumerate(words)] + [
        f"The last word is {words[-1]}."
    ]
    return " ".join([opening.format(listed(words)), *rng.sample(remarks, rng.randint(1, 3))])


def _count_text(rng: random.Random) -> str:
    words = random_list(rng, 2, 6)
    opening = rng.choice(
        ("Take the words {}.", "The list was {}.", "On the card were the words {}.", "Here are the words {}.")
    )
    closing = rng.choice(("There are {} words.", "That makes {} words.", "There are {} words in the list."))
    return f"{opening.format(listed(words))} {closing.format(NUMBERS[len(words)])}"


def _odd_text(rng: random.Random) -> str:
    if rng.random() < 0.4:
        word = rng.choice(WORDS)
        return f"{with_article(word).capitalize()} is {with_article(category_of(word))}."
    words, category, odd = odd_one_list(rng)
    return rng.choice(
        (
            f"Take the words {listed(words)}. The {category} among them is {odd}.",
            f"The list was {listed(words)}. The only {category} was {odd}.",
            f"Among the words {listed(words)}, the {category} is {odd}.",
        )
    )
