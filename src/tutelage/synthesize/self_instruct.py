"""New tasks from a few seeds: a model continues lists of tasks, and what is new joins the pool that the next lists are made of.

Each list has eight tasks, two of them made here (fewer while there are none). A task is dropped when it is too short or too long, asks
for what is not text, is in a script that no seed is in, or is too like one of the pool. Then each task is done: first it is told whether
it is a classification; of one that is, the model writes the label first and an input for it afterwards, so that it does not label
everything alike.

| file              | what stands in it                                                    |
|-------------------|----------------------------------------------------------------------|
| `tasks.jsonl`     | the tasks that were accepted, as prompts                             |
| `sft.jsonl`       | their instances, as examples to train on                             |
| `rejected.jsonl`  | every task and instance that was dropped, and why                    |
| `report.json`     | how many of each, round by round                                     |
| `journal.sqlite`  | every request                                                        |

Which lists are asked for depends on the seed and on earlier replies alone, in the order of the requests and not of their arrival, so that a
build that was cut asks for the same ones. Source: Wang et al. 2022, "Self-Instruct" (arXiv 2212.10560); the words of the prompts are
ours, for models that are asked and do not just continue.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tutelage.data.conversation import Conversation, Json, Message, Role, content_hash
from tutelage.data.lines import iter_lines
from tutelage.data.order import permutation
from tutelage.data.reasons import RowError
from tutelage.data.strict_json import parse_json_bytes
from tutelage.errors import DataError
from tutelage.files.atomic import write_json
from tutelage.files.jsonl import write
from tutelage.generate.journal import Journal, Outcome
from tutelage.generate.sampler import Request, Sampler, unusable
from tutelage.synthesize.lineage import JOURNAL, lineage_of
from tutelage.synthesize.novelty import Pool
from tutelage.synthesize.risk import distinct_share

OPERATOR, VERSION = "self-instruct", 1
EXAMPLES, MADE_EXAMPLES = 8, 2
FEWEST_WORDS, MOST_WORDS = 4, 150
TOO_ALIKE = 0.7
MOST_INSTANCES = 5

_ITEM = re.compile(r"^\s*\d+\s*[.)]\s+", re.MULTILINE)
_NOT_TEXT = re.compile(
    r"\b(?:draw|plot|sketch)\b|\b(?:this|these|the (?:attached|following|given|above|below)) "
    r"(?:image|picture|photo|graph|chart|map|file|video|recording)s?\b",
    re.IGNORECASE,
)
_YES, _NO = re.compile(r"\W*yes\b", re.IGNORECASE), re.compile(r"\W*no\b", re.IGNORECASE)
_PART = re.compile(r"^\s*(?:\d+[.)]\s*)?(input|output|label)\s*:", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Task:
    """A task and where it stands. One that was made has parents, the tasks of its list with their places, and a request."""

    id: str
    text: str
    where: str
    parents: Mapping[str, str] = field(default_factory=dict)
    request: str | None = None


@dataclass(frozen=True)
class Plan:
    """`accept` tasks are made from `seeds`, by at most `most_lists` lists, `lists_at_once` in a round."""

    seeds: Sequence[Task]
    accept: int
    most_lists: int
    lists_at_once: int = 8
    seed: int = 0
    cap: int | None = None
    offline: bool = False


@dataclass
class _Found:
    """What a build has so far."""

    made: list[Task] = field(default_factory=list)
    rejected: list[dict[str, Json]] = field(default_factory=list)
    rounds: list[dict[str, Json]] = field(default_factory=list)


def read_seeds(path: Path) -> list[Task]:
    """Return the tasks of a JSON-lines file: the column `instruction`, `prompt` or `question` of each row.

    Raises: DataError, with the line, for a row without one.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist", mend="give a JSON-lines file of tasks")
    seeds: dict[str, Task] = {}
    for line in iter_lines(path):
        if not line.data.strip() and line.problem is None:
            continue
        where = f"{path}:{line.number}"
        try:
            if line.problem is not None:
                raise line.problem
            text = _column(parse_json_bytes(line.data))
        except RowError as error:
            raise DataError(f"{where}: {error}", mend="one JSON object a line") from None
        if text is None:
            raise DataError(f"{where} has no task", mend="name it `instruction`, `prompt` or `question`")
        seeds.setdefault(task_id(text), Task(task_id(text), text, where))
    if not seeds:
        raise DataError(f"{path} has no row", mend='one task a line, such as {"instruction": "Name three rivers."}')
    return list(seeds.values())


def _column(row: Json) -> str | None:
    values = [row.get(name) for name in ("instruction", "prompt", "question")] if isinstance(row, Mapping) else []
    text = next((value for value in values if isinstance(value, str) and value.strip()), None)
    return " ".join(text.split()) if text is not None else None


def task_id(text: str) -> str:
    """Return the hash of a task's words."""
    return content_hash(["task", text])


