"""Hashes and permutations are fixed functions, well mixed."""

from __future__ import annotations

import numpy as np

from tutelage.data.order import hash64, hash64_array, permutation


def test_hashes_are_the_same_in_every_version() -> None:
    """Pinned: the order of a resumed run and the held-out split of a data set hang on these."""
    assert hash64(0) == 10451216379200822465
    assert hash64(1, 2, 3) == 74078413316773926
    assert permutation(6, 1, 2).tolist() == [3, 4, 1, 2, 5, 0]


def test_the_finaliser_is_that_of_splitmix64() -> None:
    """The first output of SplitMix64 with seed 0, as published with its reference implementation."""
    assert hash64_array(counters=np.array([1], np.uint64)).tolist() == [0xE220A8397B1DCDAF]


def test_arrays_hash_as_numbers_do() -> None:
    counters = np.array([0, 1, 5, 2**63, 2**64 - 1], np.uint64)
    assert hash64_array(3, 4, counters=counters).tolist() == [hash64(3, 4, int(counter)) for counter in counters]


def test_negative_and_large_numbers_are_taken_modulo_2_to_the_64() -> None:
    assert hash64(-1) == hash64(2**64 - 1)
    assert hash64(2**64 + 5) == hash64(5)


def test_count_and_order_of_the_numbers_matter() -> None:
    values = {hash64(), hash64(0), hash64(0, 0), hash64(0, 1), hash64(1, 0), hash64(1)}
    assert len(values) == 6


def test_every_bit_of_the_input_flips_about_half_of_the_output() -> None:
    flips = [bin(hash64(12345, 678) ^ hash64(12345, 678 ^ (1 << bit))).count("1") for bit in range(64)]
    assert 28 < np.mean(flips) < 36
    assert min(flips) > 12


def test_positions_are_uniform() -> None:
    first = [int(permutation(10, seed)[0]) for seed in range(2000)]
    frequencies = np.bincount(first, minlength=10)
    assert frequencies.min() > 140
    assert frequencies.max() < 260


def test_permutations_of_other_keys_are_unrelated() -> None:
    left, right = permutation(1000, 0, 1), permutation(1000, 0, 2)
    assert (left == right).sum() < 10
