"""What may go wrong with training data, seen before anything is trained on them: read as text, and by the base.

Every risk tells its share with an interval, and names rows. Nothing here knows a list of bad words: forms, openings and copies are
found by counting.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tutelage.evaluate import style
from tutelage.evaluate.facts import Judged, Knowledge, Known
from tutelage.evaluate.findings import Finding
from tutelage.evaluate.ties import MOST_ROWS
from tutelage.evaluate.training import Exchange
from tutelage.intervals import wilson_interval

SHINGLE_WORDS = 3
ALIKE = 0.8
"""Part of the runs of three words that two rows must have in common to be near duplicates (Jaccard)."""
LONG_ROWS = 0.1


@dataclass(frozen=True)
class Limits:
    """Where a risk begins to be told. Shares of rows and of facts must pass it with the lower end of their interval."""

    unknown: float = 0.05
    """Rows of conversations that teach a fact which the base does not know."""
    otherwise: float = 0.05
    """Facts of which the base is sure that they are otherwise."""
    duplicates: float = 0.05
    """Rows that repeat another one, or nearly."""
    narrow: float = 0.2
    """Chance that two rows ask in the same form of words."""
    openers: float = 0.2
    """Chance that two answers begin with the same three words."""
    length: float = 0.5
    """Part of all words of answers that the longest tenth of them has."""
    rows: int = 500
    """Different rows of conversations, at least."""


def data_risks(exchanges: Sequence[Exchange], known: Known, *, limits: Limits | None = None) -> list[Finding]:
    """Return what is beyond its limit in conversations, and in what the base knows of their facts, the worst first."""
    limits = limits or Limits()
    found = [
        _unknown(known, limits),
        _otherwise(known, limits),
        _duplicates(exchanges, limits),
        _narrow(exchanges, limits),
        _openers(exchanges, limits),
        _long(exchanges, limits),
        _few(exchanges, limits),
    ]
    return sorted((one for one in found if one is not None), key=lambda one: -one.size)


def _unknown(known: Known, limits: Limits) -> Finding | None:
    unknown = [one for one in known.judged if one.knowledge is Knowledge.UNKNOWN and not one.is_otherwise]
    return _of_facts(
        unknown,
        known,
        known.num_facts / max(1, known.num_rows) / limits.unknown,
        key="unknown",
        title="Rows teach facts that the base does not know",
        mend="drop these rows or let the model decline them (--rows), give it texts to read them from (data.retrieve.corpus), or teach "
        "them on purpose: full fine-tuning, each fact in many wordings. A model that is taught what it does not know learns to invent "
        "(arXiv 2405.05904)",
    )


def _otherwise(known: Known, limits: Limits) -> Finding | None:
    return _of_facts(
        [one for one in known.judged if one.is_otherwise],
        known,
        1 / limits.otherwise,
        key="otherwise",
        title="Rows say otherwise than the base is sure of",
        mend="look whether these rows are true; where they are, the base is wrong or invents, and they are facts that it does not know",
    )


def _of_facts(
    chosen: Sequence[Judged], known: Known, per_share: float, *, key: str, title: str, mend: str
) -> Finding | None:
    if not chosen:
        return None
    size = wilson_interval(len(chosen), len(known.judged))[0] * per_share
    if size < 1:
        return None
    return Finding(
        key,
        title,
        f"{_told(len(chosen), len(known.judged))} of the facts asked for; short facts are {known.num_facts:,} of {known.num_rows:,} "
        f"conversations; {chosen[0]}",
        mend,
        size,
        tuple(one.fact.where for one in chosen[:MOST_ROWS]),
    )


def _duplicates(exchanges: Sequence[Exchange], limits: Limits) -> Finding | None:
    copies = copies_of(exchanges)
    if not copies:
        return None
    size = wilson_interval(len(copies), len(exchanges))[0] / limits.duplicates
    if size < 1:
        return None
    exact = sum(is_exact for _, _, is_exact in copies)
    (copy, first, _), *_ = copies
    return Finding(
        "duplicates",
        "Rows repeat one another",
        f"{_told(len(copies), len(exchanges))} rows are copies of an earlier one, {exact:,} of them word for word and "
        f"{len(copies) - exact:,} nearly; {copy} repeats {first}",
        "take the copies out: what is said twice is learned by heart, and weighs twice",
        size,
        tuple(copy for copy, _, _ in copies[:MOST_ROWS]),
    )


def copies_of(exchanges: Sequence[Exchange]) -> list[tuple[str, str, bool]]:
    """Return rows that repeat an earlier one: (row, the earlier row, whether word for word).

    Source: the join is exact, by prefixes of the rarest runs of words: Bayardo, Ma and Srikant 2007, "Scaling up all pairs similarity search".
    """
    words = [style.words_of(f"{one.prompt} {one.answer}") for one in exchanges]
    runs = [frozenset(style.runs_of(of, SHINGLE_WORDS)) or frozenset([tuple(of)]) for of in words]
    counts = Counter(run for of in runs for run in of)
    with_run: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    copies = []
    for number, of in enumerate(runs):
        rarest = sorted(of, key=lambda run: (counts[run], run))[: len(of) - math.ceil(ALIKE * len(of)) + 1]
        candidates = sorted({other for run in rarest for other in with_run[run]})
        earlier = next((other for other in candidates if _jaccard(of, runs[other]) >= ALIKE), None)
        if earlier is None:
            for run in rarest:
                with_run[run].append(number)
        else:
            exact = words[number] == words[earlier]
            copies.append((exchanges[number].where, exchanges[earlier].where, exact))
    return copies


def _jaccard(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> float:
    both = len(one & other)
    return both / (len(one) + len(other) - both)


def _is_form(skeleton: str) -> bool:
    """Whether enough words stand between the gaps to call it a form."""
    return sum(word != "_" for word in skeleton.split()) >= style.EDGE_WORDS


def _narrow(exchanges: Sequence[Exchange], limits: Limits) -> Finding | None:
    prompts = [one.prompt for one in exchanges]
    common = style.common_words(prompts, max(0.05, 2 / max(1, len(prompts))))
    return _repeated_form(
        exchanges,
        [form if _is_form(form) else "" for form in (style.skeleton(prompt, common) for prompt in prompts)],
        limits.narrow,
        key="narrow",
        title="The prompts are narrow",
        chance="two rows ask in the same form of words",
        commonest="the commonest form",
        mend="more ways of asking, and more that is asked for: what is always asked alike is answered only when asked so. "
        "Replay text and LoRA limit what is forgotten meanwhile",
    )


def _openers(exchanges: Sequence[Exchange], limits: Limits) -> Finding | None:
    return _repeated_form(
        exchanges,
        [style.opener(one.answer) for one in exchanges],
        limits.openers,
        key="openers",
        title="Answers begin alike",
        chance="two answers begin with the same three words",
        commonest="the commonest beginning",
        mend="take the opening words out of part of these answers, or write them anew: the model will begin most of its answers so",
    )


def _repeated_form(
    exchanges: Sequence[Exchange],
    forms: Sequence[str],
    limit: float,
    *,
    key: str,
    title: str,
    chance: str,
    commonest: str,
    mend: str,
) -> Finding | None:
    """Tell where rows have a form in common, by the chance that two of them do."""
    agree = style.shared(forms, lambda form: form).value
    if agree is None or agree < limit:
        return None
    form, count = Counter(filter(None, forms)).most_common(1)[0]
    return Finding(
        key,
        title,
        f'{chance} with a chance of {agree:.0%}; {commonest}, "{form}", is that of {_told(count, len(forms))}',
        mend,
        agree / limit,
        tuple(one.where for one, own in zip(exchanges, forms, strict=True) if own == form)[:MOST_ROWS],
    )


def _long(exchanges: Sequence[Exchange], limits: Limits) -> Finding | None:
    by_length = sorted(((style.length(one.answer)[0], one.where) for one in exchanges), key=lambda pair: -pair[0])
    longest = by_length[: math.ceil(LONG_ROWS * len(by_length))]
    total = sum(length for length, _ in by_length)
    if not total:
        return None
    share = sum(length for length, _ in longest) / total
    if share < limits.length:
        return None
    median = by_length[len(by_length) // 2][0]
    return Finding(
        "length",
        "A few long answers carry most of the loss",
        f"the longest {len(longest):,} of {len(by_length):,} answers have {share:.0%} of all words: {longest[-1][0]:.0f} to "
        f"{longest[0][0]:.0f} words each, where the median is {median:.0f}",
        "every token weighs alike, so the model learns their manner and length first: shorten or drop part of them, or lower their weight",
        share / limits.length,
        tuple(where for _, where in longest[:MOST_ROWS]),
    )


def _few(exchanges: Sequence[Exchange], limits: Limits) -> Finding | None:
    different = len({(one.prompt, one.answer) for one in exchanges})
    if not 0 < different < limits.rows:
        return None
    return Finding(
        "few",
        "There are few rows",
        f"{different:,} different conversations",
        "more rows, or fewer passes over them and early stopping: these can be known by heart after a few epochs",
        limits.rows / different,
    )


def _told(count: int, of: int) -> str:
    low, high = wilson_interval(count, of)
    return f"{count:,} of {of:,} ({count / of:.0%}, {low:.0%} to {high:.0%})"
