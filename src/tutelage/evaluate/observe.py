"""What one model does with the work of an evaluation: losses of documents, answers to prompts, likelihoods of given answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from tutelage.chat.rendered import Rendered
from tutelage.config.schema import Layout
from tutelage.data.conversation import Message
from tutelage.evaluate.subject import Subject
from tutelage.generate.local import generate
from tutelage.model.head import supervised_logits, supervised_losses
from tutelage.pack.batch import Batch, pack_batch, pad_batch
from tutelage.pack.plan import plan_packs

# D documents, S supervised tokens of one batch, L tokens of one answer, V vocabulary, K tokens in place of one

MICRO_TOKENS = 4096
ROWS_AT_ONCE = 128
OTHERS = 64
"""Likeliest tokens of a model that another one is asked about too."""

Progress = Callable[[str, int, int], None]
"""Called as (what is being done, how much is done, how much there is)."""


@dataclass(frozen=True, eq=False)
class Losses:
    """Losses of documents, in the order in which they were given.

    Shapes: [D]. `nats` is the sum over the supervised tokens of a document, `tokens` how many there are.
    """

    nats: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.float64]

    def part(self, chosen: slice) -> Losses:
        """Return the losses of some of the documents."""
        return Losses(self.nats[chosen], self.tokens[chosen])


def document_losses(
    subject: Subject, documents: Sequence[Rendered], progress: Progress, *, micro_tokens: int = MICRO_TOKENS
) -> Losses:
    """Return the loss of every document. What shares a batch with it has no influence; `micro_tokens` bounds the batch."""
    nats = np.zeros(len(documents))
    tokens = np.array([document.supervised_tokens for document in documents], dtype=np.float64)
    done = 0
    with torch.inference_mode():
        for group, batch in batches(subject, documents, micro_tokens):
            if batch.num_supervised:
                losses = supervised_losses(subject.model, batch)
                sums = torch.zeros(len(group), dtype=torch.float64, device=subject.device)
                sums.index_add_(0, losses.document, losses.loss.double())
                nats[group] = sums.cpu().numpy()
            done += len(group)
            progress("reading", done, len(documents))
    return Losses(nats, tokens)


def batches(subject: Subject, documents: Sequence[Rendered], micro_tokens: int) -> Iterator[tuple[list[int], Batch]]:
    """Yield groups of documents, by number, and each as a batch on the subject's device."""
    lengths = [len(document) for document in documents]
    if not lengths:
        return
    if subject.layout is Layout.PACKED:
        packs = plan_packs(lengths, max(micro_tokens, *lengths), seed=0, epoch=0, longest_first=True).packs
        groups = [list(pack) for pack in packs]
    else:
        groups = _of_like_length(lengths, micro_tokens)
    lay_out = pack_batch if subject.layout is Layout.PACKED else pad_batch
    for group in groups:
        yield group, lay_out([documents[number] for number in group]).to(subject.device)


def _of_like_length(lengths: Sequence[int], slots: int) -> list[list[int]]:
    """Group numbers, longest first, so that rows times the longest stays within `slots`."""
    groups: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= slots:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


class Asked(Protocol):
    """Something that a model answers."""

    @property
    def messages(self) -> Sequence[Message]: ...


@dataclass(frozen=True)
class Task:
    """A held-out prompt: its messages, the answer that the data have for it, and the row that it is of."""

    messages: tuple[Message, ...]
    reference: str
    where: str


@dataclass(frozen=True)
class Answer:
    """What a model said, without the stop token; `stopped` is False where the limit cut it."""

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    text: str
    stopped: bool


def answer_tasks(subject: Subject, tasks: Sequence[Asked], progress: Progress, *, max_new_tokens: int) -> list[Answer]:
    """Answer every task greedily."""
    renderer = subject.renderer
    prompts = [tuple(renderer.prompt_ids(task.messages)) for task in tasks]
    answers: list[Answer] = []
    for start in range(0, len(prompts), ROWS_AT_ONCE):
        asked = prompts[start : start + ROWS_AT_ONCE]
        said = generate(
            subject.model,
            renderer.tokenizer,
            asked,
            stop_ids=renderer.stop_ids,
            max_new_tokens=max_new_tokens,
            batch_rows=ROWS_AT_ONCE,
        )
        answers += [
            Answer(prompt, one.ids, one.text.strip(), one.stopped) for prompt, one in zip(asked, said, strict=True)
        ]
        progress("answering", len(answers), len(prompts))
    return answers


