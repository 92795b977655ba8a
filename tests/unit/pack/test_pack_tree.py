"""Trees of documents hold each shared token once, and each document whole."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sample_documents import document
from tutelage.chat.rendered import Rendered
from tutelage.pack import tree
from tutelage.pack.batch import pack_batch
from tutelage.pack.tree import Segment, common_prefix, find_shared_prefixes, grow_tree


def documents_of(*rows: Sequence[int]) -> list[Rendered]:
    return [document(row, [1.0] * len(row), name=str(number)) for number, row in enumerate(rows)]


def rows_of(prefix: int, *, count: int, own: int, seed: int, before: Sequence[int] = ()) -> list[list[int]]:
    """Return `count` rows with a random prefix after `before`, and random tokens of their own."""
    random = np.random.default_rng(seed)
    start = [*before, *random.integers(3, 300, prefix).tolist()]
    return [[*start, *random.integers(3, 300, own).tolist()] for _ in range(count)]


def families(documents: Sequence[Rendered], pack_tokens: int = 1000) -> list[list[int]]:
    """Return the lengths of the prefixes that each document shares."""
    return [
        [prefix.tokens for prefix in prefixes] for prefixes in find_shared_prefixes(documents, pack_tokens).families
    ]


def test_a_tree_is_cut_where_a_document_leaves_the_one_before() -> None:
    tree = grow_tree([5, 6, 4], [0, 3, 2])
    assert tree.segments == (
        Segment(start=0, length=2, parent=-1, position=0),
        Segment(start=2, length=1, parent=0, position=2),
        Segment(start=3, length=2, parent=1, position=3),
        Segment(start=5, length=3, parent=1, position=3),
        Segment(start=8, length=2, parent=0, position=2),
    )
    assert tree.paths == ((0, 1, 2), (0, 1, 3), (0, 4))
    assert tree.places(tree.paths[1]).tolist() == [0, 1, 2, 5, 6, 7]
    assert tree.path_to(3) == [0, 1, 3]
    assert tree.longest_path == 6


def test_short_siblings_behind_a_long_path_are_computed_together() -> None:
    assert grow_tree([13, 14, 15, 13], [0, 12, 12, 12]).siblings() == [[0], [1, 2], [3], [4]]
    assert grow_tree([5, 6, 4], [0, 3, 2]).siblings() == [[0], [1], [2], [3], [4]]
    assert grow_tree([1, 1], [0, 0]).siblings() == [[0], [1]]


@pytest.mark.parametrize("shared", [(1, 0), (0, 4), (0, 3), (0, -1)])
def test_a_document_keeps_its_last_token_for_itself(shared: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="cannot share"):
        grow_tree([4, 3], shared)


def test_tokens_that_differ_are_never_shared() -> None:
    with pytest.raises(ValueError, match="do not share their first 2 tokens"):
        pack_batch(documents_of([5, 6, 7], [5, 8, 7]), shared=(0, 2))


def test_a_batch_holds_shared_tokens_once_and_every_loss_of_every_document() -> None:
    one = document([5, 6, 7, 8], [0, 0.5, 0, 1], name="one", source="a")
    other = document([5, 6, 9, 3, 4], [0, 2, 1, 0, 1], name="other", source="b")
    batch = pack_batch([one, other], shared=(0, 2))
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 3, 4]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 3, 4]]
    assert batch.supervised.tolist() == [0, 2, 0, 1, 5]
    assert batch.supervised_targets.tolist() == [6, 8, 6, 9, 4]
    assert batch.supervised_weights.tolist() == [0.5, 1, 2, 1, 1]
    assert batch.supervised_document.tolist() == [0, 0, 1, 1, 1]
    assert (batch.lengths, batch.stream_lengths, batch.num_tokens) == ((4, 5), (2, 2, 3), 7)
    assert batch.cu_seqlens.tolist() == [0, 2, 4, 7]
    assert batch.path_places is not None and batch.cu_pathlens is not None
    assert batch.path_places.tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 4, 5, 6]
    assert batch.cu_pathlens.tolist() == [0, 2, 6, 11]


def test_documents_that_share_nothing_make_the_batch_that_they_always_made() -> None:
    batch = pack_batch(documents_of([5, 6], [5, 6, 7]), shared=(0, 0))
    assert batch.tree is None and batch.path_places is None
    assert batch.num_tokens == 5


def test_the_last_token_of_either_document_is_not_shared() -> None:
    same, longer = documents_of([5, 6, 7], [5, 6, 7, 8])
    assert common_prefix(same, same) == 2
    assert common_prefix(same, longer) == 2
    assert common_prefix(*documents_of([5], [5])) == 0


@settings(max_examples=200)
@given(rows=st.lists(st.lists(st.integers(3, 4), min_size=1, max_size=9), min_size=1, max_size=8), data=st.data())
def test_any_tree_gives_back_every_document(rows: list[list[int]], data: st.DataObject) -> None:
    """In any order and with any part of what neighbours share, a document's path spells it, in order of positions."""
    documents = documents_of(*rows)
    shared = [0, *(data.draw(st.integers(0, common_prefix(one, other))) for one, other in pairwise(documents))]
    batch = pack_batch(documents, shared)
    assert batch.num_tokens == sum(map(len, rows)) - sum(shared)
    for number, row in enumerate(rows):
        places = batch.places(number)
        assert batch.input_ids[0, places].tolist() == row
        assert batch.position_ids[0, places].tolist() == list(range(len(row)))
        own = batch.supervised_document == number
        assert batch.supervised[own].tolist() == places[:-1].tolist()
        assert batch.supervised_targets[own].tolist() == row[1:]


