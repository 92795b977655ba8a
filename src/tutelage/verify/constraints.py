"""Constraints on an answer that code can check: so many words, no comma, these keywords, that ending.

The identifiers, their settings and what they ask for are those of IFEval (Zhou et al. 2023, arXiv 2311.07911), so that its prompts and
any file in its layout can be scored. Two things differ from its own code: sentences are told apart by a rule that needs no language data,
and the language of an answer is not told at all: such a constraint is unscored, and neither passed nor failed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

Checker: TypeAlias = Callable[..., bool | None]
"""Takes an answer and the settings of the constraint; None where it cannot be decided here."""

_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)|\n{2,}")
_WORD = re.compile(r"\w+")
_CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_FENCE = re.compile(r"^```(?:json)?\s*|\s*```$", re.IGNORECASE)


def strict(constraint: str, settings: Mapping[str, Any], answer: str) -> bool | None:
    """Return whether `answer` keeps a constraint as it stands; None where that cannot be decided.

    Raises: KeyError for an unknown constraint; TypeError for settings that it does not have.
    """
    checker = CONSTRAINTS[constraint]
    if not answer.strip():
        return False
    return checker(answer, **{name: value for name, value in settings.items() if value is not None})


def loose(constraint: str, settings: Mapping[str, Any], answer: str) -> bool | None:
    """Return whether any of the usual wrappings taken off makes `answer` keep a constraint: an introduction, a closing line, bold."""
    found = [strict(constraint, settings, variant) for variant in _variants(answer)]
    return None if found[0] is None else any(found)


def _variants(answer: str) -> Iterator[str]:
    lines = answer.split("\n")
    for kept in (lines, lines[1:], lines[:-1], lines[1:-1]):
        text = "\n".join(kept).strip()
        yield text
        yield text.replace("*", "")


def count_sentences(text: str) -> int:
    """Return the number of sentences: pieces with a word, ended by a mark before white space, or by an empty line.

    Example:
        >>> count_sentences("It is 3.5 m. Is it? Yes")
        3
    """
    return sum(bool(_WORD.search(piece)) for piece in _SENTENCE_END.split(text))


def count_words(text: str) -> int:
    """Return the number of words."""
    return len(_WORD.findall(text))


def _related(count: int, relation: str, bound: int) -> bool:
    if relation == "at least":
        return count >= bound
    if relation == "less than":
        return count < bound
    raise TypeError(f"relation {relation!r} is neither 'at least' nor 'less than'")


def _keywords(answer: str, keywords: list[str]) -> bool:
    return all(re.search(re.escape(word), answer, re.IGNORECASE) for word in keywords)


def _keyword_frequency(answer: str, keyword: str, frequency: int, relation: str) -> bool:
    return _related(len(re.findall(re.escape(keyword), answer, re.IGNORECASE)), relation, frequency)


def _forbidden_words(answer: str, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", answer, re.IGNORECASE) for word in forbidden_words)


def _letter_frequency(answer: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _related(answer.lower().count(letter.lower()), let_relation, let_frequency)


def _language(answer: str, language: str) -> None:
    return None


def _sentences(answer: str, num_sentences: int, relation: str) -> bool:
    return _related(count_sentences(answer), relation, num_sentences)


def _words(answer: str, num_words: int, relation: str) -> bool:
    return _related(count_words(answer), relation, num_words)


def _paragraphs(answer: str, num_paragraphs: int) -> bool:
    pieces = [piece.strip() for piece in re.split(r"\s?\*\*\*\s?", answer)]
    return all(pieces[1:-1]) and sum(map(bool, pieces)) == num_paragraphs


def _nth_paragraph(answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    paragraphs = [paragraph.strip() for paragraph in re.split(r"\n\n", answer) if paragraph.strip()]
    if len(paragraphs) != num_paragraphs or not 1 <= nth_paragraph <= num_paragraphs:
        return False
    found = re.match(r"[\"'“‘*_]*(\w+)", paragraphs[nth_paragraph - 1])
    return found is not None and found[1].lower() == first_word.lower()


def _placeholders(answer: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[[^\]\n]*\]", answer)) >= num_placeholders


def _postscript(answer: str, postscript_marker: str) -> bool:
    letters = r"\s?".join(re.escape(f"{letter}.") for letter in re.sub(r"[^A-Za-z]", "", postscript_marker))
    return re.search(letters.removesuffix(r"\."), answer, re.IGNORECASE) is not None


def _bullets(answer: str, num_bullets: int) -> bool:
    return len(re.findall(r"^\s*(?:\*(?!\*)|-).*$", answer, re.MULTILINE)) == num_bullets


def _constrained(answer: str) -> bool:
    return any(option in answer for option in _CONSTRAINED)


def _highlights(answer: str, num_highlights: int) -> bool:
    found = re.findall(r"\*\*([^\n*]+)\*\*|\*([^\n*]+)\*", answer)
    return sum(bool((one or other).strip()) for one, other in found) >= num_highlights


def _multiple_sections(answer: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", answer)) >= num_sections


def _json(answer: str) -> bool:
    try:
        json.loads(_FENCE.sub("", _FENCE.sub("", answer.strip())))
    except (ValueError, RecursionError):
        return False
    return True


def _title(answer: str) -> bool:
    return any(title.strip() for title in re.findall(r"<<([^\n]+?)>>", answer))


def _two_responses(answer: str) -> bool:
    pieces = [piece.strip() for piece in answer.split("******") if piece.strip()]
    return len(pieces) == 2 and pieces[0] != pieces[1]


def _repeats(answer: str, prompt_to_repeat: str) -> bool:
    return answer.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends(answer: str, end_phrase: str) -> bool:
    return answer.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quoted(answer: str) -> bool:
    text = answer.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _capital_words(answer: str, capital_frequency: int, capital_relation: str) -> bool:
    return _related(sum(word.isupper() for word in re.findall(r"[\w'-]+", answer)), capital_relation, capital_frequency)


def _upper(answer: str) -> bool:
    return answer.isupper()


def _lower(answer: str) -> bool:
    return answer.islower()


def _no_comma(answer: str) -> bool:
    return "," not in answer


CONSTRAINTS: dict[str, Checker] = {
    "keywords:existence": _keywords,
    "keywords:frequency": _keyword_frequency,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _language,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_words": _words,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _constrained,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _multiple_sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats,
    "startend:end_checker": _ends,
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _upper,
    "change_case:english_lowercase": _lower,
    "punctuation:no_comma": _no_comma,
}
