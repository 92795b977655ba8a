from __future__ import annotations

from itertools import pairwise, zip_longest

from hypothesis import given
from hypothesis import strategies as st

from tutelage.parallel.deal import deal, pass_cost

COSTS = st.lists(st.floats(min_value=0.5, max_value=100.0), max_size=40)


@given(COSTS, st.integers(min_value=1, max_value=9))
def test_every_pass_is_dealt_once_and_all_ranks_get_as_many(costs: list[float], num_ranks: int) -> None:
    dealt = deal(costs, num_ranks)
    assert len(dealt) == num_ranks
    assert sorted(n for of_rank in dealt for n in of_rank if n is not None) == list(range(len(costs)))
    assert {len(of_rank) for of_rank in dealt} == {-(-len(costs) // num_ranks)}


@given(COSTS, st.integers(min_value=2, max_value=9))
def test_no_rank_does_more_than_the_least_busy_one_by_more_than_a_pass(costs: list[float], num_ranks: int) -> None:
    sums = [sum(costs[n] for n in of_rank if n is not None) for of_rank in deal(costs, num_ranks)]
    assert max(sums) - min(sums) <= max(costs, default=0.0) + 1e-9


@given(COSTS, st.integers(min_value=2, max_value=9))
def test_passes_of_like_cost_share_a_round(costs: list[float], num_ranks: int) -> None:
    rounds = [[costs[n] for n in of_round if n is not None] for of_round in zip_longest(*deal(costs, num_ranks))]
    for this, following in pairwise(rounds):
        assert min(this) >= max(following)


def test_a_single_process_keeps_the_order_of_the_plan() -> None:
    assert deal([1.0, 9.0, 5.0], 1) == ((0, 1, 2),)


def test_a_long_document_costs_more_than_short_ones_of_as_many_tokens() -> None:
    assert pass_cost([4096], 512) > 1.5 * pass_cost([64] * 64, 512)
    assert pass_cost([4096], 8192) < 1.1 * pass_cost([64] * 64, 8192)