def test_answers_to_one_prompt_are_found() -> None:
    rows = [
        *rows_of(40, count=3, own=20, seed=0),
        *rows_of(40, count=2, own=20, seed=1),
        *rows_of(60, count=1, own=5, seed=2),
    ]
    assert families(documents_of(*rows)) == [[40], [40], [40], [40], [40], []]


def test_prefixes_inside_prefixes_are_found() -> None:
    turn_1 = rows_of(100, count=1, own=0, seed=0)[0]
    turn_2 = rows_of(50, count=1, own=0, seed=1, before=turn_1)[0]
    turns = [turn_1, turn_2, *rows_of(50, count=1, own=0, seed=2, before=turn_2)]
    assert families(documents_of(*turns)) == [[99], [99, 149], [99, 149]]


@settings(max_examples=100)
@given(rows=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=2, max_size=12))
def test_documents_are_sorted_by_their_tokens_however_long_they_agree(rows: list[list[int]]) -> None:
    """Blocks of 30 tokens: documents agree far beyond what sorting looks at in one go, and some are the beginning of others."""
    documents = documents_of(*[[300 * block + 3 for block in row for _ in range(30)] for row in rows])
    found = tree._sorted_by_tokens([document.ids for document in documents], list(range(len(rows))))
    assert sorted(found) == list(range(len(rows)))
    assert [rows[number] for number in found] == sorted(rows)


def test_equal_documents_share_all_but_their_last_token() -> None:
    row = rows_of(30, count=1, own=0, seed=0)[0]
    assert families(documents_of(row, row)) == [[29], [29]]


@pytest.mark.parametrize(
    ("prefix", "own", "found"), [(15, 10, False), (16, 10, True), (30, 100, False), (40, 100, True)]
)
def test_a_short_prefix_is_not_worth_it(prefix: int, own: int, found: bool) -> None:
    assert families(documents_of(*rows_of(prefix, count=2, own=own, seed=0))) == [[prefix] if found else []] * 2


@pytest.mark.parametrize(("pack_tokens", "found"), [(200, True), (100, False)])
def test_instructions_that_many_documents_share_do_not_bring_them_together(pack_tokens: int, found: bool) -> None:
    """A third of each document is shared: enough for the few that fill some packs, not where packs would be of one kind."""
    rows = rows_of(40, count=8, own=80, seed=0)
    assert families(documents_of(*rows), pack_tokens) == [[40] if found else []] * 8


def test_more_answers_than_a_pack_holds_still_share_their_long_prompt() -> None:
    assert families(documents_of(*rows_of(100, count=50, own=50, seed=0)), 500) == [[100]] * 50


def test_an_order_brings_documents_of_a_prefix_together_where_the_first_of_them_stood() -> None:
    documents = documents_of(*rows_of(40, count=2, own=20, seed=0), *rows_of(40, count=2, own=20, seed=1))
    shared = find_shared_prefixes(documents, 1000)
    arranged, tokens = shared.arranged(np.array([3, 0, 2, 1]), np.full(4, 60))
    assert arranged.tolist() == [3, 2, 0, 1]
    assert tokens.tolist() == [0, 40, 0, 40]


