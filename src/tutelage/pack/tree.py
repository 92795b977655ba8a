"""Shared prefixes computed once: documents that begin with the same tokens as the branches of one tree.

Several answers to one prompt, or every turn of one conversation as a document of its own, repeat their beginning. Laid out as a
tree, the beginning stands in the stream once. Each token sees what stands before it on its own path and nothing of its siblings,
positions go on along the path, and the token before a branch predicts the first token of every branch. So each document's
hidden states, loss and gradient are what they are alone.

A tree is written as its documents in depth-first order, each with the number of tokens that it shares with the one before:

    lengths 5 6 4, shared 0 3 2      a b c d e          stream  a b | c | d e | d' e' f' | c'' d''
                                     . . . d' e' f'     each document adds what it does not share
                                     . . c'' d''

Every document keeps its last token for itself, so that none vanishes, not even one that is equal to another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tutelage.chat.documents import ids_of, lengths_of
from tutelage.chat.rendered import Rendered

# D documents, M entries of an epoch's order

LEAST_SHARED_TOKENS = 16  # a branch costs an attention call of its own in every layer
LEAST_SHARED_PART = 0.25  # of the mean length, before documents are put side by side for it
LEAST_SHARED_PART_OF_MANY = 0.5  # the same, where whole packs would show one kind of text only
SIBLINGS_PART = 0.25  # of their path's tokens: together that many at most
FEW_PACKS = 4  # up to which documents are few

SORTED_TOKENS = 32  # of each document, that sorting holds in memory at a time

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """Tokens of a stream that the same documents share: `length` from `start`, the first at `position` in its documents.

    `parent` is the number of the segment that comes before it on its path, -1 for the first of a document.
    """

    start: int
    length: int
    parent: int
    position: int


@dataclass(frozen=True)
class Tree:
    """The segments of a stream, in its order, and of each document the segments that make it up."""

    segments: tuple[Segment, ...]
    paths: tuple[tuple[int, ...], ...]

    @property
    def longest_path(self) -> int:
        """Tokens of the longest document."""
        return max(segment.position + segment.length for segment in self.segments)

    def path_to(self, segment: int) -> list[int]:
        """Return the segments from the first of a document to `segment`, both included."""
        path = [segment]
        while (parent := self.segments[path[-1]].parent) >= 0:
            path.append(parent)
        return path[::-1]

    def siblings(self) -> list[list[int]]:
        """Return the segments in runs that are worth computing together: siblings next to each other, short beside their path.

        Computed together they read their path once; what a sibling does not see of the others is computed for nothing.
        """
        runs: list[list[int]] = []
        tokens = 0
        for number, segment in enumerate(self.segments):
            tokens += segment.length
            fits = tokens <= SIBLINGS_PART * segment.position
            if runs and fits and segment.parent == self.segments[runs[-1][0]].parent:
                runs[-1].append(number)
            else:
                runs.append([number])
                tokens = segment.length
        return runs

    def places(self, segments: Sequence[int]) -> Indices:
        """Return the places in the stream of the tokens of several segments."""
        spans = [self.segments[number] for number in segments]
        return np.concatenate([np.arange(span.start, span.start + span.length) for span in spans])


def grow_tree(lengths: Sequence[int], shared: Sequence[int]) -> Tree:
    """Return the tree of documents in depth-first order, `shared[i]` tokens of document i being those of the one before.

    A document that shares nothing begins a tree of its own.

    Raises: ValueError where a document would share all of itself, or all of the one before.
    """
    # First, whose tokens a document is made of: (owner, first, end) of the documents that stand for each part of it.
    made_of: list[list[tuple[int, int, int]]] = []
    cuts: list[set[int]] = []
    for number, (length, common) in enumerate(zip(lengths, shared, strict=True)):
        if not 0 <= common < min(length, lengths[number - 1] if number else 1):
            raise ValueError(f"document {number} of {length} tokens cannot share {common} with the one before")
        before = made_of[-1] if common else []
        kept = [(owner, first, min(end, common)) for owner, first, end in before if first < common]
        for owner, _, end in kept:
            cuts[owner].add(end)
        made_of.append([*kept, (number, common, length)])
        cuts.append({common, length})
    # Then every document's own tokens, cut wherever a branch begins.
    segments: list[Segment] = []
    at: list[dict[int, int]] = []  # of each owner: the segment that begins at a position
    paths: list[tuple[int, ...]] = []
    for number, parts in enumerate(made_of):
        path = [
            segment for owner, first, end in parts[:-1] for begin, segment in at[owner].items() if first <= begin < end
        ]
        at.append({})
        for first, end in pairwise(sorted(cuts[number])):
            start = segments[-1].start + segments[-1].length if segments else 0
            at[number][first] = len(segments)
            segments.append(Segment(start, end - first, path[-1] if path else -1, first))
            path.append(at[number][first])
        paths.append(tuple(path))
    return Tree(tuple(segments), tuple(paths))


def common_prefix(one: Rendered, other: Rendered) -> int:
    """Return how many tokens two documents can share: those they begin with, but for the last token of either."""
    return _common(one.ids, other.ids)


def _common(one: npt.NDArray[np.int32], other: npt.NDArray[np.int32]) -> int:
    return min(_alike(one, other), len(one) - 1, len(other) - 1)


def _alike(one: npt.NDArray[np.int32], other: npt.NDArray[np.int32]) -> int:
    """Return how many tokens two arrays begin with in common."""
    most = min(len(one), len(other))
    differing = np.flatnonzero(one[:most] != other[:most])
    return int(differing[0]) if len(differing) else most


class Prefix(NamedTuple):
    """The first `tokens` tokens of document `like`. Its documents are `few` where they fill no more than some packs."""

    like: int
    tokens: int
    few: bool


_Name: TypeAlias = tuple[Prefix, int]


@dataclass(frozen=True)
class SharedPrefixes:
    """Which documents are worth putting side by side, for packs of `pack_tokens`.

    `families[d]` are the prefixes that document d shares with others, the shortest first; none for a document that shares nothing
    worth it. Those of many documents come before those of few.
    """

    families: tuple[tuple[Prefix, ...], ...]
    pack_tokens: int

    def __bool__(self) -> bool:
        return any(self.families)

    def most_saved_tokens(self, order: Indices) -> int:
        """Return a bound on the tokens that the documents of an order save together: each all that it shares with any other."""
        deepest = np.fromiter((family[-1].tokens if family else 0 for family in self.families), dtype=np.int64)
        return int(deepest[order].sum())

    def arranged(
        self, order: Indices, lengths: Indices, *, most_documents: int | None = None
    ) -> tuple[Indices, Indices]:
        """Put documents of an order that share a prefix side by side, where the first of them stood.

        Those of a prefix that few share come together, but not more than `most_documents`, so that no step need be made of one
        prompt. Of a prefix that many share, those come together that stand next in the order, to fill a pack: else an epoch would
        have all of them at once. A document that occurs again has other neighbours then, because whoever asked for it
        twice wants it at two times.

        Shapes: order [M] documents, lengths [M] their tokens; returns the new order [M] and the tokens [M] that each shares with
        the one before it.
        """
        names = self._names(order)
        length_of = lengths.tolist()
        most = most_documents or len(order)
        groups: list[list[int]] = []  # of places in the order
        filling: dict[_Name, tuple[list[int], int]] = {}  # the group that takes the next of many, and its tokens
        for block in self._blocks(names, most):
            many = next((name for name in reversed(names[block[0]]) if not name[0].few), None)
            tokens = sum(length_of[place] for place in block) - sum(self._shared(names, block))
            if many is None:
                groups.append(block)
                continue
            group, filled = filling.get(many, ([], 0))
            joined = filled + tokens - many[0].tokens
            if group and joined <= self.pack_tokens and len(group) + len(block) <= most:
                group += block
                filling[many] = group, joined
            else:
                groups.append(block)
                filling[many] = block, tokens
        groups.sort(key=min)
        arranged = np.asarray([place for group in groups for place in group], dtype=np.int64)
        shared = np.asarray([tokens for group in groups for tokens in self._shared(names, group)], dtype=np.int64)
        return order[arranged], shared

    def _names(self, order: Indices) -> list[tuple[_Name, ...]]:
        """Return the prefixes of the document at each place, told apart by how many times it came before."""
        times: Counter[int] = Counter()
        names = []
        for document in order.tolist():
            names.append(tuple((prefix, times[document]) for prefix in self.families[document]))
            times[document] += 1
        return names

    def _blocks(self, names: Sequence[tuple[_Name, ...]], most_documents: int) -> list[list[int]]:
        """Return the places of documents that a prefix of few brings together, by the first place of each block.

        Prefixes inside prefixes stand side by side in it.
        """
        first: dict[_Name, int] = {}
        keys = [
            (*(first.setdefault(name, place) for name in own if name[0].few), place) for place, own in enumerate(names)
        ]
        sorted_places = sorted(range(len(names)), key=keys.__getitem__)
        blocks = []
        for _, block in groupby(sorted_places, key=lambda place: keys[place][0]):
            places = list(block)
            blocks += [places[start : start + most_documents] for start in range(0, len(places), most_documents)]
        return sorted(blocks, key=min)

    def _shared(self, names: Sequence[tuple[_Name, ...]], places: Sequence[int]) -> list[int]:
        """Return the tokens that the document at each of these places shares with the one before, none for the first."""
        shared = [0]
        for one, other in pairwise(places):
            alike = [a[0].tokens for a, b in zip(names[one], names[other], strict=False) if a == b]
            shared.append(alike[-1] if alike else 0)
        return shared


def find_shared_prefixes(documents: Sequence[Rendered], pack_tokens: int) -> SharedPrefixes:
    """Find the documents that begin alike, for far enough to be worth it, in packs of `pack_tokens`.

    Documents of one prompt are few, and share most of what they are. Where very many share a prefix, as the instructions of a
    task, only a long one is worth it: packs are then made of them alone.
    """
    lengths, ids = lengths_of(documents), ids_of(documents)
    families: list[list[Prefix]] = [[] for _ in ids]
    for run in _that_begin_alike(ids, lengths):
        common = [_common(ids[a], ids[b]) for a, b in pairwise(run)]
        for first, end, tokens, few in _worth_it(common, lengths[run], pack_tokens):
            prefix = Prefix(run[first], tokens, few)
            for member in run[first:end]:
                families[member].append(prefix)
    return SharedPrefixes(tuple(map(tuple, families)), pack_tokens)


def _that_begin_alike(ids: Sequence[npt.NDArray[np.int32]], lengths: Indices) -> Iterator[list[int]]:
    """Yield groups of documents with the same first tokens, sorted by their tokens, so that the most alike are neighbours."""
    long_enough = np.flatnonzero(lengths > LEAST_SHARED_TOKENS).tolist()
    by_beginning: dict[bytes, list[int]] = {}
    for number in long_enough:
        by_beginning.setdefault(ids[number][:LEAST_SHARED_TOKENS].tobytes(), []).append(number)
    for group in by_beginning.values():
        if len(group) > 1:
            yield _sorted_by_tokens(ids, group)


def _sorted_by_tokens(ids: Sequence[npt.NDArray[np.int32]], group: list[int]) -> list[int]:
    """Return a group of documents in the order of their tokens, looking at few of them at a time."""
    found: list[int] = []
    unsorted = [(group, 0)]  # documents that agree up to an offset; the last are the next in order
    while unsorted:
        members, offset = unsorted.pop()
        one = ids[members[0]]
        if len(members) > 1:
            offset += min(_alike(one[offset:], ids[number][offset:]) for number in members[1:])
        if len(members) == 1 or all(len(ids[number]) == offset for number in members):
            found += members
            continue
        windows = {number: ids[number][offset : offset + SORTED_TOKENS] for number in members}
        # Big-endian bytes sort as the tokens do.
        keys = {number: window.astype(">u4").tobytes() for number, window in windows.items()}
        runs = [list(run) for _, run in groupby(sorted(members, key=keys.__getitem__), key=keys.__getitem__)]
        unsorted += [(run, offset) for run in reversed(runs)]
    return found


def _worth_it(common: Sequence[int], lengths: Indices, pack_tokens: int) -> Iterator[tuple[int, int, int, bool]]:
    """Yield (first, end, tokens, few) of the runs of sorted documents that share a prefix worth a branch, wider before narrower.

    `common[i]` are the tokens that documents i and i + 1 share.
    """
    until, shared_until = (np.concatenate([[0], np.cumsum(numbers)]) for numbers in (lengths, common))
    around: list[
        tuple[int, int, bool]
    ] = []  # of the runs chosen around this one: end, tokens, and whether they are few
    for first, end, tokens in _nested_runs(common):
        while around and around[-1][0] <= first:
            around.pop()
        _, known, together = around[-1] if around else (0, 0, False)
        total = until[end] - until[first]
        few = bool(total - (shared_until[end - 1] - shared_until[first]) <= FEW_PACKS * pack_tokens)
        part = LEAST_SHARED_PART if few else LEAST_SHARED_PART_OF_MANY
        least = 0.0 if together else part * total / (end - first)
        if tokens - known >= max(LEAST_SHARED_TOKENS, least):
            around.append((end, tokens, few))
            yield first, end, tokens, few


def _nested_runs(common: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return (first, end, tokens) of every largest run of documents that share that many tokens; wider before narrower.

    Example:
        >>> _nested_runs([3, 5, 0, 4])
        [(0, 3, 3), (1, 3, 5), (3, 5, 4)]
    """
    found = []
    stack: list[tuple[int, int]] = []  # first document and shared tokens of the runs that are still open
    for number, tokens in enumerate([*common, 0]):
        first = number
        while stack and stack[-1][1] > tokens:
            first, longer = stack.pop()
            found.append((first, number + 1, longer))
        if tokens and (not stack or stack[-1][1] < tokens):
            stack.append((first, tokens))
    return sorted(found, key=lambda run: (run[0], -run[1]))