def build(
    plan: Plan, sampler: Sampler, out: Path, *, on_end: Callable[[Journal], None] = lambda journal: None
) -> dict[str, Json]:
    """Make tasks and their instances, write every file of `out`, and return the figures.

    Raises: DataError when the most lists did not give as many tasks as were wanted; what there is has then been written.
    """
    found = _Found()
    with Journal(out / JOURNAL, sampler, judge=unusable, cap=plan.cap, on_end=on_end) as journal:
        _make_tasks(plan, sampler, journal, found)
        examples = _do_tasks(plan, sampler, journal, found)
        totals = journal.totals().to_json()
    figures: dict[str, Json] = {
        "operator": OPERATOR,
        "version": VERSION,
        "seeds": len(plan.seeds),
        "tasks": len(found.made),
        "instances": len(examples),
        "rejected": dict(Counter(row["reason"] for row in found.rejected)),
        "rounds": found.rounds,
        "journal": totals,
    }
    write(out / "tasks.jsonl", [_prompt_row(task) for task in found.made])
    write(out / "sft.jsonl", examples)
    write(out / "rejected.jsonl", found.rejected)
    write_json(out / "report.json", figures)
    if len(found.made) < plan.accept:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in figures["rejected"].items()) or "no lists came"
        raise DataError(
            f"{len(found.made)} of {plan.accept} tasks after {plan.most_lists} lists: {reasons}",
            mend=f"raise --most-lists, or look at {out / 'rejected.jsonl'}; the same command goes on",
        )
    return figures


def _make_tasks(plan: Plan, sampler: Sampler, journal: Journal, found: _Found) -> None:
    pool = Pool(TOO_ALIKE)
    for seed in plan.seeds:
        pool.add(seed.text)
    scripts = set().union(*(_scripts(seed.text) for seed in plan.seeds))
    for start in range(0, plan.most_lists, plan.lists_at_once):
        if len(found.made) >= plan.accept:
            return
        lists = range(start, min(start + plan.lists_at_once, plan.most_lists))
        asked = [_examples(plan, found.made, number) for number in lists]
        requests = [
            sampler.request(_list_prompt(examples), seed=number) for examples, number in zip(asked, lists, strict=True)
        ]
        outcomes = journal.ask(requests, offline=plan.offline)
        before, candidates = len(found.made), 0
        for examples, request in zip(asked, requests, strict=True):
            for text in _items(outcomes[request.key]):
                candidates += 1
                _take(plan, found, pool, scripts, text, examples, request)
        texts = [task.text for task in found.made]
        found.rounds.append(
            {
                "lists": len(requests),
                "candidates": candidates,
                "accepted": len(found.made) - before,
                "distinct_2": distinct_share(texts, 2),
            }
        )


def _take(
    plan: Plan, found: _Found, pool: Pool, scripts: set[str], text: str, examples: Sequence[Task], request: Request
) -> None:
    """Accept a task, or note why it is dropped."""
    reason = "more than were wanted" if len(found.made) >= plan.accept else why_no_task(text, scripts)
    alike = pool.too_like(text) if reason is None else None
    if alike is not None:
        reason = "too like another"
    if reason is None:
        pool.add(text)
        parents = {task.id: task.where for task in examples}
        found.made.append(Task(task_id(text), text, "tasks.jsonl", parents, request.key))
        return
    found.rejected.append(
        {
            "text": text,
            "reason": reason,
            "request": request.key,
            "alike": alike[0] if alike else None,
            "like": alike[1] if alike else None,
        }
    )


def why_no_task(text: str, scripts: set[str]) -> str | None:
    """Return why a text is not taken for a task, or None. `scripts` are those that the seeds are written in.

    Example:
        >>> why_no_task("Describe this image in one sentence.", {"LATIN"})
        'asks for what is not text'
        >>> why_no_task("Explain how to file a complaint with NASA.", {"LATIN"})
    """
    words = text.split()
    if not FEWEST_WORDS <= len(words) <= MOST_WORDS:
        return "too short" if len(words) < FEWEST_WORDS else "too long"
    if _NOT_TEXT.search(text):
        return "asks for what is not text"
    if unicodedata.category(text[0]).startswith("P"):
        return "begins with punctuation"
    if not _scripts(text) <= scripts:
        return "in a script that no seed has"
    return None


def _scripts(text: str) -> set[str]:
    """Return the scripts of the letters of a text, as the first word of their names in Unicode."""
    return {unicodedata.name(character, "?").split()[0] for character in text if character.isalpha()}


def _examples(plan: Plan, made: Sequence[Task], number: int) -> list[Task]:
    """Return the tasks of one list: some made here, the others seeds, in an order of chance."""
    own = [made[place] for place in permutation(len(made), plan.seed, number, 0)[:MADE_EXAMPLES]]
    seeds = [plan.seeds[place] for place in permutation(len(plan.seeds), plan.seed, number, 1)[: EXAMPLES - len(own)]]
    both = [*own, *seeds]
    return [both[place] for place in permutation(len(both), plan.seed, number, 2)]


def _list_prompt(examples: Sequence[Task]) -> list[Message]:
    listed = "\n".join(f"{number}. {task.text}" for number, task in enumerate(examples, start=1))
    ask = (
        f"Here is a list of tasks that somebody may give to an assistant that reads and writes text:\n\n{listed}\n\n"
        f"Continue it with {EXAMPLES} other tasks of many kinds, one a line, numbered from {len(examples) + 1} on. "
        "Write nothing but the list."
    )
    return [Message(Role.USER, ask)]