def test_a_prompt_gives_no_more_documents_than_asked_to_one_place() -> None:
    rows = [*rows_of(40, count=5, own=20, seed=0), *rows_of(40, count=5, own=20, seed=1)]
    order = np.array([0, 5, 1, 6, 2, 7, 3, 8, 4, 9])
    arranged, tokens = find_shared_prefixes(documents_of(*rows), 1000).arranged(
        order, np.full(10, 60), most_documents=2
    )
    assert arranged.tolist() == [0, 1, 5, 6, 2, 3, 7, 8, 4, 9]
    assert tokens.tolist() == [0, 40, 0, 40, 0, 40, 0, 40, 0, 0]


def test_what_very_many_documents_share_brings_together_only_those_that_come_next() -> None:
    """Else the start of an epoch would have all of them, and its end none."""
    many = rows_of(40, count=60, own=20, seed=0)
    documents = documents_of(*many, *rows_of(0, count=60, own=60, seed=1))
    order = np.random.default_rng(0).permutation(120)
    arranged, tokens = find_shared_prefixes(documents, 200).arranged(order, np.full(120, 60))
    assert (tokens == 40).sum() == 60 - 8  # a pack holds 40 + 8 * 20
    early = set(arranged[:60].tolist()) & set(range(60))
    assert 20 <= len(early) <= 40
    of_one_pack = [np.flatnonzero(order == number)[0] for number in arranged[arranged < 60][:8]]
    assert max(of_one_pack) < 40


def test_answers_stay_together_within_what_very_many_share() -> None:
    system = rows_of(60, count=1, own=0, seed=0)[0]
    rows = [row for seed in range(1, 31) for row in rows_of(30, count=3, own=10, seed=seed, before=system)]
    documents = documents_of(*rows)
    prefixes = find_shared_prefixes(documents, 300)
    assert [(prefix.tokens, prefix.few) for prefix in prefixes.families[0]] == [(60, False), (90, True)]
    _, tokens = prefixes.arranged(np.random.default_rng(0).permutation(90), np.full(90, 100))
    assert (tokens == 90).sum() == 2 * 30
    assert (tokens == 60).sum() == 30 - 8  # each answer adds 10 tokens, each prompt 30 more: four prompts to a pack
    assert (tokens == 0).sum() == 8


def test_a_document_that_is_asked_for_twice_is_met_at_two_times() -> None:
    documents = documents_of(*rows_of(40, count=2, own=20, seed=0), *rows_of(40, count=1, own=20, seed=1))
    arranged, tokens = find_shared_prefixes(documents, 1000).arranged(np.array([0, 2, 0, 1, 1, 2]), np.full(6, 60))
    assert arranged.tolist() == [0, 1, 2, 0, 1, 2]
    assert tokens.tolist() == [0, 40, 0, 0, 40, 0]


@settings(max_examples=100)
@given(
    rows=st.lists(st.lists(st.sampled_from([0, 1]), min_size=1, max_size=4), min_size=1, max_size=9),
    shuffle=st.randoms(use_true_random=False),
    pack_tokens=st.sampled_from([20, 80, 200]),
    most_documents=st.sampled_from([None, 2, 3]),
)
def test_any_order_is_only_rearranged_and_neighbours_share_what_is_said(  # type: ignore[no-untyped-def]
    rows: list[list[int]], shuffle, pack_tokens: int, most_documents: int | None
) -> None:
    """Rows are made of blocks of 20 tokens, so that prefixes nest."""
    documents = documents_of(*[[3 + block for block in row for _ in range(20)] for row in rows])
    order = [number for number in range(len(rows)) for _ in range(shuffle.randint(0, 2))]
    shuffle.shuffle(order)
    places = np.array(order, dtype=np.int64)
    lengths = np.array([len(documents[number]) for number in order], dtype=np.int64)
    prefixes = find_shared_prefixes(documents, pack_tokens)
    arranged, tokens = prefixes.arranged(places, lengths, most_documents=most_documents)
    assert sorted(arranged.tolist()) == sorted(order)
    assert tokens.shape == arranged.shape
    if order:
        pack_batch([documents[number] for number in arranged], tokens.tolist())  # refuses what is not shared
