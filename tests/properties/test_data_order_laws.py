"""Order is a pure function: permutations permute, epochs cover evenly, shares come out as asked."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.data.mixture import Mixture, MixtureSource
from tutelage.data.order import permutation

QUICK = settings(max_examples=60)
KEYS = st.lists(st.integers(-(2**70), 2**70), max_size=4)


@st.composite
def sources(draw: st.DrawFn, *, share: float | None = None, name: str = "a") -> MixtureSource:
    tokens = np.array(draw(st.lists(st.integers(1, 500), min_size=1, max_size=60)))
    supervised = np.maximum(1, tokens // draw(st.integers(1, 5)))
    weight = None if share is not None else draw(st.none() | st.floats(0.05, 4))
    return MixtureSource(name, len(tokens), tokens, supervised, weight=weight, share=share)


@QUICK
@given(st.integers(0, 300), KEYS)
def test_a_permutation_holds_every_position_once(count: int, keys: list[int]) -> None:
    assert sorted(permutation(count, *keys).tolist()) == list(range(count))
    assert permutation(count, *keys).tolist() == permutation(count, *keys).tolist()


@QUICK
@given(sources(name="a"), sources(name="b"), st.integers(0, 2**63 - 1), st.integers(1, 5))
def test_no_document_of_a_source_is_seen_two_times_more_than_another(
    one: MixtureSource, other: MixtureSource, seed: int, epochs: int
) -> None:
    mixture = Mixture([one, other], seed)
    drawn = np.concatenate([mixture.epoch(epoch) for epoch in range(epochs)])
    seen = np.bincount(drawn, minlength=mixture.num_documents)
    for source, counts in ((one, seen[: one.num_documents]), (other, seen[one.num_documents :])):
        passes = epochs * (source.weight or 1.0)
        assert counts.max() - counts.min() <= 1
        assert abs(counts.sum() - passes * source.num_documents) <= 0.5 + 1e-6
        if source.weight is None:
            assert (counts == epochs).all()


@QUICK
@given(sources(), st.integers(0, 2**63 - 1), st.permutations(range(4)))
def test_an_epoch_does_not_depend_on_what_was_asked_before(source: MixtureSource, seed: int, asked: list[int]) -> None:
    used = Mixture([source], seed)
    in_any_order = {epoch: used.epoch(epoch).tolist() for epoch in asked}
    for epoch in range(4):
        assert Mixture([source], seed).epoch(epoch).tolist() == in_any_order[epoch]


@QUICK
@given(sources(name="chats"), st.data(), st.floats(0.02, 0.6), st.integers(0, 1000), st.integers(1, 4))
def test_a_share_comes_out_within_one_document(
    chats: MixtureSource, data: st.DataObject, share: float, seed: int, epochs: int
) -> None:
    replay = data.draw(sources(share=share, name="replay"))
    mixture = Mixture([chats, replay], seed)
    chats_share, replay_share = mixture.realised_shares(epochs)
    # The others' tokens are counted as the weights ask for them; whole documents may differ from that by one per epoch.
    passes = epochs * (chats.weight or 1.0)
    asked = passes * int(chats.supervised.sum()) * share / (1 - share)
    assert abs(replay_share.supervised - asked) <= replay.supervised.max() + 1e-6
    total = chats_share.supervised + replay_share.supervised
    assert replay_share.realised == (replay_share.supervised / total if total else 0.0)
    drawn = np.concatenate([mixture.epoch(epoch) for epoch in range(epochs)])
    supervised = np.concatenate([chats.supervised, replay.supervised])[drawn].sum()
    assert supervised == total
    assert len(drawn) == chats_share.documents + replay_share.documents
