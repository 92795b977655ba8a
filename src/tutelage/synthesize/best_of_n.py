"""Best of n, from prompts to files: several answers to each prompt, the best of them, and what a blind choice would have kept.

| file                    | what stands in it                                                                        |
|-------------------------|------------------------------------------------------------------------------------------|
| `sft.jsonl`             | the chosen answers, as examples to train on                                              |
| `pairs.jsonl`           | the best answer beside the worst, with the margin between their scores                   |
| `control_random.jsonl`  | as many answers to the same prompts, taken by chance                                     |
| `control_first.jsonl`   | the first ones                                                                           |
| `control_longest.jsonl` | the longest ones                                                                         |
| `answers.jsonl`         | every answer with its scores                                                             |
| `report.json`           | the figures                                                                              |
| `journal.sqlite`        | every request                                                                            |

Source: rejection sampling for fine-tuning as in Yuan et al. 2023 (arXiv 2308.01825) and Touvron et al. 2023 (arXiv 2307.09288).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tutelage.data.conversation import Conversation, Json, Message, PreferencePair, Role
from tutelage.data.order import hash64
from tutelage.errors import ConfigError, DataError, RunDirError
from tutelage.files.atomic import write_json
from tutelage.files.jsonl import write
from tutelage.generate.journal import Journal, Outcome, State
from tutelage.generate.sampler import NANODOLLARS, Request, Sampler, unusable
from tutelage.synthesize.lineage import JOURNAL, lineage_of
from tutelage.synthesize.prompts import Prompt, number_of
from tutelage.synthesize.risk import report
from tutelage.synthesize.scorers import Scorer
from tutelage.synthesize.select import Candidate, Choice, Group, Rule, choose

OPERATOR, VERSION = "best-of-n", 1
_CONTROLS: Mapping[str, Callable[[Choice], Sequence[Candidate]]] = {
    "random": lambda choice: choice.random,
    "first": lambda choice: choice.first,
    "longest": lambda choice: choice.longest,
}


@dataclass(frozen=True)
class Plan:
    """What is asked of which prompts and how the answers are chosen; `held_out` scores them too, and chooses nothing."""

    prompts: Sequence[Prompt]
    answers: int
    scorer: Scorer
    rule: Rule
    held_out: Scorer | None = None
    cap: int | None = None
    offline: bool = False


@dataclass(frozen=True)
class Made:
    """What came of a build, and its figures as they stand in `report.json`."""

    choices: Sequence[Choice]
    figures: Mapping[str, Json]


def build(
    plan: Plan, sampler: Sampler | None, out: Path, *, on_end: Callable[[Journal], None] = lambda journal: None
) -> Made:
    """Ask what has not been asked, choose, and write every file of `out`.

    Raises: DataError for a row that cannot be scored, or when nothing was chosen; CapReachedError when the money is gone before.
    """
    for prompt in plan.prompts:
        for scorer in filter(None, (plan.scorer, plan.held_out)):
            scorer.require(prompt)
    unanswered = [prompt for prompt in plan.prompts if not prompt.candidates]
    if unanswered and sampler is None:
        raise ConfigError(
            f"{len(unanswered)} of {len(plan.prompts)} prompts have no `candidates`, so a model has to answer them",
            mend="give --model or --server",
        )
    with Journal(out / JOURNAL, sampler, judge=unusable, cap=plan.cap, on_end=on_end) as journal:
        requests = _requests(plan, unanswered, sampler)
        outcomes = journal.ask([request for _, request in requests.values()], offline=plan.offline)
        totals = journal.totals().to_json()
    asked: dict[str, list[Request]] = {prompt.id: [] for prompt in plan.prompts}
    for prompt, request in requests.values():
        asked[prompt.id].append(request)
    groups = [_group(prompt, asked[prompt.id], outcomes, plan) for prompt in plan.prompts]
    decided = [choose(group, plan.rule) for group in groups]
    choices = [choice for choice in decided if isinstance(choice, Choice)]
    reasons = Counter(choice for choice in decided if isinstance(choice, str))
    _require_balance(plan, choices, reasons)
    figures = {
        "operator": OPERATOR,
        "version": VERSION,
        "scorer": plan.scorer.name,
        "held_out_scorer": plan.held_out.name if plan.held_out is not None else None,
        "answers": plan.answers,
        "rule": plan.rule,
        "prompts": {"in": len(plan.prompts), "chosen": len(choices), "rejected": dict(reasons)},
        "answers_scored": _answer_totals(groups, outcomes),
        "journal": totals,
        **report(groups, choices),
    }
    _write(out, choices, groups, {request.key: request for _, request in requests.values()}, outcomes, sampler, plan)
    write_json(out / "report.json", figures)
    if not choices:
        raise DataError(
            f"nothing was chosen of {len(plan.prompts)} prompts: {_first_reason(reasons, outcomes)}",
            mend=f"{out / 'answers.jsonl'} has the answers with their scores",
        )
    return Made(choices, figures)


def _requests(plan: Plan, prompts: Sequence[Prompt], sampler: Sampler | None) -> dict[str, tuple[Prompt, Request]]:
    """Return every request by its key, with the prompt that it is of: each answer has a seed of its own."""
    found: dict[str, tuple[Prompt, Request]] = {}
    for prompt in prompts:
        for place in range(plan.answers):
            assert sampler is not None  # `build` has seen to it
            seed = hash64(plan.rule.seed, number_of(prompt), place) >> 33  # servers take 31 bits
            request = sampler.request(prompt.messages, seed=seed)
            found[request.key] = (prompt, request)
    return found


def _group(prompt: Prompt, requests: Sequence[Request], outcomes: Mapping[str, Outcome], plan: Plan) -> Group:
    """Return the answers to a prompt that can be used, scored."""
    if prompt.candidates:
        every = [Candidate(text, place, None) for place, text in enumerate(prompt.candidates) if text.strip()]
    else:
        every = []
        for place, request in enumerate(requests):
            outcome = outcomes[request.key]
            if outcome.state is State.ACCEPTED and outcome.reply is not None:
                reply = outcome.reply
                every.append(Candidate(reply.text.strip(), place, None, None, request.key, reply.log_probability))
    return Group(
        prompt,
        tuple(
            replace(
                candidate,
                score=plan.scorer.score(prompt, candidate.text),
                held_out=plan.held_out.score(prompt, candidate.text) if plan.held_out is not None else None,
            )
            for candidate in every
        ),
    )


def _require_balance(plan: Plan, choices: Sequence[Choice], reasons: Counter[str]) -> None:
    if len(choices) + sum(reasons.values()) != len(plan.prompts):
        raise RunDirError(
            f"{len(plan.prompts)} prompts went in, {len(choices)} were chosen and {sum(reasons.values())} rejected",
            mend="this is a fault of tutelage; please send it with what you did",
        )


def _answer_totals(groups: Sequence[Group], outcomes: Mapping[str, Outcome]) -> dict[str, Json]:
    rejected = Counter(str(outcome.reason) for outcome in outcomes.values() if outcome.state is State.REJECTED)
    given = sum(len(group.prompt.candidates) for group in groups)
    usable = sum(len(group.candidates) for group in groups)
    scored = sum(len(group.scored) for group in groups)
    return {
        "asked": len(outcomes),
        "given": given,
        "rejected": dict(rejected),
        "empty": len(outcomes) + given - sum(rejected.values()) - usable,
        "scored": scored,
        "unscored": usable - scored,
    }


def _first_reason(reasons: Counter[str], outcomes: Mapping[str, Outcome]) -> str:
    first = next((outcome.reason for outcome in outcomes.values() if outcome.state is State.REJECTED), None)
    said = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
    return said if first is None else f"{said}; the first answer that was rejected: {first}"


def _write(
    out: Path,
    choices: Sequence[Choice],
    groups: Sequence[Group],
    requests: Mapping[str, Request],
    outcomes: Mapping[str, Outcome],
    sampler: Sampler | None,
    plan: Plan,
) -> None:
    def lineage(prompt: Prompt, candidates: Sequence[Candidate], chosen_as: str) -> dict[str, Json]:
        keys = [candidate.request for candidate in candidates if candidate.request is not None]
        asked = [(requests[key], outcomes[key].reply) for key in keys]
        costs = [sampler.cost(request, reply) for request, reply in asked if sampler is not None and reply is not None]
        return lineage_of(
            OPERATOR,
            version=VERSION,
            parents={prompt.id: prompt.where},
            requests=keys,
            chosen_as=chosen_as,
            generator=sorted({reply.model for _, reply in asked if reply is not None}),
            seeds=[request.body["seed"] for request, _ in asked],
            scorer=plan.scorer.name,
            scores=[candidate.score for candidate in candidates],
            cost_dollars=sum(costs) / NANODOLLARS,
            licence=prompt.licence,
        )

    def examples(take: Callable[[Choice], Sequence[Candidate]], chosen_as: str) -> list[Json]:
        return [
            _example(choice.group.prompt, one, lineage(choice.group.prompt, [one], chosen_as))
            for choice in choices
            for one in take(choice)
        ]

    write(out / "sft.jsonl", examples(lambda choice: choice.best, "best"))
    for name, take in _CONTROLS.items():
        write(out / f"control_{name}.jsonl", examples(take, name))
    write(
        out / "pairs.jsonl",
        [
            _pair(choice, choice.worst, lineage(choice.group.prompt, [choice.best[0], choice.worst], "pair"))
            for choice in choices
            if choice.worst is not None
        ],
    )
    write(
        out / "answers.jsonl",
        [
            {"prompt": group.prompt.id, "where": group.prompt.where, **vars(candidate)}
            for group in groups
            for candidate in group.candidates
        ],
    )


def _turns(messages: Sequence[Message]) -> list[Json]:
    return [{"role": str(message.role), "content": message.content} for message in messages]


def _example(prompt: Prompt, candidate: Candidate, lineage: Json) -> Json:
    messages = (*prompt.messages, Message(Role.ASSISTANT, candidate.text))
    return {"id": Conversation(messages).id, "messages": _turns(messages), "lineage": lineage}


def _pair(choice: Choice, worst: Candidate, lineage: Json) -> Json:
    prompt, best = choice.group.prompt, choice.best[0]
    chosen, rejected = ((Message(Role.ASSISTANT, one.text),) for one in (best, worst))
    margin = None if best.score is None or worst.score is None else best.score - worst.score
    return {
        "id": PreferencePair(prompt.messages, chosen, rejected).id,
        "prompt": _turns(prompt.messages),
        "chosen": _turns(chosen),
        "rejected": _turns(rejected),
        "margin": margin,
        "lineage": lineage,
    }