@dataclass(frozen=True, eq=False)
class Likelihoods:
    """How likely a model finds the tokens of one answer, and others in their place.

    Shapes: [L], and [L, K] of what may stand in the place of each. `log_probability` and `log_others` in nats; `rank` is 0 for the token
    that the model would have said itself; `others` are ids, by default the model's own likeliest.
    """

    log_probability: npt.NDArray[np.float64]
    rank: npt.NDArray[np.int64]
    others: npt.NDArray[np.int64]
    log_others: npt.NDArray[np.float32]


def likelihoods(
    subject: Subject,
    answers: Sequence[Answer],
    progress: Progress,
    *,
    others: Sequence[npt.NDArray[np.int64]] | None = None,
) -> list[Likelihoods]:
    """Return how likely a model finds answers, its own or another's, after their prompts, and `others` [L, K] in place of their tokens."""
    documents = [as_document(answer) for answer in answers]
    found: dict[int, Likelihoods] = {}
    nothing = Likelihoods(np.zeros(0), np.zeros(0, np.int64), np.zeros((0, 0), np.int64), np.zeros((0, 0), np.float32))
    with torch.inference_mode():
        for group, batch in batches(subject, documents, MICRO_TOKENS // 2):
            if not batch.num_supervised:  # nothing but empty answers
                found |= dict.fromkeys(group, nothing)
                continue
            logits_SV = supervised_logits(subject.model, batch).float()
            target_S1 = batch.supervised_targets[:, None]
            said_S1 = logits_SV.gather(1, target_S1)
            total_S1 = logits_SV.logsumexp(dim=-1, keepdim=True)
            log_S = (said_S1 - total_S1)[:, 0].double().cpu().numpy()
            rank_S = (logits_SV > said_S1).sum(dim=-1).cpu().numpy()
            if others is None:
                other_SK = logits_SV.topk(min(OTHERS, logits_SV.shape[1]), dim=-1).indices
            else:
                asked = np.concatenate([others[number] for number in group if len(others[number])])
                other_SK = torch.from_numpy(asked).to(logits_SV.device)
            log_SK = (logits_SV.gather(1, other_SK) - total_S1).cpu().numpy()
            other_ids_SK, document_S = other_SK.cpu().numpy(), batch.supervised_document.cpu().numpy()
            for place, number in enumerate(group):
                own = document_S == place
                found[number] = Likelihoods(log_S[own], rank_S[own], other_ids_SK[own], log_SK[own])
            progress("comparing tokens", len(found), len(documents))
    return [found[number] for number in range(len(documents))]


@dataclass(frozen=True)
class Chosen:
    """The choice that a model finds likeliest, by the mean over its bytes; `probabilities` are its own, of all choices, summing to 1."""

    text: str
    probabilities: tuple[float, ...]


def choose(
    subject: Subject, asked: Sequence[Asked], choices: Sequence[Sequence[str]], progress: Progress
) -> list[Chosen]:
    """Return for each prompt what the model chooses."""
    tokenizer, offered = subject.renderer.tokenizer, []
    for task, texts in zip(asked, choices, strict=True):
        prompt = tuple(subject.renderer.prompt_ids(task.messages))
        offered += [
            Answer(prompt, tuple(map(int, tokenizer.encode_inert(text, after_control=True).ids)), text, True)
            for text in texts
        ]
    found = iter(likelihoods(subject, offered, progress))
    return [_chosen(texts, np.array([next(found).log_probability.sum() for _ in texts])) for texts in choices]


def _chosen(texts: Sequence[str], log_probability: npt.NDArray[np.float64]) -> Chosen:
    per_byte = log_probability / [max(1, len(text.encode())) for text in texts]
    likely = np.exp(log_probability - log_probability.max())
    return Chosen(texts[int(per_byte.argmax())], tuple((likely / likely.sum()).tolist()))


def as_document(answer: Answer) -> Rendered:
    """Return prompt and answer as a document in which the answer is supervised."""
    ids = np.array([*answer.prompt_ids, *answer.ids], dtype=np.int32)
    weights = np.zeros(len(ids), dtype=np.float32)
    weights[len(answer.prompt_ids) :] = 1.0
    return Rendered(
        ids=ids,
        weights=weights,
        message=np.full(len(ids), -1, dtype=np.int32),
        part=np.zeros(len(ids), dtype=np.int8),
        roles=(),
        record_id="",
        source="answers",
        where="",
    )
