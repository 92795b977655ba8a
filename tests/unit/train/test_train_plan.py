from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from sample_documents import document, random_documents
from tutelage.chat.rendered import Rendered
from tutelage.config.schema import Config, TrainConfig
from tutelage.data.mixture import Mixture, MixtureSource
from tutelage.errors import ConfigError, DataError
from tutelage.train.plan import RunPlan, evaluation_steps, plan_run, sample_steps
from tutelage.train.sharing import Sharing

LENGTHS = tuple(3 + (7 * i) % 20 for i in range(40))


def planned(documents: list[Rendered], *, weight: float | None = None, **train: Any) -> RunPlan:
    config = Config.model_validate({"data": {"max_tokens": 32}, "train": {"batch_tokens": 64, **train}})
    source = MixtureSource(
        "a",
        len(documents),
        np.array([len(document) for document in documents]),
        np.array([document.supervised_tokens for document in documents]),
        weight=weight,
    )
    return plan_run(documents, Mixture([source], seed=config.train.seed), config)


def times_seen(plan: RunPlan) -> Counter[int]:
    return Counter(index for step in plan.steps for index in step.documents)


@pytest.mark.parametrize("epochs", [1, 3])
def test_every_document_is_seen_once_an_epoch(epochs: int) -> None:
    assert times_seen(planned(random_documents(LENGTHS), epochs=epochs)) == dict.fromkeys(range(40), epochs)


def test_half_an_epoch_is_half_of_the_documents() -> None:
    seen = times_seen(planned(random_documents(LENGTHS), epochs=1.5))
    assert sorted(Counter(seen.values()).items()) == [(1, 20), (2, 20)]


def test_a_limit_of_steps_is_met_exactly_below_and_beyond_the_epochs() -> None:
    documents = random_documents(LENGTHS)
    of_one_epoch = planned(documents).num_steps
    assert planned(documents, max_steps=2).num_steps == 2
    longer = planned(documents, max_steps=of_one_epoch + 3)
    assert longer.num_steps == of_one_epoch + 3 and longer.epochs[-1] == 1


def test_the_weight_of_a_step_is_that_of_its_documents() -> None:
    documents = random_documents(LENGTHS)
    for step in planned(documents).steps:
        assert step.weight_sum == pytest.approx(sum(documents[i].weights[1:].sum() for i in step.documents))


def test_the_order_depends_on_the_seed_and_differs_between_epochs() -> None:
    documents = random_documents(LENGTHS)
    assert planned(documents, epochs=2).steps == planned(documents, epochs=2).steps
    assert planned(documents).steps != planned(documents, seed=1).steps
    twice = planned(documents, epochs=2)
    first, second = (
        [s.packs for s, e in zip(twice.steps, twice.epochs, strict=True) if e == epoch] for epoch in (0, 1)
    )
    assert first != second


def test_the_fingerprint_sees_tokens_weights_and_order() -> None:
    documents, others = random_documents(LENGTHS), random_documents(LENGTHS, seed=1)
    plan = planned(documents)
    assert plan.fingerprint(documents) == planned(documents).fingerprint(documents)
    assert plan.fingerprint(documents) != plan.fingerprint(others)
    assert plan.fingerprint(documents) != planned(documents, seed=1).fingerprint(documents)


def test_the_fingerprint_is_that_of_the_same_steps_cut_into_smaller_passes() -> None:
    documents = random_documents(LENGTHS)
    whole, cut = planned(documents), planned(documents, micro_tokens=max(LENGTHS))
    assert cut.num_packs > whole.num_packs
    assert cut.fingerprint(documents) == whole.fingerprint(documents)


def test_a_step_without_a_token_that_carries_loss_is_refused_by_its_rows() -> None:
    documents = [document([5, 6, 7, 8], [0.0, 1.0, 1.0, 1.0], name="a"), document([5, 6, 7, 8], [0.0] * 4, name="b")]
    with pytest.raises(DataError, match=r"has no token that carries loss: its rows are \S*b"):
        planned(documents, batch_tokens=4, micro_tokens=4)


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no document is left"):
        planned([])


