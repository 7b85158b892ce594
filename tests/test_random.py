"""Random states: every kind accepted, streams continued, nothing global touched."""

import numpy as np
import pytest
import torch

from sbi_flows import _random
from sbi_flows._random import numpy_generator, rand, randn, seed_from, torch_generator
from tests.repeatable import fresh_seed


def test_integers_are_their_own_seed():
    assert seed_from(7) == seed_from(np.int64(7)) == 7
    assert seed_from(2**63 - 1) == 2**63 - 1


@pytest.mark.parametrize(
    "make",
    [np.random.default_rng, np.random.RandomState, lambda seed: torch.Generator().manual_seed(seed)],
    ids=["numpy", "legacy", "torch"],
)
def test_generators_give_their_next_draw(make):
    one, two = make(3), make(3)
    first, second = seed_from(one), seed_from(one)
    assert first == seed_from(two)
    assert first != second
    assert 0 <= first < 2**63


def test_none_is_fresh(monkeypatch):
    monkeypatch.setattr(_random, "_fresh_seed", fresh_seed)
    assert seed_from(None) != seed_from(None)
    assert 0 <= seed_from(None) < 2**63


@pytest.mark.parametrize("wrong", [-1, 1.5, "0", (1, 2)])
def test_anything_else_is_refused(wrong):
    with pytest.raises(ValueError, match="non-negative int, a numpy or torch generator, or None"):
        seed_from(wrong)


def test_a_generator_passes_through():
    torch_one, numpy_one = torch.Generator().manual_seed(0), np.random.default_rng(0)
    assert torch_generator(torch_one) is torch_one
    assert numpy_generator(numpy_one) is numpy_one


def test_seeds_repeat_across_the_two_libraries():
    assert torch.equal(torch.rand(3, generator=torch_generator(5)), torch.rand(3, generator=torch_generator(5)))
    assert np.array_equal(numpy_generator(5).random(3), numpy_generator(5).random(3))
    one, two = (numpy_generator(torch.Generator().manual_seed(1)) for _ in range(2))
    assert one.random() == two.random()


def test_an_integer_seeds_streams_of_our_own():
    """Parameters that a user drew with the same seed must not be what is drawn here: 20 equal numbers do not occur by chance."""
    theirs = torch.rand(20, generator=torch.Generator().manual_seed(0))
    assert not (torch.rand(20, generator=torch_generator(0)) == theirs).any()
    assert not (numpy_generator(0).random(20) == np.random.default_rng(0).random(20)).any()


def test_draws_have_the_shape_and_type_asked_for():
    generator = torch_generator(0)
    x = randn((4, 2), generator, dtype=torch.float64)
    u = rand((1000,), generator, dtype=torch.float64, device="cpu")
    assert x.shape == (4, 2)
    assert x.dtype == u.dtype == torch.float64
    assert ((u >= 0) & (u < 1)).all()
    assert randn((2,), None).device.type == "cpu"


def test_nothing_global_moves():
    before_torch, before_numpy = torch.get_rng_state().clone(), np.random.get_state()[1].copy()  # noqa: NPY002
    generator = torch_generator(None)
    randn((10,), generator)
    rand((10,), generator)
    numpy_generator(None).random(10)
    seed_from(torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before_torch)
    assert np.array_equal(np.random.get_state()[1], before_numpy)  # noqa: NPY002
