"""Which rank runs which forward pass of a step: as many passes for each, of like cost side by side."""

# N passes

from __future__ import annotations

from collections.abc import Sequence


def deal(costs: Sequence[float], num_ranks: int) -> tuple[tuple[int | None, ...], ...]:
    """Deal N passes to the ranks in rounds, and return for each rank the pass of every round, None where it has none.

    Ranks of a sharded model meet at every layer, so that a round lasts as long as its costliest pass: passes of like cost share a
    round. Within a round the rank that has done least gets the costliest, so that the sums come out alike as well, for replicas that
    meet only at the end. A single rank keeps the given order.

    Example:
        >>> deal([3, 9, 4, 8, 5], num_ranks=2)
        ((1, 2, 0), (3, 4, None))
    """
    if num_ranks == 1:
        return (tuple(range(len(costs))),)
    costliest_first = sorted(range(len(costs)), key=lambda number: (-costs[number], number))
    done = [0.0] * num_ranks
    dealt: list[list[int | None]] = [[] for _ in range(num_ranks)]
    for start in range(0, len(costs), num_ranks):
        passes: list[int | None] = [*costliest_first[start : start + num_ranks]]
        passes += [None] * (num_ranks - len(passes))
        least_first = sorted(range(num_ranks), key=lambda rank: (done[rank], rank))
        for rank, number in zip(least_first, passes, strict=True):
            dealt[rank].append(number)
            done[rank] += costs[number] if number is not None else 0.0
    return tuple(tuple(numbers) for numbers in dealt)


def pass_cost(lengths: Sequence[int], hidden_size: int) -> float:
    """Return the cost of a pass over documents of these lengths, in tokens that pay no attention.

    Per layer a token costs about 24 H² operations in matrices and 2 L H in causal attention over a document of L tokens.
    """
    return sum(length * (1.0 + length / (12.0 * hidden_size)) for length in lengths)