def test_evaluation_is_ten_times_in_between_and_at_the_end() -> None:
    evenly = evaluation_steps([7] * 110, TrainConfig())
    assert len(evenly) == 11 and 110 in evenly
    assert evaluation_steps([7] * 3, TrainConfig()) == {1, 2, 3}
    assert evaluation_steps([7] * 10, TrainConfig(evaluate_every_steps=4)) == {4, 8, 10}


@pytest.mark.parametrize(
    ("every", "steps"),
    [(100, {3, 4, 6}), (1, {1, 2, 3, 4, 5, 6}), (250, {4, 6}), (10_000, {6})],
)
def test_evaluation_every_so_many_tokens_comes_after_the_step_that_passes_them(every: int, steps: set[int]) -> None:
    tokens = [40, 40, 40, 180, 5, 1]  # 40, 80, 120, 300, 305, 306
    assert evaluation_steps(tokens, TrainConfig(evaluate_every_tokens=every)) == steps


def test_samples_are_written_at_thirds() -> None:
    assert sample_steps(9) == {3, 6, 9}
    assert sample_steps(1) == {1}


def answers_to_prompts(prompts: int, answers: int, own: int) -> list[Rendered]:
    """Return documents of 20 tokens that a prompt's answers share, and `own` others."""
    random = np.random.default_rng(prompts)
    asked = [random.integers(3, 300, 20).tolist() for _ in range(prompts)]
    rows = [[*prompt, *random.integers(3, 300, own).tolist()] for prompt in asked for _ in range(answers)]
    return [document(row, [0.0] * 20 + [1.0] * own, name=str(number)) for number, row in enumerate(rows)]


def test_answers_to_one_prompt_are_planned_as_trees_and_the_fingerprint_sees_it() -> None:
    documents = answers_to_prompts(10, 4, own=3)
    trees, rows = planned(documents), planned(documents, shared_prefixes=False)
    assert times_seen(trees) == times_seen(rows) == dict.fromkeys(range(40), 1)
    assert trees.num_tokens == rows.num_tokens == rows.computed_tokens == 40 * 23
    assert trees.computed_tokens == 10 * (20 + 4 * 3)
    assert trees.sharing.reason == "2.9x fewer tokens, 320 computed of 920 trained on"
    assert trees.fill <= 1
    assert trees.fingerprint(documents) != rows.fingerprint(documents)


@pytest.mark.parametrize(
    ("prompts", "answers", "own", "said"),
    [(1, 3, 3, "at most 1.07x fewer tokens"), (10, 2, 3, "1.17x fewer tokens")],
    ids=["even together", "once planned"],
)
def test_prefixes_that_save_little_leave_the_plan_as_it_was(prompts: int, answers: int, own: int, said: str) -> None:
    documents = [*answers_to_prompts(prompts, answers, own=own), *answers_to_prompts(30, 1, own=10)]
    plan, without = planned(documents), planned(documents, shared_prefixes=False)
    assert plan.sharing.reason == f"no rows share a prefix worth it: {said}"
    assert plan.steps == without.steps
    assert plan.fingerprint(documents) == without.fingerprint(documents)


def test_a_plan_that_is_made_anew_keeps_what_was_decided_about_sharing() -> None:
    documents = answers_to_prompts(10, 4, own=3)
    plan = planned(documents)
    config = Config.model_validate({"data": {"max_tokens": 32}, "train": {"batch_tokens": 64}})
    mixture = Mixture([MixtureSource("a", 40, np.full(40, 23), np.full(40, 3))], seed=0)
    assert plan_run(documents, mixture, config, sharing=plan.sharing) == plan
    refused = Sharing(None, "none: this model does not")
    assert plan_run(documents, mixture, config, sharing=refused).computed_tokens == plan.num_tokens
