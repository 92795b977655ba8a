"""Packing holds for any lengths, the adversarial ones too."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import strategies as st

from sample_documents import document
from tutelage.errors import ConfigError
from tutelage.pack import plan as plan_module
from tutelage.pack.batch import pack_batch
from tutelage.pack.plan import PlanOptions, plan_epoch, plan_packs
from tutelage.pack.tree import find_shared_prefixes
from two_lengths import in_two_lengths

budgets = st.integers(1, 70)
lengths_and_budget = budgets.flatmap(
    lambda budget: st.tuples(
        st.one_of(
            st.lists(st.integers(1, budget), max_size=60),
            st.lists(st.sampled_from(sorted({1, budget, budget // 2 + 1, max(1, budget // 2)})), max_size=60),
        ),
        st.just(budget),
    )
)


def check_packs_conserve(given_lengths, seed, epoch, longest_first) -> None:  # type: ignore[no-untyped-def]
    """Packs hold every document once and whole, within the budget."""
    lengths, budget = given_lengths
    plan = plan_packs(lengths, budget, seed=seed, epoch=epoch, longest_first=longest_first)
    placed = [document for pack in plan.packs for document in pack.tolist()]
    assert sorted(placed) == list(range(len(lengths)))
    totals = [sum(lengths[d] for d in pack) for pack in plan.packs]
    assert all(0 < total <= budget for total in totals)
    assert plan.fill == (sum(totals) / (budget * len(totals)) if totals else 1.0)


test_packs_hold_every_document_once_and_whole_within_the_budget, test_packs_conserve_at_length = in_two_lengths(
    check_packs_conserve,
    200,
    given_lengths=lengths_and_budget,
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 100),
    longest_first=st.booleans(),
)


def check_packs_are_full(given_lengths, longest_first) -> None:  # type: ignore[no-untyped-def]
    """What makes best fit at least half full: a second pack is opened only by a document that fits into no open one."""
    lengths, budget = given_lengths
    packs = plan_packs(lengths, budget, seed=0, epoch=0, longest_first=longest_first).packs
    totals = sorted(sum(lengths[d] for d in pack) for pack in packs)
    assert len(totals) < 2 or totals[0] + totals[1] > budget


test_any_two_packs_together_would_not_fit_into_one, test_packs_are_full_at_length = in_two_lengths(
    check_packs_are_full, 200, given_lengths=lengths_and_budget, longest_first=st.booleans()
)


def check_an_epoch_conserves(lengths, data, batch_tokens, sequences, micro_tokens) -> None:  # type: ignore[no-untyped-def]
    """An epoch gives every entry of the order to one step."""
    order = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=80))
    options = PlanOptions(40, batch_tokens, sequences, micro_tokens, seed=5)
    weights = np.arange(len(lengths)) / 8
    steps = plan_epoch(order, lengths, weights, options, epoch=1)
    assert Counter(d for step in steps for d in step.documents) == Counter(order)
    assert sum(step.weight_sum for step in steps) == sum(weights[d] for d in order)
    for step in steps:
        assert all(sum(lengths[d] for d in pack) <= options.slot_tokens for pack in step.packs)
        assert sequences is None or len(step.documents) <= sequences
        assert sequences is not None or step.num_tokens <= batch_tokens


test_an_epoch_gives_every_entry_of_the_order_to_one_step, test_an_epoch_conserves_at_length = in_two_lengths(
    check_an_epoch_conserves,
    100,
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=40),
    data=st.data(),
    batch_tokens=st.integers(40, 200),
    sequences=st.one_of(st.none(), st.integers(1, 9)),
    micro_tokens=st.one_of(st.none(), st.integers(40, 90)),
)


def check_trees_conserve(rows, data, batch_tokens, sequences, micro_tokens) -> None:  # type: ignore[no-untyped-def]
    """Documents are made of blocks of 20 tokens, so that many begin alike."""
    documents = [
        document([3 + block for block in row for _ in range(20)], [1.0] * (20 * len(row)), name=str(number))
        for number, row in enumerate(rows)
    ]
    lengths, weights = [len(one) for one in documents], np.arange(len(documents)) / 8
    order = data.draw(st.lists(st.integers(0, len(documents) - 1), max_size=40))
    prefixes = find_shared_prefixes(documents, 80)

    def plan(micro_tokens):  # type: ignore[no-untyped-def]
        options = PlanOptions(80, batch_tokens, sequences, micro_tokens, seed=5)
        return options, plan_epoch(order, lengths, weights, options, epoch=1, prefixes=prefixes)

    options, steps = plan(micro_tokens)
    assert Counter(d for step in steps for d in step.documents) == Counter(order)
    assert sum(step.weight_sum for step in steps) == sum(weights[d] for d in order)
    for step in steps:
        batches = [pack_batch([documents[d] for d in pack], step.shared_in(n)) for n, pack in enumerate(step.packs)]
        assert step.computed_tokens == sum(batch.num_tokens for batch in batches)
        assert step.num_tokens == sum(sum(batch.lengths) for batch in batches)
        assert all(batch.num_tokens <= options.slot_tokens for batch in batches)
        assert sequences is None or len(step.documents) <= sequences
        assert sequences is not None or micro_tokens is not None or step.computed_tokens <= batch_tokens
    saved = sum(step.num_tokens - step.computed_tokens for step in steps)
    assert saved <= prefixes.most_saved_tokens(np.asarray(order, dtype=np.int64))
    # How large a forward pass is does not change what is in a step.
    assert [Counter(step.documents) for step in plan(None)[1]] == [Counter(step.documents) for step in steps]


test_trees_too_give_every_entry_of_the_order_to_one_step, test_trees_conserve_at_length = in_two_lengths(
    check_trees_conserve,
    100,
    rows=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=4), min_size=1, max_size=12),
    data=st.data(),
    batch_tokens=st.integers(80, 400),
    sequences=st.one_of(st.none(), st.integers(1, 9)),
    micro_tokens=st.one_of(st.none(), st.integers(80, 200)),
)

MOST = 2048
PRIMES = [number for number in range(2, MOST) if all(number % factor for factor in range(2, int(number**0.5) + 1))]
# Lengths that have made packers loop, crawl or lose documents.
ADVERSARIAL = {
    "none": [],
    "one of the most tokens": [MOST],
    "all of the most tokens": [MOST] * 20_000,
    "all of one token": [1] * 50_000,
    "all one above the half": [MOST // 2 + 1] * 20_000,
    "all exactly the half": [MOST // 2] * 20_001,
    "all a third and one more": [MOST // 3 + 1] * 20_000,
    "primes": PRIMES * 60,
    "powers of two": [2**power for power in range(12)] * 2000,
    "one large for every small": [MOST - 1, 2] * 10_000,
    "small ones first": [1] * 10_000 + [MOST] * 10_000,
    "large ones first": [MOST] * 10_000 + [1] * 10_000,
    "rising": sorted(range(1, MOST + 1)) * 8,
    "falling": sorted(range(1, MOST + 1), reverse=True) * 8,
    "saw teeth": [1 + (number * 997) % MOST for number in range(30_000)],
}


@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.parametrize("longest_first", [False, True])
def test_adversarial_lengths_end_and_lose_nothing(name: str, longest_first: bool) -> None:
    lengths = ADVERSARIAL[name]
    began = time.process_time()
    plan = plan_packs(lengths, MOST, seed=1, epoch=0, longest_first=longest_first)
    assert time.process_time() - began < 5
    assert sum(map(len, plan.packs)) == len(lengths)
    assert sorted(document for pack in plan.packs for document in pack.tolist()) == list(range(len(lengths)))
    assert all(sum(lengths[document] for document in pack) <= MOST for pack in plan.packs)


@pytest.mark.parametrize("lengths", [[MOST + 1], [1, MOST + 1, 1], [0], [1, 0], [-1]])
def test_lengths_that_fit_nowhere_are_refused_with_the_document(lengths: list[int]) -> None:
    with pytest.raises(ConfigError, match="document"):
        plan_packs(lengths, MOST, seed=1, epoch=0)


def test_a_packer_that_loses_a_document_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: a pack that is cut by one document breaks the conservation that is checked above."""
    as_packs = plan_module._as_packs
    monkeypatch.setattr(plan_module, "_as_packs", lambda bins: [pack[:-1] for pack in as_packs(bins)])
    with pytest.raises(AssertionError):
        check_packs_conserve(([3, 4, 5], 7), 0, 0, False)
