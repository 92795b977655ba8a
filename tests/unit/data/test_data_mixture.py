"""What an epoch holds, for small mixtures that can be counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tutelage.data.mixture import Mixture, MixtureSource
from tutelage.errors import ConfigError


def source(name: str, tokens: list[int], supervised: list[int] | None = None, **settings: Any) -> MixtureSource:
    return MixtureSource(name, len(tokens), np.array(tokens), np.array(supervised or tokens), **settings)


def counts(mixture: Mixture, *epochs: int) -> list[int]:
    drawn = np.concatenate([mixture.epoch(epoch) for epoch in epochs])
    return np.bincount(drawn, minlength=mixture.num_documents).tolist()  # type: ignore[no-any-return]


def test_without_weights_each_document_comes_once_an_epoch() -> None:
    mixture = Mixture([source("a", [5] * 7), source("b", [1] * 3)])
    for epoch in range(4):
        assert counts(mixture, epoch) == [1] * 10


def test_epochs_differ_in_order_and_sources_are_shuffled_together() -> None:
    mixture = Mixture([source("a", [5] * 50), source("b", [1] * 50)])
    first, second = mixture.epoch(0), mixture.epoch(1)
    assert first.tolist() != second.tolist()
    in_first_half = int((first[:50] < 50).sum())
    assert 15 < in_first_half < 35


def test_seeds_differ_in_order() -> None:
    sources = [source("a", [5] * 50)]
    assert Mixture(sources, 1).epoch(0).tolist() != Mixture(sources, 2).epoch(0).tolist()


def test_a_whole_weight_repeats_every_document() -> None:
    assert counts(Mixture([source("a", [1] * 5, weight=3.0), source("b", [1])]), 0) == [3, 3, 3, 3, 3, 1]


def test_half_weight_shows_each_document_once_in_two_epochs() -> None:
    mixture = Mixture([source("a", [1] * 10, weight=0.5)])
    assert sorted(counts(mixture, 0)) == [0] * 5 + [1] * 5
    assert counts(mixture, 0, 1) == [1] * 10
    assert counts(mixture, 0) != counts(mixture, 2)


def test_an_uneven_weight_stays_even_over_epochs() -> None:
    mixture = Mixture([source("a", [1] * 7, weight=1.3)])
    for epochs in range(1, 12):
        seen = counts(mixture, *range(epochs))
        assert max(seen) - min(seen) <= 1
        assert sum(seen) == round(1.3 * epochs * 7)


def test_the_epochs_of_a_source_are_capped() -> None:
    mixture = Mixture([source("a", [1] * 10, epochs=1.5), source("b", [1] * 4)])
    assert counts(mixture, 0)[:10] == [1] * 10
    assert sum(counts(mixture, 1)[:10]) == 5
    assert sum(counts(mixture, 2)[:10]) == 0
    assert counts(mixture, 2)[10:] == [1] * 4


def test_a_share_is_counted_in_supervised_tokens() -> None:
    chats = source("chats", [100] * 90, [10] * 90)  # 900 supervised tokens
    replay = source("replay", [5] * 100, share=0.1)  # 100 of 1,000 tokens are 20 documents
    drawn = Mixture([chats, replay]).epoch(0)
    assert len(drawn) == 90 + 20
    chats_share, replay_share = Mixture([chats, replay]).realised_shares()
    assert (chats_share.supervised, replay_share.supervised) == (900, 100)
    assert (replay_share.asked, replay_share.realised, replay_share.passes) == (0.1, 0.1, 0.2)
    assert (chats_share.asked, chats_share.realised, chats_share.tokens) == (None, 0.9, 9000)


def test_a_share_moves_on_through_its_source_from_epoch_to_epoch() -> None:
    mixture = Mixture([source("chats", [10] * 90), source("replay", [5] * 100, share=0.1)])
    assert counts(mixture, *range(5))[90:] == [1] * 100


def test_a_small_source_with_a_large_share_is_repeated_evenly() -> None:
    mixture = Mixture([source("chats", [10] * 90), source("replay", [7, 3], share=0.1)])
    assert counts(mixture, 0)[90:] == [10, 10]
    (_, replay) = mixture.realised_shares()
    assert replay.passes == 10


def test_a_cap_wins_over_a_share_and_the_realised_share_says_so() -> None:
    mixture = Mixture([source("chats", [10] * 90), source("replay", [5] * 4, share=0.1, epochs=2)])
    assert counts(mixture, 0)[90:] == [2] * 4
    assert counts(mixture, 1)[90:] == [0] * 4
    assert mixture.realised_shares()[1].realised == 40 / 940


def test_shares_alone_end_the_epoch_where_the_first_source_is_used_up() -> None:
    mixture = Mixture([source("a", [10] * 30, share=0.75), source("b", [10] * 90, share=0.25)])
    seen = counts(mixture, 0)
    assert seen[:30] == [1] * 30
    assert sum(seen[30:]) == 10


def test_a_share_is_of_what_capped_sources_still_give() -> None:
    mixture = Mixture([source("chats", [10] * 90, epochs=1), source("replay", [5] * 100, share=0.1)])
    assert len(mixture.epoch(1)) == 0


def test_an_empty_source_adds_nothing() -> None:
    mixture = Mixture([source("none", []), source("a", [1] * 3)])
    assert counts(mixture, 0) == [1, 1, 1]
    assert Mixture([]).epoch(0).tolist() == []


@pytest.mark.parametrize(
    ("sources", "problem"),
    [
        ([source("a", [1], share=0.6), source("b", [1], share=0.6), source("c", [1])], "leaves nothing"),
        ([source("a", [1], share=0.6), source("b", [1], share=0.6)], "add up to 1.2"),
        ([source("a", [1], share=0.5)], "add up to 0.5"),
        ([MixtureSource("a", 1, np.array([3]), np.array([0]), share=0.5), source("b", [1])], "no token to train on"),
    ],
)
def test_shares_that_cannot_be_are_refused(sources: list[MixtureSource], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Mixture(sources)


def test_the_order_is_the_same_in_every_version() -> None:
    """Pinned: a run that is resumed under a newer version must see the same documents."""
    mixture = Mixture([source("a", [3] * 6), source("b", [2] * 4, share=0.2)], seed=7)
    assert [mixture.epoch(epoch).tolist() for epoch in range(2)] == [
        [0, 4, 9, 8, 1, 3, 5, 2],
        [6, 1, 6, 0, 4, 7, 5, 3, 2],
    ]
