"""An evaluation from beginning to end: a tuned model and its base at the same work, what changed, and what of it matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from tutelage.chat.rendered import Rendered
from tutelage.chat.tokenizer import ChatTokenizer
from tutelage.config.schema import Config, EvaluateConfig
from tutelage.errors import DataError
from tutelage.evaluate import measures, ties
from tutelage.evaluate.findings import Finding, findings
from tutelage.evaluate.harness import Harness, HarnessScore, open_harness
from tutelage.evaluate.held_out import by_source, held_out_tasks, scorable_tasks
from tutelage.evaluate.knowledge import Contradiction, Disputed, contradictions
from tutelage.evaluate.measures import Contrast, Measure, Read, Shift
from tutelage.evaluate.nearness import Nearness
from tutelage.evaluate.observe import (
    MICRO_TOKENS,
    Answer,
    Likelihoods,
    Losses,
    Progress,
    Task,
    answer_tasks,
    document_losses,
    likelihoods,
)
from tutelage.evaluate.style import COPIED_WORDS, Phrase, grown_phrases
from tutelage.evaluate.subject import Subject, load_base, load_tuned
from tutelage.evaluate.tasks import Said, ScorableTask, answer_all
from tutelage.evaluate.training import Exchanges, exchanges_of, supervised_bytes
from tutelage.train.prepare import Prepared, prepare

ANSWERS_SHOWN = 200
ROWS_SHOWN = 50
MOST_READ = 4000
"""Exchanges of either side among which contradictions, and rows near to an answer, are looked for."""


@dataclass(frozen=True)
class Evaluation:
    """What was found out. `answers` are (task, answer of the base, answer of the tuned model)."""

    base: str
    tuned: str
    measures: tuple[Measure, ...]
    shift: Shift | None
    contrasts: tuple[Contrast, ...]
    disputed: tuple[Contradiction, ...]
    phrases: tuple[Phrase, ...]
    findings: tuple[Finding, ...]
    answers: tuple[tuple[Task, Answer, Answer], ...]

    def to_json(self) -> dict[str, object]:
        """Return the content of `evaluation.json`."""
        return {
            "base": self.base,
            "tuned": self.tuned,
            "findings": [vars(finding) for finding in self.findings],
            "measures": [measure.to_json() for measure in self.measures],
            "token_shift": vars(self.shift) if self.shift else None,
            "contrasts": [contrast.to_json() for contrast in self.contrasts],
            "disputed": [vars(one) for one in self.disputed],
            "phrases": [vars(phrase) for phrase in self.phrases],
            "answers": [
                {
                    "prompt": [{"role": m.role.value, "content": m.content} for m in task.messages],
                    "where": task.where,
                    "data": task.reference,
                    "base": base.text,
                    "tuned": tuned.text,
                    "base_stopped": base.stopped,
                    "tuned_stopped": tuned.stopped,
                }
                for task, base, tuned in self.answers[:ANSWERS_SHOWN]
            ],
        }


@dataclass(frozen=True, eq=False)
class Work:
    """What both models are given. `trained` and `held_out` are documents of each source by its name.

    `scorable` are the files of tasks that code can score, by name, and `harness` tasks of lm-evaluation-harness; `training` and `asked` are
    what their conversations say, as text: of the trained side and of the one held out.
    """

    trained: dict[str, Sequence[Rendered]]
    held_out: dict[str, Sequence[Rendered]]
    tasks: tuple[Task, ...]
    scorable: Mapping[str, Sequence[ScorableTask]]
    harness: Harness | None
    training: Exchanges
    asked: Exchanges

    @property
    def documents(self) -> list[Rendered]:
        """All documents: trained ones first, source after source."""
        return [document for side in (self.trained, self.held_out) for of in side.values() for document in of]


def evaluate(
    config: Config,
    tuned: Path,
    *,
    device: torch.device,
    progress: Progress,
) -> Evaluation:
    """Compare the model in `tuned` with its base, the model of `config`, on the held-out data and the tasks of `config`.

    One model is in memory at a time.

    Raises: DataError when nothing is held out and there are no tasks; whatever preparing data and loading models raise.
    """
    size = config.evaluate
    scorable, harness = scorable_tasks(config), open_harness(size.harness)
    prepared = prepare(config, progress=progress, lenient=True)
    work = gather_work(prepared, size, scorable, harness)
    probes = work.documents[:3]
    after = _see(load_tuned(tuned, config, probes, device), work, size, _of("tuned model", progress))
    base = load_base(config, prepared.renderer, probes, device)
    before = _see(base, work, size, _of("base", progress), like=after)
    disputed = _disputed(base, work, _of("base", progress))
    near = Nearness(base, work.training.each[:MOST_READ])
    names = config.model.path, str(tuned)
    return _conclude(work, before, after, disputed, near, names=names, tokenizer=prepared.tokenizer)


def _of(name: str, progress: Progress) -> Progress:
    return lambda what, done, count: progress(f"{name}: {what}", done, count)


def gather_work(
    prepared: Prepared,
    size: EvaluateConfig,
    scorable: Mapping[str, Sequence[ScorableTask]],
    harness: Harness | None,
) -> Work:
    """Choose documents and prompts.

    Raises: DataError when nothing is held out, and there are no tasks of either kind.
    """
    if not prepared.held_out and not scorable and not harness:
        raise DataError(
            "nothing is held out, so there is nothing that the model has not seen",
            mend="give files with --held-out or --tasks, or --harness, or set data.held_out or data.held_out_fraction",
        )
    trained, held_out = by_source(prepared.documents), by_source(prepared.held_out)
    return Work(
        trained=trained,
        held_out=held_out,
        tasks=tuple(held_out_tasks(trained, held_out, prepared.tokenizer, size.prompts)),
        scorable=scorable,
        harness=harness,
        training=exchanges_of(prepared.documents, prepared.tokenizer),
        asked=exchanges_of(prepared.held_out, prepared.tokenizer),
    )


@dataclass(frozen=True, eq=False)
class _Seen:
    """What one model did: losses of all documents of the work, again in other batches, its answers, likelihoods of those read, what it
    said to each file of tasks, and its figures of lm-evaluation-harness."""

    losses: Losses
    again: Losses
    answers: list[Answer]
    likelihoods: list[Likelihoods]
    said: Mapping[str, list[Said]]
    harness: Mapping[str, HarnessScore]


def _see(subject: Subject, work: Work, size: EvaluateConfig, progress: Progress, *, like: _Seen | None = None) -> _Seen:
    """Let one model do the work, and read the answers of another, by default its own, and what that one might have said in their place."""
    documents = work.documents
    answers = answer_tasks(subject, work.tasks, progress, max_new_tokens=size.max_new_tokens)
    return _Seen(
        losses=document_losses(subject, documents, progress),
        again=document_losses(subject, documents, progress, micro_tokens=MICRO_TOKENS // 2),
        answers=answers,
        likelihoods=likelihoods(
            subject,
            like.answers if like else answers,
            progress,
            others=[one.others for one in like.likelihoods] if like else None,
        ),
        said={
            name: answer_all(subject, tasks, progress, max_new_tokens=size.max_new_tokens)
            for name, tasks in work.scorable.items()
        },
        harness=work.harness.scores(subject) if work.harness else {},
    )


def _disputed(base: Subject, work: Work, progress: Progress) -> Disputed:
    """Let the base read what the training rows and the held-out rows say."""
    trained, asked = (side.each[:MOST_READ] for side in (work.training, work.asked))
    found = contradictions(base, [*trained, *asked], progress)
    return Disputed(tuple(found[: len(trained)]), tuple(found[len(trained) :]))


def _conclude(
    work: Work,
    before: _Seen,
    after: _Seen,
    disputed: Disputed,
    near: Nearness,
    *,
    names: tuple[str, str],
    tokenizer: ChatTokenizer,
) -> Evaluation:
    trained, held_out = _reads(work, before, after, tokenizer)
    found = [measures.forgetting(read) if read.is_text else measures.learning(read) for read in held_out.values()]
    for name, tasks in work.scorable.items():
        found += measures.of_tasks(name, tasks, before.said[name], after.said[name])
    found += measures.of_harness(before.harness, after.harness)
    contrasts = [measures.by_heart(trained[name], held_out[name]) for name in sorted(trained.keys() & held_out.keys())]
    contrasts += [measures.disputed(disputed)] if disputed.trained else []
    phrases: list[Phrase] = []
    tied = ties.to_losses(trained, work.trained) | ties.to_tasks(near, work.scorable, before.said, after.said)
    if work.tasks:
        known = work.training.runs(COPIED_WORDS)
        turn_ids = _turn_ids(before.answers, tokenizer)
        found += measures.of_answers(work.tasks, before.answers, after.answers, known, turn_ids)
        texts = [[answer.text for answer in side] for side in (after.answers, before.answers)]
        data = [task.reference for task in work.tasks]
        phrases = grown_phrases(texts[0], data, texts[1])
        tied |= ties.to_answers(work.training, texts[0], data)
        tied |= ties.to_endings(near, work.tasks, after.answers, turn_ids)
    return Evaluation(
        *names,
        measures=tuple(sorted(found, key=lambda measure: measure.key)),
        shift=measures.token_shift(before.likelihoods, after.likelihoods),
        contrasts=tuple(contrasts),
        disputed=tuple(disputed.worst()[:ROWS_SHOWN]),
        phrases=tuple(phrases),
        findings=tuple(findings(found, contrasts, phrases, work.training, disputed, tied=tied)),
        answers=tuple(zip(work.tasks, before.answers, after.answers, strict=True)),
    )


def _turn_ids(answers: Sequence[Answer], tokenizer: ChatTokenizer) -> frozenset[int]:
    """Return the control tokens of the template, as prompts have them: those of tools and of reasoning may stand in an answer."""
    return frozenset(chain.from_iterable(answer.prompt_ids for answer in answers)) & tokenizer.control_tokens.keys()


def _reads(
    work: Work, before: _Seen, after: _Seen, tokenizer: ChatTokenizer
) -> tuple[dict[str, Read], dict[str, Read]]:
    """Return the losses on trained and on held-out documents, by source."""
    sides: list[dict[str, Read]] = []
    start = 0
    for side in (work.trained, work.held_out):
        sides.append({})
        for source, documents in side.items():
            own = slice(start, start + len(documents))
            start = own.stop
            sides[-1][source] = Read(
                source,
                is_text=not documents[0].roles,
                base=before.losses.part(own),
                tuned=after.losses.part(own),
                base_again=before.again.part(own),
                num_bytes=np.array([supervised_bytes(one, tokenizer) for one in documents], float),
            )
    return sides[0], sides[1]
