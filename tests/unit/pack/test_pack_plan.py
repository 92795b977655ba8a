"""The plan of an epoch: whole documents, each exactly once, in steps that do not depend on how they are laid out."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import numpy as np
import pytest

from tutelage.config.schema import Config
from tutelage.errors import ConfigError
from tutelage.pack.plan import PlanOptions, Step, plan_epoch, plan_packs


def instruction_lengths(count: int, longest: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).lognormal(4.8, 0.9, count).astype(np.int64) + 1
    return np.clip(drawn, 1, longest)


def documents_of(steps: list[Step]) -> list[tuple[int, ...]]:
    return [tuple(sorted(step.documents)) for step in steps]


def test_best_fit_takes_the_fullest_bin_that_still_holds_the_document() -> None:
    plan = plan_packs([6, 7, 3, 4], 10, seed=0, epoch=0)
    assert sorted(pack.tolist() for pack in plan.packs) == [[0, 3], [1, 2]]
    assert plan.fill == 1.0


def test_longest_first_fills_what_the_given_order_would_not() -> None:
    lengths = [3, 3, 6, 7, 1]
    assert len(plan_packs(lengths, 10, seed=0, epoch=0).packs) == 3
    assert len(plan_packs(lengths, 10, seed=0, epoch=0, longest_first=True).packs) == 2


@pytest.mark.parametrize(("budget", "fill"), [(2048, 0.99), (4096, 0.995)])
def test_packs_of_instruction_data_are_nearly_full(budget: int, fill: float) -> None:
    assert plan_packs(instruction_lengths(20_000, budget), budget, seed=0, epoch=0).fill >= fill


def test_packs_are_near_random_samples_of_the_epoch() -> None:
    lengths = instruction_lengths(20_000, 2048)
    packs = plan_packs(lengths, 2048, seed=0, epoch=0).packs
    counts = np.array([len(pack) for pack in packs])
    assert np.percentile(counts, 5) > counts.mean() / 3  # longest first: a tenth
    assert np.percentile(counts, 95) < counts.mean() * 2  # longest first: four times


def test_another_epoch_or_seed_shuffles_the_packs_and_the_same_does_not() -> None:
    lengths = instruction_lengths(500, 512)
    first = [pack.tolist() for pack in plan_packs(lengths, 512, seed=1, epoch=0).packs]
    assert first == [pack.tolist() for pack in plan_packs(lengths, 512, seed=1, epoch=0).packs]
    for seed, epoch in ((1, 1), (2, 0)):
        other = [pack.tolist() for pack in plan_packs(lengths, 512, seed=seed, epoch=epoch).packs]
        assert other != first
        assert sorted(other) == sorted(first)


@pytest.mark.parametrize(
    ("lengths", "named"), [([3, 11], "document 1 has 11 tokens"), ([3, 0], "document 1 has no tokens")]
)
def test_documents_that_cannot_be_packed_are_named(lengths: list[int], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        plan_packs(lengths, 10, seed=0, epoch=0)


def test_no_documents_make_an_empty_plan() -> None:
    assert plan_packs([], 10, seed=0, epoch=0).packs == ()
    assert plan_epoch([], [], [], PlanOptions(10, 20), epoch=0) == []


def test_a_step_is_a_whole_number_of_packs_within_the_budget() -> None:
    lengths = instruction_lengths(3000, 512)
    steps = plan_epoch(np.arange(3000), lengths, np.ones(3000), PlanOptions(512, 2100), epoch=0)
    assert all(len(step.packs) == 4 for step in steps[:-1])
    assert 1 <= len(steps[-1].packs) <= 4
    assert all(sum(lengths[list(pack)]) <= 512 for step in steps for pack in step.packs)
    assert all(step.num_tokens == sum(lengths[list(step.documents)]) <= 2100 for step in steps)


def test_a_step_smaller_than_a_pack_shrinks_the_pack() -> None:
    steps = plan_epoch(range(6), [4, 4, 4, 4, 4, 4], np.ones(6), PlanOptions(100, 8), epoch=0)
    assert [len(step.documents) for step in steps] == [2, 2, 2]


def test_batch_sequences_takes_documents_in_order_and_keeps_the_last_partial_step() -> None:
    order = [4, 2, 0, 1, 3, 5, 6]
    steps = plan_epoch(order, [5] * 7, [1.0] * 7, PlanOptions(10, 10, batch_sequences=3), epoch=0)
    assert documents_of(steps) == [(0, 2, 4), (1, 3, 5), (6,)]
    assert [len(step.packs) for step in steps] == [2, 2, 1]


@pytest.mark.parametrize("batch_sequences", [None, 7])
def test_the_documents_of_a_step_do_not_depend_on_micro_batching(batch_sequences: int | None) -> None:
    lengths = instruction_lengths(400, 256)
    weights = np.random.default_rng(1).random(400)
    plans = [
        plan_epoch(
            np.arange(400), lengths, weights, PlanOptions(256, 1024, batch_sequences, micro_tokens, seed=3), epoch=2
        )
        for micro_tokens in (None, 256, 300, 1024)
    ]
    for plan in plans[1:]:
        assert documents_of(plan) == documents_of(plans[0])
        assert [step.weight_sum for step in plan] == [step.weight_sum for step in plans[0]]
    assert len(plans[-1][0].packs) < len(plans[0][0].packs)


def test_the_weight_of_a_step_is_known_from_the_plan() -> None:
    steps = plan_epoch([0, 1, 2], [4, 4, 4], [0.1, 0.2, 0.3], PlanOptions(8, 8), epoch=0)
    assert sorted(step.weight_sum for step in steps) == pytest.approx([0.3, 0.3])


def test_a_document_that_the_order_repeats_is_trained_as_often() -> None:
    order = [0, 1, 1, 2, 1]
    steps = plan_epoch(order, [3, 4, 5], [1.0] * 3, PlanOptions(9, 9), epoch=0)
    assert Counter(d for step in steps for d in step.documents) == Counter(order)


def test_options_follow_the_configuration() -> None:
    config = Config.model_validate(
        {"data": {"max_tokens": 512}, "train": {"batch_tokens": 4096, "micro_tokens": 1024, "seed": 7}}
    )
    assert PlanOptions.from_config(config) == PlanOptions(512, 4096, None, 1024, 7)


@pytest.mark.parametrize(
    ("options", "slot"),
    [
        (PlanOptions(512, 4096), 512),
        (PlanOptions(512, 256), 256),
        (PlanOptions(512, 256, batch_sequences=12), 512),
        (PlanOptions(512, 4096, micro_tokens=1024), 1024),
    ],
)
def test_slot_tokens_is_what_a_planned_pack_can_hold(options: PlanOptions, slot: int) -> None:
    assert options.slot_tokens == slot
    steps = plan_epoch(range(90), [50] * 90, [1.0] * 90, options, epoch=0)
    assert max(len(pack) for step in steps for pack in step.packs) == slot // 50


def test_memory_grows_with_documents_and_not_with_documents_times_packs() -> None:
    lengths = instruction_lengths(20_000, 2048)
    tracemalloc.start()
    plan_packs(lengths, 2048, seed=0, epoch=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000 * 150
