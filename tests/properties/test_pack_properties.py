"""Packing holds for any lengths, the adversarial ones too."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sample_documents import document
from tutelage.pack.batch import pack_batch
from tutelage.pack.plan import PlanOptions, plan_epoch, plan_packs
from tutelage.pack.tree import find_shared_prefixes

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


@settings(max_examples=200, deadline=None)
@given(lengths_and_budget, st.integers(0, 2**63 - 1), st.integers(0, 100), st.booleans())
def test_packs_hold_every_document_once_and_whole_within_the_budget(given_lengths, seed, epoch, longest_first) -> None:  # type: ignore[no-untyped-def]
    lengths, budget = given_lengths
    plan = plan_packs(lengths, budget, seed=seed, epoch=epoch, longest_first=longest_first)
    placed = [document for pack in plan.packs for document in pack.tolist()]
    assert sorted(placed) == list(range(len(lengths)))
    totals = [sum(lengths[d] for d in pack) for pack in plan.packs]
    assert all(0 < total <= budget for total in totals)
    assert plan.fill == (sum(totals) / (budget * len(totals)) if totals else 1.0)


@settings(max_examples=200, deadline=None)
@given(lengths_and_budget, st.booleans())
def test_any_two_packs_together_would_not_fit_into_one(given_lengths, longest_first) -> None:  # type: ignore[no-untyped-def]
    """What makes best fit at least half full: a second pack is opened only by a document that fits into no open one."""
    lengths, budget = given_lengths
    packs = plan_packs(lengths, budget, seed=0, epoch=0, longest_first=longest_first).packs
    totals = sorted(sum(lengths[d] for d in pack) for pack in packs)
    assert len(totals) < 2 or totals[0] + totals[1] > budget


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=40),
    st.data(),
    st.integers(40, 200),
    st.one_of(st.none(), st.integers(1, 9)),
    st.one_of(st.none(), st.integers(40, 90)),
)
def test_an_epoch_gives_every_entry_of_the_order_to_one_step(
    lengths, data, batch_tokens, sequences, micro_tokens
) -> None:  # type: ignore[no-untyped-def]
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


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=4), min_size=1, max_size=12),
    st.data(),
    st.integers(80, 400),
    st.one_of(st.none(), st.integers(1, 9)),
    st.one_of(st.none(), st.integers(80, 200)),
)
def test_trees_too_give_every_entry_of_the_order_to_one_step(rows, data, batch_tokens, sequences, micro_tokens) -> None:  # type: ignore[no-untyped-def]
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
    # How large a forward pass is does not change what is in a step.
    assert [Counter(step.documents) for step in plan(None)[1]] == [Counter(step.documents) for step in steps]
