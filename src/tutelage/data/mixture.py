"""Which documents an epoch consists of, and in which order: a pure function of (seed, epoch).

Each source is thought of as an endless tape: pass after pass over its documents, each pass in an order of its own. An epoch
takes the next stretch of each tape and shuffles the stretches together. Hence every document of a source without weight
or share comes exactly once an epoch, and with any weight two documents of one source never differ by more than one in how often
they have been seen.

- `weight` w: the stretch is w passes long (counted in documents).
- `share` s: the stretch is cut by supervised tokens, so that they are s of all supervised tokens of the run so far. Plain text
  is supervised on all its tokens, so a share of 0.1 for replay means that a tenth of the loss comes from replay.
- `epochs`: where the tape ends.
"""

# D documents of one source, N documents of one epoch

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isclose

import numpy as np
import numpy.typing as npt

from tutelage.data.order import hash64, permutation
from tutelage.errors import ConfigError

Int64s = npt.NDArray[np.int64]

# Keys that keep the order within a tape, and the shuffle of an epoch, apart from other uses of the same seed.
_TAPE, _EPOCH = 1, 2


@dataclass(frozen=True, eq=False)
class MixtureSource:
    """One source as the mixture sees it.

    Shapes: `tokens` and `supervised` are [D], the tokens of each document and those of them that carry loss.
    """

    name: str
    num_documents: int
    tokens: Int64s
    supervised: Int64s
    weight: float | None = None
    share: float | None = None
    epochs: float | None = None


@dataclass(frozen=True)
class RealisedShare:
    """What was asked of one source and what the epochs hold. `asked` is None for a source that divides the rest."""

    name: str
    asked: float | None
    realised: float
    documents: int
    tokens: int
    supervised: int
    passes: float


@dataclass(frozen=True, eq=False)
class Mixture:
    """Documents of several sources, numbered source after source, drawn epoch by epoch.

    Raises: ConfigError when the shares leave nothing for the others, or a source with a share has no supervised token.
    """

    sources: Sequence[MixtureSource]
    seed: int = 0
    _starts: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_shares(self.sources)
        counts = [source.num_documents for source in self.sources]
        object.__setattr__(self, "_starts", tuple(int(start) for start in np.cumsum([0, *counts])))

    @property
    def num_documents(self) -> int:
        """All documents of all sources."""
        return self._starts[-1]

    def epoch(self, epoch: int) -> Int64s:
        """Return the documents of one epoch in order, as indices into all documents of all sources.

        Shapes: [N].
        """
        drawn = np.concatenate([np.zeros(0, np.int64), *self._stretches(epoch)])
        return drawn[permutation(len(drawn), self.seed, _EPOCH, epoch)]

    def realised_shares(self, epochs: int = 1) -> tuple[RealisedShare, ...]:
        """Return how the supervised tokens of the first `epochs` epochs divide among the sources."""
        documents = np.zeros(len(self.sources), np.int64)
        tokens, supervised = documents.copy(), documents.copy()
        for epoch in range(epochs):
            for index, stretch in enumerate(self._stretches(epoch)):
                local = stretch - self._starts[index]
                documents[index] += len(local)
                tokens[index] += self.sources[index].tokens[local].sum()
                supervised[index] += self.sources[index].supervised[local].sum()
        total = max(1, int(supervised.sum()))
        return tuple(
            RealisedShare(
                name=source.name,
                asked=source.share,
                realised=int(supervised[index]) / total,
                documents=int(documents[index]),
                tokens=int(tokens[index]),
                supervised=int(supervised[index]),
                passes=int(documents[index]) / max(1, source.num_documents),
            )
            for index, source in enumerate(self.sources)
        )

    def _stretches(self, epoch: int) -> list[Int64s]:
        """Return what the epoch takes of each source's tape, in tape order."""
        return [
            self._tape(index, self._position(index, epoch), self._position(index, epoch + 1)) + self._starts[index]
            for index in range(len(self.sources))
        ]

    def _position(self, index: int, epoch: int) -> int:
        """Return how many documents of a source's tape are used up before `epoch`."""
        source = self.sources[index]
        if source.share is None:
            return round(_passes(source, epoch) * source.num_documents)
        wanted = source.share * self._supervised_before(epoch)
        if source.epochs is not None:
            wanted = min(wanted, source.epochs * _supervised(source))
        full_passes, rest = divmod(wanted, _supervised(source))
        within = np.cumsum(source.supervised[self._pass_order(index, int(full_passes))])
        return int(full_passes) * source.num_documents + _nearest(within, rest)

    def _supervised_before(self, epoch: int) -> float:
        """Return the supervised tokens that all sources together should have given before `epoch`."""
        shared = sum(source.share or 0.0 for source in self.sources)
        others = [source for source in self.sources if source.share is None]
        if others:
            return sum(_passes(source, epoch) * _supervised(source) for source in others) / (1 - shared)
        # Shares alone: the epoch ends when the source that is used up fastest has been seen once.
        return epoch * min(_supervised(source) / source.share for source in self.sources if source.share)

    def _tape(self, index: int, start: int, stop: int) -> Int64s:
        """Return positions start..stop-1 of a source's tape."""
        count = self.sources[index].num_documents
        pieces = [np.zeros(0, np.int64)]
        while start < stop:
            number, offset = divmod(start, count)
            end = min(count, offset + stop - start)
            pieces.append(self._pass_order(index, number)[offset:end])
            start += end - offset
        return np.concatenate(pieces)

    def _pass_order(self, index: int, number: int) -> Int64s:
        key = hash64(_TAPE, *self.sources[index].name.encode())
        return permutation(self.sources[index].num_documents, self.seed, key, number)


def _check_shares(sources: Sequence[MixtureSource]) -> None:
    asked = [source for source in sources if source.share is not None]
    total = sum(source.share or 0.0 for source in asked)
    if asked and len(asked) == len(sources) and not isclose(total, 1.0, rel_tol=1e-6):
        raise ConfigError(
            f"every source has a share, and the shares add up to {total:g} instead of 1",
            mend="make them add up to 1, or leave one source without a share: it takes the rest",
        )
    if len(asked) < len(sources) and total >= 1:
        raise ConfigError(
            f"the shares add up to {total:g}, which leaves nothing for the other sources", mend="lower them"
        )
    for source in asked:
        if _supervised(source) <= 0:
            raise ConfigError(
                f"source {source.name!r} has a share of {source.share:g} but no token to train on",
                mend="look at its rows with `tutelage show`, or remove its share",
            )


def _passes(source: MixtureSource, epoch: int) -> float:
    """Return how often a source without a share has been seen before `epoch`."""
    passes = epoch * (1.0 if source.weight is None else source.weight)
    return passes if source.epochs is None else min(passes, source.epochs)


def _supervised(source: MixtureSource) -> int:
    return int(source.supervised.sum())


def _nearest(cumulated: Int64s, wanted: float) -> int:
    """Return how many documents to take so that their sum comes nearest to `wanted`."""
    count = int(np.searchsorted(cumulated, wanted))
    before = cumulated[count - 1] if count else 0
    if count < len(cumulated) and cumulated[count] - wanted <= wanted - before:
        count += 1
    return count
