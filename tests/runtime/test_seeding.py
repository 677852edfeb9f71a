"""Derived seeds: fixed values, no collisions by concatenation, generators that agree with them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefopt.runtime.seeding import derive_seed, generator, numpy_generator


def test_value_is_the_top_63_bits_of_sha256():
    digest = hashlib.sha256(b"7\x1fpair_order\x1f2").hexdigest()
    assert derive_seed(7, "pair_order", 2) == int(digest[:16], 16) // 2


@pytest.mark.parametrize(
    ("arguments", "expected"), [((0, "pair_order"), 6385784086751303139), ((3, "sampling", 1, 2), 5299258574363045941)]
)
def test_values_never_change(arguments, expected):
    assert derive_seed(*arguments) == expected


@given(st.integers(-(2**70), 2**70), st.text(max_size=20), st.lists(st.integers(0, 2**40), max_size=3))
def test_range_and_repeatability(seed, purpose, counters):
    purpose = purpose.encode("utf-8", "replace").decode("utf-8")
    value = derive_seed(seed, purpose, *counters)
    assert 0 <= value < 2**63
    assert value == derive_seed(seed, purpose, *counters)


def test_every_argument_counts():
    values = {derive_seed(*key) for key in [(1, "a"), (2, "a"), (1, "b"), (1, "a", 0), (1, "a", 1), (1, "a", 0, 0)]}
    assert len(values) == 6
    assert derive_seed(1, "a", 11) != derive_seed(1, "a", 1, 1) != derive_seed(11, "a", 1)


def test_generators_are_fresh_and_leave_the_global_state_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = torch.rand(3, generator=generator(1, "noise", 4))
    assert torch.equal(first, torch.rand(3, generator=generator(1, "noise", 4)))
    assert not torch.equal(first, torch.rand(3, generator=generator(1, "noise", 5)))
    assert torch.equal(torch.get_rng_state(), before)
    draws = numpy_generator(1, "noise", 4).random(3)
    assert np.array_equal(draws, np.random.Generator(np.random.PCG64(derive_seed(1, "noise", 4))).random(3))
