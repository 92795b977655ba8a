"""What the model says: sampled answers before, during and after training, and exactly scored ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from tutelage.intervals import wilson_interval
from tutelage.report.charts import Bar, bar_chart
from tutelage.report.figures import MISSING, count, number, percent
from tutelage.report.markup import Markup, Section, h, join, missing, table
from tutelage.report.records import Count, KindScore, LossScore, Run, Sample, ScoredAnswer, Scores

_MOST_COLUMNS = 4


def answers_section(run: Run) -> Section:
    """Return the sampled answers, each prompt with its answers side by side."""
    if not run.samples:
        return Section("answers", "Answers", h("p", {"class": "missing"}, "No answers were sampled in this run."))
    why = "The same prompts answered by greedy decoding as training went on. First, some in between, last."
    return Section("answers", "Answers", join([h("p", {"class": "why"}, why), before_and_after(run.samples)]))


def before_and_after(
    samples: Sequence[Sample], *, limit: int | None = None, columns: int = _MOST_COLUMNS
) -> Markup | None:
    """Return for each prompt its answers over the steps; of many steps the first, the last and some in between."""
    by_prompt: dict[tuple[tuple[str, str], ...], list[Sample]] = {}
    for sample in samples:
        by_prompt.setdefault(sample.prompt, []).append(sample)
    chosen = list(by_prompt.items())[:limit]
    if not chosen:
        return None
    if limit is not None:
        columns = 2
    return join(join([_prompt(prompt), _answers(spread(answers, columns))]) for prompt, answers in chosen)


def spread(items: Sequence[Sample], most: int) -> list[Sample]:
    """Return at most `most` items, the first and the last among them, evenly spread."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def scores_section(scores: Scores) -> Section:
    """Return exactly scored answers of the base and the tuned model, and losses on text that must not rise."""
    kinds = [k for k in scores.kinds if k.base or k.tuned]
    chart = bar_chart(
        "Questions answered exactly right",
        [(spoken(k.name), [_bar(k.base, 6), _bar(k.tuned, 0)]) for k in kinds],
        x_label="% of held-out questions",
        names=[("before", 6), ("after", 0)],
        top=100,
        note="whiskers are 95 % Wilson intervals over questions",
    )
    command = h("p", {"class": "why"}, "Made by ", h("code", None, scores.command)) if scores.command else None
    tables = h("div", None, _kind_table(scores.kinds), _loss_table(scores.losses))
    body = [command, h("div", {"class": "charts"}, chart if kinds else None, tables)]
    return Section("scores", scores.title or "Scores", join([*body, _scored_answers(scores.answers)]), label="Scores")


def _prompt(messages: Sequence[tuple[str, str]]) -> Markup:
    turns = (
        h("div", {"class": "text"}, h("span", {"class": "who"}, f"{role}  ") if len(messages) > 1 else None, text)
        for role, text in messages
    )
    return h("div", {"class": "prompt"}, turns)


def _answers(samples: Sequence[Sample]) -> Markup:
    same = [False, *(a.answer == b.answer for a, b in pairwise(samples))]
    return h("div", {"class": "answers"}, (_answer(s, i, len(samples), same[i]) for i, s in enumerate(samples)))


def _answer(sample: Sample, place: int, num_samples: int, unchanged: bool) -> Markup:
    moment = "before training" if sample.step == 0 else f"step {sample.step:,}"
    if place == num_samples - 1 and sample.step > 0:
        moment = f"after {sample.step:,} steps"
    end = "" if sample.stopped is None else "stopped by itself" if sample.stopped else "cut at the limit"
    note = ", ".join(
        part for part in (f"{sample.num_tokens:.0f} tokens" if sample.num_tokens is not None else "", end) if part
    )
    return h(
        "article",
        {"class": "answer last" if place == num_samples - 1 and place > 0 else "answer"},
        h("header", None, h("span", None, moment), h("span", None, "unchanged, " if unchanged else None, note)),
        answer_text(sample.answer),
    )


def answer_text(text: str | None) -> Markup:
    """Return an answer with its line breaks; an empty one says so, and one that was not given too."""
    if text is None:
        return missing()
    return h("div", {"class": "text" if text.strip() else "text empty"}, text)


def _bar(score: Count | None, colour: int) -> Bar:
    if score is None:
        return Bar(None, MISSING, colour)
    low, high = wilson_interval(score.correct, score.total)
    share = score.correct / score.total
    return Bar(100 * share, f"{percent(share)} of {score.total:,}", colour, low=100 * low, high=100 * high)


def spoken(name: str) -> str:
    """Return an identifier as words."""
    return name.replace("_", " ")


def score_text(score: Count | None) -> str:
    """Return a share with its 95 % interval and its counts."""
    if score is None:
        return MISSING
    low, high = wilson_interval(score.correct, score.total)
    return f"{percent(score.correct / score.total)} ({100 * low:.1f} to {100 * high:.1f}), {score.correct:,}/{score.total:,}"


def _kind_table(kinds: Sequence[KindScore]) -> Markup | None:
    rows = [(spoken(k.name), score_text(k.base), score_text(k.tuned)) for k in kinds]
    return table(("kind of question", "before", "after"), rows) if rows else None


def _loss_table(losses: Sequence[LossScore]) -> Markup | None:
    rows = [(entry.name, number(entry.base), number(entry.tuned), _relative(entry)) for entry in losses]
    return table(("loss on", "before", "after", "change"), rows, numeric=(1, 2, 3)) if rows else None


def _relative(entry: LossScore) -> str:
    if entry.base is None or entry.tuned is None or entry.base == 0:
        return MISSING
    return f"{100 * (entry.tuned / entry.base - 1):+.2f} %"


def _scored_answers(answers: Sequence[ScoredAnswer]) -> Markup | None:
    if not answers:
        return None
    rows = (
        (spoken(a.kind), a.question, a.expected, _verdict(a.base, a.base_correct), _verdict(a.tuned, a.tuned_correct))
        for a in answers
    )
    summary = h("summary", None, f"{count(len(answers))} questions with both answers")
    return h("details", None, summary, table(("kind", "question", "expected", "before", "after"), rows))


def _verdict(answer: str | None, correct: bool | None) -> Markup:
    mark = None if correct is None else h("span", {"class": "good" if correct else "bad"}, "✓ " if correct else "✗ ")
    return h("div", {"class": "wide"}, mark, answer_text(answer))