def _items(outcome: Outcome) -> list[str]:
    """Return the items of a numbered list. What stands before the first number is no item, nor what follows an empty line."""
    if outcome.reply is None or outcome.reason is not None:
        return []
    _, *items = _ITEM.split(outcome.reply.text)
    return [text for item in items if (text := " ".join(item.split("\n\n")[0].split()))]


def _do_tasks(plan: Plan, sampler: Sampler, journal: Journal, found: _Found) -> list[Json]:
    """Return the instances of every task as examples."""
    kinds = [sampler.request(_kind_prompt(task), seed=plan.seed) for task in found.made]
    told = journal.ask(kinds, offline=plan.offline)
    is_classification = [_is_yes(told[request.key]) for request in kinds]
    requests = [
        sampler.request(_instance_prompt(task, label_first=bool(yes)), seed=plan.seed)
        for task, yes in zip(found.made, is_classification, strict=True)
    ]
    outcomes = journal.ask(requests, offline=plan.offline)
    examples: dict[str, Json] = {}
    for task, kind, yes, request in zip(found.made, kinds, is_classification, requests, strict=True):
        outcome = outcomes[request.key]
        kept, dropped = instances(outcome.reply.text if outcome.reply is not None and outcome.reason is None else "")
        keys = [key for key in (task.request, kind.key, request.key) if key is not None]
        for given, said in kept:
            messages = (
                Message(Role.USER, f"{task.text}\n\n{given}" if given else task.text),
                Message(Role.ASSISTANT, said),
            )
            lineage = lineage_of(
                OPERATOR, version=VERSION, parents={task.id: task.where}, requests=keys, is_classification=yes
            )
            example = Conversation(messages).id
            turns = [{"role": str(message.role), "content": message.content} for message in messages]
            examples[example] = {"id": example, "messages": turns, "lineage": lineage}
        reasons = dropped if kept or dropped else [outcome.reason or "no instance"]
        found.rejected += [{"text": task.text, "reason": reason, "request": request.key} for reason in reasons]
    return list(examples.values())


def _kind_prompt(task: Task) -> list[Message]:
    return [
        Message(
            Role.USER,
            "A classification task has few possible answers, known beforehand, such as the labels of a category, yes or no, or given "
            f"choices. Is this one? Answer yes or no.\n\nTask: {task.text}",
        )
    ]


def _is_yes(outcome: Outcome) -> bool | None:
    """Return what was told; None for an answer that is neither."""
    text = outcome.reply.text if outcome.reply is not None else ""
    return True if _YES.match(text) else False if _NO.match(text) else None


def _instance_prompt(task: Task, *, label_first: bool) -> list[Message]:
    if label_first:
        ask = (
            f"Give up to {MOST_INSTANCES} examples of this task, each with another of its labels. Write for each, on lines of their own, "
            "`Label:` with the label, and then `Input:` with an input that has this label."
        )
    else:
        ask = (
            f"Give up to {MOST_INSTANCES} examples of this task. Write for each, on lines of their own, `Input:` with the input that it "
            "needs, or with `none` where it needs no input, and then `Output:` with the right answer."
        )
    return [Message(Role.USER, f"{ask}\n\nTask: {task.text}")]


def instances(text: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the (input, output) pairs that a reply has, and why others in it were dropped.

    A label or output with an input make one, in either order. When one input has two outputs, the task means two things, and all go.

    Example:
        >>> instances("Input: 2 + 2\\nOutput: 4\\nInput: none\\nOutput:")
        ([('2 + 2', '4')], ['an output is empty'])
    """
    _, *parts = _PART.split(text)
    kept: dict[tuple[str, str], None] = {}
    dropped: list[str] = []
    pairs = list(zip(parts[::2], parts[1::2], strict=True))
    for (first, one), (second, other) in zip(pairs[::2], pairs[1::2], strict=False):
        named = {first.lower(): one.strip(), second.lower(): other.strip()}
        said = named.get("output", named.get("label"))
        if said is None or "input" not in named:
            dropped.append("parts in no order")
            continue
        given = "" if named["input"].lower().strip("<>.") in ("none", "n/a") else named["input"]
        reason = _why_no_instance(given, said)
        if reason is None:
            kept[(given, said)] = None
        else:
            dropped.append(reason)
    inputs = Counter(given for given, _ in kept)
    if any(count > 1 for given, count in inputs.items() if given):
        return [], [*dropped, *["one input has two outputs"] * len(kept)]
    return list(kept)[:MOST_INSTANCES], dropped


def _why_no_instance(given: str, said: str) -> str | None:
    if not said:
        return "an output is empty"
    if given == said:
        return "the output is the input"
    return "ends with a colon" if given.endswith(":") or said.endswith(":") else None


def _prompt_row(task: Task) -> Json:
    keys = [task.request] if task.request is not None else []
    lineage = lineage_of(OPERATOR, version=VERSION, parents=task.parents, requests=keys)
    return {"id": task.id, "prompt": task.text, "lineage": lineage}
