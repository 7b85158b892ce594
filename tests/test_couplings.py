"""Couplings of noise and data: optimal, blind to nothing, and of the right marginals."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.func import vmap

from sbi_flows.bijections.spline import wrap
from sbi_flows.flows import build, cnf
from sbi_flows.flows.continuous import COUPLING_NAMES
from sbi_flows.losses import COUPLINGS, Batch, flow_matching
from sbi_flows.losses.couplings import Ends, condition_weight, coupling_named, transport_cost

ASSIGNING = ("ot", "c2ot")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_optimal_transport_is_the_best_of_all_permutations():
    ends = Ends(normal(6, 2), normal(6, 2, seed=1))
    cost = transport_cost(ends)
    best = min(sum(cost[i, j] for j, i in enumerate(order)) for order in itertools.permutations(range(6)))
    matched = COUPLINGS["ot"](ends, torch.Generator())
    torch.testing.assert_close((matched.noise - ends.data).square().sum(), best, rtol=0, atol=1e-12)


def test_angles_are_matched_along_the_shorter_arc():
    angles = torch.tensor([True])
    noise = torch.tensor([[3.1], [0.0]])
    data = torch.tensor([[0.2], [-3.1]])
    matched = COUPLINGS["ot"](Ends(noise, data, angles=angles), torch.Generator())
    assert matched.noise[:, 0].tolist() == pytest.approx([0.0, 3.1])
    torch.testing.assert_close(transport_cost(Ends(noise, data, angles=angles)), wrap(noise - data.mT).square())


@pytest.mark.parametrize("name", ASSIGNING)
def test_noise_is_only_reordered(name):
    ends = Ends(normal(50, 3), normal(50, 3, seed=1), None if name == "ot" else normal(50, 2, seed=2))
    matched = COUPLINGS[name](ends, torch.Generator())
    assert matched.weights is None
    assert sorted(matched.noise[:, 0].tolist()) == sorted(ends.noise[:, 0].tolist())


def test_c2ot_keeps_noise_within_a_condition_that_repeats():
    label = (torch.arange(60) % 3)[:, None].double()
    noise = torch.cat([label, normal(60, 1)], dim=1)  # the first column tells where noise came from
    data = torch.cat([5 - 5 * label, normal(60, 1, seed=1)], dim=1)  # and would be swapped by what costs least
    matched = COUPLINGS["c2ot"](Ends(noise, data, label), torch.Generator()).noise
    assert torch.equal(matched[:, :1], label)
    before, after = ((rows - data)[:, 1].square().mean() for rows in (noise, matched))
    assert after < 0.5 * before
    with pytest.warns(UserWarning, match="does not see the context"):
        blind = COUPLINGS["ot"](Ends(noise, data, label), torch.Generator()).noise
    assert not torch.equal(blind[:, :1], label)


def test_c2ot_does_not_skew_the_noise_of_a_condition():
    """Data equal to their condition: blind transport makes noise a function of it, C2OT leaves some correlation only.

    Noise of 40 batches has a correlation known to 1/sqrt(40 * 256) = .01; the bounds are many such errors away.
    """
    correlation = {}
    for name in ("independent", "ot", "c2ot"):
        products = []
        for seed in range(40):
            condition = normal(256, 1, seed=seed)
            given = None if name == "ot" else condition
            matched = COUPLINGS[name](Ends(normal(256, 1, seed=1000 + seed), condition, given), torch.Generator()).noise
            products.append((matched * condition).mean() / (matched.std() * condition.std()))
        correlation[name] = float(torch.stack(products).mean())
    assert abs(correlation["independent"]) < 0.05  # five errors
    assert correlation["ot"] > 0.98
    assert correlation["c2ot"] < 0.3


@pytest.mark.parametrize("candidates", [0.003, 0.01, 0.1])
def test_condition_weight_leaves_the_share_of_candidates_it_is_asked_for(candidates):
    ends = Ends(normal(100, 2), normal(100, 2, seed=1))
    cost, apart = transport_cost(ends), torch.cdist(normal(100, 2, seed=2), normal(100, 2, seed=2)).square()
    w = condition_weight(cost, apart, candidates)
    off_diagonal = ~torch.eye(100, dtype=torch.bool)
    share = ((cost + w * apart < torch.diagonal(cost)[:, None]) & off_diagonal).double().mean()
    assert float(share) == pytest.approx(candidates, abs=2e-4)


def test_gibbs_weights_have_mean_one_for_every_row_of_data():
    """A mean of 200 000 weights at each of five points; false alarm below 1e-5 (five standard errors, ten means)."""
    n = 200_000
    for point in (torch.tensor([0.0, 0.0]), torch.tensor([1.0, -1.0]), torch.tensor([-1.5, 3.0]), torch.tensor([2.0, 0.5])):
        for angles in (None, torch.tensor([False, True])):
            noise = normal(n, 2, seed=3)
            if angles is not None:
                noise[:, 1] = (2 * torch.rand(n, generator=torch.Generator().manual_seed(4), dtype=torch.float64) - 1) * math.pi
            weights = COUPLINGS["gibbs"](Ends(noise, point.double().expand(n, -1), angles=angles), torch.Generator()).weights
            error = float(weights.std()) / math.sqrt(n)
            # The cap takes something off far rows; at these points it is below .01.
            assert float(weights.mean()) == pytest.approx(1, abs=5 * error + 0.01)


@pytest.mark.parametrize("d", [1, 4, 16])
def test_gibbs_weights_of_normal_data_have_the_stated_efficiency(d):
    weights = COUPLINGS["gibbs"](Ends(normal(200_000, d), normal(200_000, d, seed=1)), torch.Generator()).weights
    efficiency = float(weights.sum().square() / weights.square().sum()) / len(weights)
    assert efficiency == pytest.approx(0.5, abs=0.05)  # heavy-tailed weights: the error of their second moment is some percent
    assert float(weights.mean()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("name", ["independent", "c2ot", "gibbs"])
def test_members_under_vmap_get_what_they_would_get_alone(name):
    noise, data, context = normal(3, 32, 2), normal(32, 2, seed=1), normal(32, 1, seed=2)
    generator = torch.Generator()
    couple = COUPLINGS[name]

    def coupled(z):
        out = couple(Ends(z, data, context), generator)
        return out.noise if out.weights is None else out.noise * out.weights[:, None]

    together = vmap(coupled, randomness="different")(noise)
    torch.testing.assert_close(together, torch.stack([coupled(z) for z in noise]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["independent", "c2ot", "gibbs"])
def test_flow_matching_takes_couplings(name):
    flow = cnf(2, 1, hidden=(8, 8), support=["real", "circular"])
    batch = Batch(normal(32, 2).float(), normal(32, 1, seed=1).float())
    losses = flow_matching(flow, batch, torch.Generator().manual_seed(0), coupling=name)
    assert losses.shape == (32,)
    assert torch.isfinite(losses).all()
    same = flow_matching(flow, batch, torch.Generator().manual_seed(0), coupling=COUPLINGS[name])
    assert torch.equal(losses, same)


def test_a_flow_knows_its_coupling():
    batch = Batch(normal(32, 2).float(), normal(32, 1, seed=1).float())
    losses = {}
    for name in ("independent", "c2ot"):
        flow = cnf(2, 1, hidden=(8, 8), coupling=name, generator=torch.Generator().manual_seed(0))
        losses[name] = flow_matching(build(flow.spec, torch.Generator().manual_seed(0)), batch, torch.Generator().manual_seed(1))
        stated = flow_matching(flow, batch, torch.Generator().manual_seed(1), coupling=name)
        assert torch.equal(losses[name], stated)
    assert not torch.equal(losses["independent"], losses["c2ot"])
    assert set(COUPLING_NAMES) == set(COUPLINGS)
    with pytest.raises(ValueError, match="Expected coupling 'independent'"):
        cnf(2, coupling="best")
    with pytest.warns(UserWarning, match="does not see the context"):
        flow_matching(cnf(2, 1, hidden=(8, 8), coupling="ot"), batch, torch.Generator())


def test_one_row_and_bad_names():
    ends = Ends(normal(1, 2), normal(1, 2, seed=1), normal(1, 1))
    assert torch.equal(COUPLINGS["c2ot"](ends, torch.Generator()).noise, ends.noise)
    with pytest.raises(ValueError, match="Expected coupling 'independent', 'ot', 'c2ot', 'gibbs'; got 'sinkhorn'"):
        coupling_named("sinkhorn")
    with pytest.raises(ValueError, match="share of the pairs"):
        condition_weight(torch.zeros(2, 2), torch.ones(2, 2), 0.0)
