"""The plan of an epoch: which documents make a step, and which of them share a pack.

Everything follows from (order, lengths, options, seed, epoch): no tensor, no rank and no clock is involved, so a plan can
be printed before training, compared after a resume and computed by every rank on its own.

The documents of a step are fixed first, from `batch_tokens` or `batch_sequences` alone; how the forward passes cut the step
up (`micro_tokens`, padded rows, ranks) comes after and cannot change them.

Where documents share prefixes, those of one prefix stand together in the order and go into packs as one, a tree, whose shared
tokens count once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tutelage.config.schema import Config
from tutelage.data.order import permutation
from tutelage.errors import ConfigError
from tutelage.pack.tree import SharedPrefixes

# N documents, M places in the order of an epoch

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PackPlan:
    """Packs as positions in the given lengths.

    `fill` is the part of all pack slots that holds a token, between 0 and 1.
    """

    packs: tuple[Indices, ...]
    fill: float


@dataclass(frozen=True)
class PlanOptions:
    """What the plan depends on beside the documents; units are tokens, except `batch_sequences` (documents)."""

    pack_tokens: int
    batch_tokens: int
    batch_sequences: int | None = None
    micro_tokens: int | None = None
    seed: int = 0

    @property
    def slot_tokens(self) -> int:
        """Tokens that one planned pack can hold: `micro_tokens`, or else the pack, which is never more than a step."""
        if self.micro_tokens is not None:
            return self.micro_tokens
        return self.pack_tokens if self.batch_sequences is not None else min(self.pack_tokens, self.batch_tokens)

    @property
    def most_of_a_step(self) -> int | None:
        """Documents that a shared prefix may bring into one step of `batch_sequences`; a step of tokens has room for several trees."""
        return None if self.batch_sequences is None else max(2, self.batch_sequences // 4)

    @classmethod
    def from_config(cls, config: Config) -> PlanOptions:
        """Read the options of a run: a pack holds `data.max_tokens`."""
        train = config.train
        return cls(
            pack_tokens=config.data.max_tokens,
            batch_tokens=train.batch_tokens,
            batch_sequences=train.batch_sequences,
            micro_tokens=train.micro_tokens,
            seed=train.seed,
        )


@dataclass(frozen=True)
class Step:
    """One optimiser step: its packs, each a tuple of document indices, and the sum of all loss weights in it.

    `num_tokens` are those of its documents. `shared`, like `packs`, has the tokens that a document shares with the one before
    it in the pack; it is empty where nothing is shared.
    """

    packs: tuple[tuple[int, ...], ...]
    num_tokens: int
    weight_sum: float
    shared: tuple[tuple[int, ...], ...] = ()

    @property
    def documents(self) -> tuple[int, ...]:
        """Every document of the step, pack by pack."""
        return tuple(document for pack in self.packs for document in pack)

    @property
    def computed_tokens(self) -> int:
        """Tokens that the model computes: those of the documents, shared ones once."""
        return self.num_tokens - sum(map(sum, self.shared))

    def shared_in(self, pack: int) -> tuple[int, ...]:
        """Return the tokens that each document of a pack shares with the one before."""
        return self.shared[pack] if self.shared else (0,) * len(self.packs[pack])


def plan_packs(
    lengths: npt.ArrayLike, budget_tokens: int, *, seed: int, epoch: int, longest_first: bool = False
) -> PackPlan:
    """Pack whole documents into bins of at most `budget_tokens`, best fit, and shuffle the packs by (seed, epoch).

    Documents are placed in the order given: over an epoch in random order, packs are then nearly random samples of it, while
    placing the longest first would put the longest two into one pack and a hundred of the shortest into another.
    `longest_first` fills a little better and is for documents that share a step anyway.

    Shapes: lengths [N] of positive integers.
    Raises: ConfigError when a document is longer than the budget or empty.
    """
    lengths_N = np.asarray(lengths, dtype=np.int64)
    _require_fitting(lengths_N, budget_tokens)
    if len(lengths_N) == 0:
        return PackPlan((), 1.0)
    sequence = np.argsort(-lengths_N, kind="stable") if longest_first else np.arange(len(lengths_N))
    packs = _as_packs(_best_fit(lengths_N, sequence, budget_tokens))
    shuffled = tuple(packs[i] for i in permutation(len(packs), seed, epoch))
    return PackPlan(shuffled, float(lengths_N.sum()) / (len(packs) * budget_tokens))


def plan_epoch(
    order: npt.ArrayLike,
    lengths: npt.ArrayLike,
    weights: npt.ArrayLike,
    options: PlanOptions,
    *,
    epoch: int,
    prefixes: SharedPrefixes | None = None,
) -> list[Step]:
    """Plan one epoch: every entry of `order` lands in exactly one step, the last, smaller step included.

    With `prefixes`, documents that share one are brought together, and count in packs and steps for what they compute.

    Shapes: order [M] document indices (a document may occur more than once); lengths and weights [N], the tokens and the
    sum of loss weights of each document.
    Raises: ConfigError when a document does not fit into a pack or a step.
    """
    order_M = np.asarray(order, dtype=np.int64)
    lengths_N = np.asarray(lengths, dtype=np.int64)
    weights_N = np.asarray(weights, dtype=np.float64)
    shared_M = None
    if prefixes is not None:
        order_M, shared_M = prefixes.arranged(order_M, lengths_N[order_M], most_documents=options.most_of_a_step)
    places_of_steps = _plan_places(_Tokens(lengths_N[order_M], shared_M), options, epoch)
    return [_step(packs, order_M, lengths_N, weights_N, shared_M) for packs in places_of_steps]


def _step(
    packs: Sequence[Indices],
    order_M: Indices,
    lengths_N: Indices,
    weights_N: npt.NDArray[np.float64],
    shared_M: Indices | None,
) -> Step:
    members = order_M[np.concatenate(packs)]
    return Step(
        packs=tuple(tuple(order_M[pack].tolist()) for pack in packs),
        num_tokens=int(lengths_N[members].sum()),
        weight_sum=math.fsum(weights_N[members]),  # exact, so it does not depend on how the step is cut into packs
        shared=() if shared_M is None else tuple(_shared_in_pack(pack, shared_M) for pack in packs),
    )


@dataclass(frozen=True, eq=False)
class _Tokens:
    """Of each place in the order: the tokens [M] of its document, and those shared with the place before, None for nowhere."""

    lengths: Indices
    shared: Indices | None


def _plan_places(tokens: _Tokens, options: PlanOptions, epoch: int) -> list[Sequence[Indices]]:
    """Return the packs of each step, as places in the order."""
    places = np.arange(len(tokens.lengths))
    if options.batch_sequences is not None:
        size = options.batch_sequences
        steps = [places[start : start + size] for start in range(0, len(places), size)]
        return [_repack(step, tokens, options, epoch) for step in steps]
    pack_tokens = min(options.pack_tokens, options.batch_tokens)
    packs = _pack(places, tokens, pack_tokens, options.seed, epoch)
    per_step = options.batch_tokens // pack_tokens
    groups: list[Sequence[Indices]] = [packs[start : start + per_step] for start in range(0, len(packs), per_step)]
    if options.slot_tokens == pack_tokens:
        return groups
    return [_repack(np.concatenate(group), tokens, options, epoch) for group in groups]


def _repack(places: Indices, tokens: _Tokens, options: PlanOptions, epoch: int) -> Sequence[Indices]:
    """Pack the documents of one step for forward passes of `slot_tokens`."""
    return _pack(places, tokens, options.slot_tokens, options.seed, epoch, longest_first=True)


def _pack(
    places: Indices, tokens: _Tokens, budget_tokens: int, seed: int, epoch: int, *, longest_first: bool = False
) -> list[Indices]:
    """Pack documents, or whole trees of them where there are any, into bins of at most `budget_tokens`."""
    if tokens.shared is None:
        lengths = tokens.lengths[places]
        packs = plan_packs(lengths, budget_tokens, seed=seed, epoch=epoch, longest_first=longest_first).packs
        return [places[pack] for pack in packs]
    trees, lengths = _trees(places, tokens.lengths, tokens.shared, budget_tokens)
    packs = plan_packs(lengths, budget_tokens, seed=seed, epoch=epoch, longest_first=longest_first).packs
    return [np.concatenate([trees[number] for number in pack]) for pack in packs]


def _trees(
    places: Indices, lengths_M: Indices, shared_M: Indices, most_tokens: int
) -> tuple[list[Indices], npt.NDArray[np.int64]]:
    """Cut places into trees of at most `most_tokens`, many of one document; return them and the tokens that each computes."""
    starts: list[int] = []
    computed: list[int] = []
    before = -2
    for number, place in enumerate(places.tolist()):
        length = int(lengths_M[place])
        added = length - int(shared_M[place])
        if place == before + 1 and added < length and computed[-1] + added <= most_tokens:
            computed[-1] += added
        else:
            starts.append(number)
            computed.append(length)
        before = place
    return np.split(places, starts[1:]), np.asarray(computed, dtype=np.int64)


def _shared_in_pack(pack: Indices, shared_M: Indices) -> tuple[int, ...]:
    """Return the tokens that each document of a pack shares with the one before it there."""
    follows = np.diff(pack, prepend=-2) == 1
    return tuple(np.where(follows, shared_M[pack], 0).tolist())


def _best_fit(lengths_N: Indices, sequence_N: Indices, budget_tokens: int) -> Indices:
    """Return the bin [N] of each document, placed in sequence, each into the fullest bin that still holds it.

    Bins stand in stacks by free space, and one big integer has bit f set when some bin has f tokens free, so the fullest
    fitting bin is the lowest set bit from the document's length upwards: near-linear in documents, with no search.
    """
    bins_by_space: list[list[int]] = [[] for _ in range(budget_tokens + 1)]
    occupied = 0
    num_bins = 0
    placed = [0] * len(lengths_N)
    for nth, length in enumerate(lengths_N[sequence_N].tolist()):
        fitting = occupied >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            stack = bins_by_space[space]
            chosen = stack.pop()
            if not stack:
                occupied ^= 1 << space
        else:
            space, chosen = budget_tokens, num_bins
            num_bins += 1
        placed[nth] = chosen
        left = space - length
        if left:
            bins_by_space[left].append(chosen)
            occupied |= 1 << left
    bin_of_N = np.empty(len(lengths_N), dtype=np.int64)
    bin_of_N[sequence_N] = placed
    return bin_of_N


def _as_packs(bin_of_N: Indices) -> list[Indices]:
    by_bin = np.argsort(bin_of_N, kind="stable")
    ends = np.cumsum(np.bincount(bin_of_N))[:-1]
    return [np.asarray(pack, dtype=np.int64) for pack in np.split(by_bin, ends)]


def _require_fitting(lengths_N: Indices, budget_tokens: int) -> None:
    if len(lengths_N) == 0:
        return
    if lengths_N.min() < 1:
        raise ConfigError(
            f"document {int(lengths_N.argmin())} has no tokens", mend="drop empty documents before packing"
        )
    if lengths_N.max() > budget_tokens:
        raise ConfigError(
            f"document {int(lengths_N.argmax())} has {int(lengths_N.max())} tokens, more than the {budget_tokens} of a pack",
            mend="raise train.batch_tokens and train.micro_tokens to at least data.max_tokens, or lower data.max_tokens",
        )
