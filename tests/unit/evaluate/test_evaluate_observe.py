"""Losses, ranks and answers as the model alone would give them, however they are laid out."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sample_documents import random_documents
from tiny import tiny_folder
from tutelage.config.load import load_config
from tutelage.data.conversation import Message, Role
from tutelage.evaluate import observe
from tutelage.evaluate.measures import _kl, token_shift
from tutelage.evaluate.observe import Answer, Task, answer_tasks, document_losses, likelihoods
from tutelage.evaluate.subject import Subject, load_base
from tutelage.train.prepare import build_renderer

CPU = torch.device("cpu")


def silent(what: str, done: int, count: int) -> None:
    """Tell nobody."""


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tiny_folder(tmp_path_factory.mktemp("models") / "llama", "llama")
    config = load_config(None, [f"model.path={folder}", "model.template=chatml"]).config
    return load_base(config, build_renderer(config), random_documents(), CPU)


def alone(subject: Subject, ids: np.ndarray) -> torch.Tensor:
    """Return the logits [T, V] of one document by itself."""
    with torch.no_grad():
        return subject.model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0].double()


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("micro_tokens", [32, 4096])
def test_losses_are_those_of_each_document_alone(subject: Subject, packs: bool, micro_tokens: int) -> None:
    documents = random_documents()
    found = document_losses(replace(subject, packs=packs), documents, silent, micro_tokens=micro_tokens)
    for number, document in enumerate(documents):
        log_TV = alone(subject, document.ids).log_softmax(dim=-1)
        targets, weights = document.shifted()
        places = np.flatnonzero(weights)
        expected = -log_TV[places, targets[places]].sum().item()
        assert found.nats[number] == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert found.tokens[number] == len(places)


def test_a_model_that_keeps_documents_apart_reads_packs(subject: Subject, tmp_path: Path) -> None:
    assert subject.packs
    config = load_config(None, [f"model.path={tiny_folder(tmp_path / 'mamba', 'mamba')}"]).config
    assert not load_base(config, build_renderer(config), random_documents(), CPU).packs


def test_likelihoods_and_ranks_are_those_of_the_answer_after_its_prompt(subject: Subject) -> None:
    answers = [Answer((5, 6, 7), (8, 9), "", True), Answer((11, 12), (13, 14, 15, 16), "", False)]
    for one, answer in zip(likelihoods(subject, answers, silent), answers, strict=True):
        log_TV = alone(subject, np.array([*answer.prompt_ids, *answer.ids])).log_softmax(dim=-1)
        places = range(len(answer.prompt_ids) - 1, len(answer.prompt_ids) + len(answer.ids) - 1)
        expected = [log_TV[place, said].item() for place, said in zip(places, answer.ids, strict=True)]
        ranks = [
            int((log_TV[place] > log_TV[place, said]).sum()) for place, said in zip(places, answer.ids, strict=True)
        ]
        assert one.log_probability == pytest.approx(np.array(expected), abs=1e-4)
        assert one.rank.tolist() == ranks


def test_what_a_model_says_is_its_own_choice(subject: Subject) -> None:
    tasks = [Task((Message(Role.USER, text),), "", "") for text in ("Who is the baker?", "Name two cakes, please.")]
    answers = answer_tasks(subject, tasks, silent, max_new_tokens=6)
    own = likelihoods(subject, answers, silent)
    assert all((one.rank == 0).all() for one in own)
    shift = token_shift(own, own)
    assert shift is not None
    assert (shift.unshifted, shift.marginal, shift.shifted, shift.kl) == (1.0, 0.0, 0.0, 0.0)
    assert token_shift([], []) is None


def test_the_divergence_is_that_of_the_whole_distributions(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models that differ, and every token of the vocabulary is looked at: the figure is KL by its definition."""
    monkeypatch.setattr(observe, "OTHERS", 10**9)
    answers = [
        Answer((5, 6, 7), (8, 9), "", True),
        Answer((5,), (), "", False),
        Answer((11, 12), (13, 14, 15), "", False),
    ]
    other = replace(subject, model=copy.deepcopy(subject.model))
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(1.1)
    documents = [np.array([*answer.prompt_ids, *answer.ids]) for answer in answers if answer.ids]
    own = likelihoods(subject, answers, silent)
    base = likelihoods(other, answers, silent, others=[one.others for one in own])
    both = [[alone(side, ids).log_softmax(dim=-1) for ids in documents] for side in (subject, other)]
    kl = [(p.exp() * (p - q)).sum(dim=-1) for p, q in zip(*both, strict=True)]
    shift = token_shift(base, own)
    assert shift is not None
    assert shift.kl == pytest.approx(torch.cat([kl[0][2:4], kl[1][1:4]]).mean().item(), rel=1e-3)
    assert shift.kl > 1e-4


def test_the_divergence_over_few_tokens_is_at_most_the_whole() -> None:
    random = np.random.default_rng(0)
    p, q = (np.log(random.dirichlet(np.ones(50), size=20)).astype(np.float32) for _ in range(2))
    whole = (np.exp(p) * (p - q)).sum(axis=1)
    likeliest = np.argsort(-p, axis=1)[:, :8]
    part = _kl(np.take_along_axis(p, likeliest, 1), np.take_along_axis(q, likeliest, 1))
    assert (part <= whole + 1e-6).all()
    assert (part > 0).all()
