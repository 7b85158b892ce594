"""``FlowSampler``: exact answers and choices."""

import math
import time

import numpy as np
import pytest
import torch

from sbi_flows import FlowSampler
from sbi_flows.distributions import BoxUniform, MultivariateNormal
from sbi_flows.flow_sampling.choice import FlowCosts, LocalPilot, after_training, wants_flow
from sbi_flows.flow_sampling.counting import Ledger
from sbi_flows.flow_sampling.latent import leaders
from sbi_flows.flow_sampling.modes import separated_modes
from sbi_flows.flow_sampling.report import ModeMasses
from sbi_flows.flow_sampling.rows import GROUPS, RowsByMode
from sbi_flows.flow_sampling.starts import from_prior
from sbi_flows.flow_sampling.walk import Walk
from sbi_flows.samplers import HMC, Mixed, RandomWalk
from sbi_flows.targets import from_dynesty, from_log_prob, posterior, unconstrained

LEVEL = 4.5  # standard errors: a false alarm in 1.5e5 comparisons


def normal(x):
    return -0.5 * x.square().sum(-1)


# --- Exact answers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["local", "mixed"])
def test_a_normal_in_a_box(method):
    prior = BoxUniform([-8.0] * 2, [8.0] * 2, names=["a", "b"])
    sampler = FlowSampler(normal, prior, n_effective=1000, method=method, random_state=0).fit()
    report = sampler.report_
    draws = sampler.chains_.samples.reshape(-1, 2)
    assert sampler.sample(100, random_state=1).shape == (100, 2)
    assert np.all(np.abs(draws.mean(0)) < LEVEL / np.sqrt(report.ess))
    # Of a normal, squares have twice the variance; their effective size is taken to be half that of the mean at least.
    assert np.all(np.abs(draws.var(0) - 1) < LEVEL * np.sqrt(2 / (0.5 * report.ess)))
    assert report.reliability.ok, report
    found = sampler.evidence()
    assert abs(found.log_z - math.log(2 * math.pi / 256)) < LEVEL * found.log_z_err
    assert sampler.log_prob(np.zeros((1, 2)))[0] == pytest.approx(-math.log(256) - found.log_z)
    assert sampler.report_.evaluations["evidence"] > 0
    assert (report.method == "local") == np.isnan(report.flow_acceptance)


def funnel(x):
    s, rest = x[:, 0], x[:, 1:]
    return -0.5 * s.square() - 0.5 * (rest.square().sum(-1) * torch.exp(-s) + (x.shape[1] - 1) * s)


def test_the_latent_space_of_a_flow():
    """A funnel of ten columns: the flow finds what leads it, and the chains forget sooner behind it."""
    sampler = FlowSampler(target=from_log_prob(funnel, 10), n_effective=1000, n_chains=64, method="latent", random_state=0)
    sampler.fit(np.random.default_rng(0).normal(size=(64, 10)))
    report = sampler.report_
    assert report.method == "latent" and "led by x0" in repr(report), report
    assert not sampler.chains_.stats["divergent"].any()
    s = sampler.chains_.samples[..., 0].ravel()
    assert abs(s.mean()) < LEVEL / np.sqrt(report.ess)
    # The effective size of squares is taken to be half that of the mean at least.
    assert abs(s.var() - 1) < LEVEL * np.sqrt(2 / (0.5 * report.ess))


def test_the_evidence_of_a_unit_cube():
    """dynesty's pair is sampled in its cube: ln Z = ln(2 pi / 100), to 4.5 of its errors."""
    target = from_dynesty(lambda u: 10 * u - 5, lambda theta: -0.5 * (theta**2).sum(-1), 2, vectorized=True)
    sampler = FlowSampler(target=target, n_effective=500, method="local", random_state=0).fit()
    found = sampler.evidence()
    assert abs(found.log_z - math.log(2 * math.pi / 100)) < LEVEL * found.log_z_err
    assert sampler.log_prob([[0.5, 0.5]])[0] == pytest.approx(-found.log_z)
    assert abs(sampler.chains_.samples.std() - 1) < 0.2


def test_masses_of_separated_modes():
    # Two bumps 40 widths apart with masses .7 and .3, in four columns where a random walk's jumps rarely cross.
    centre = torch.zeros(2, 4, dtype=torch.float64)
    centre[0, 0], centre[1, 0] = 4.0, -4.0
    log_mass = torch.tensor([0.7, 0.3], dtype=torch.float64).log()

    def likelihood(x):
        return torch.logsumexp(log_mass - 0.5 * torch.cdist(x / 0.2, centre / 0.2).square(), dim=-1)

    sampler = FlowSampler(likelihood, BoxUniform([-6.0] * 4, [6.0] * 4), n_effective=1000, method="mixed", random_state=0).fit()
    mass = float((sampler.chains_.samples[..., 0] > 0).mean())
    assert abs(mass - 0.7) < LEVEL * math.sqrt(0.21 / (0.3 * sampler.report_.ess)), sampler.report_


def test_a_mode_that_particles_lose_on_their_way_from_the_prior_is_found():
    """Four modes in 64 columns: with this seed none of a hundred annealed particles arrives in the one of mass .2; heated chains do."""
    d, log_mass = 64, torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
    prior = MultivariateNormal(np.zeros(d), 36 * np.eye(d))
    corners = torch.tensor([[5.0, 5.0], [5.0, -5.0], [-5.0, 5.0], [-5.0, -5.0]], dtype=torch.float64)

    def parts(x):
        away = torch.cdist(x[:, :2], corners).square() + x[:, 2:].square().sum(-1, keepdim=True)
        return log_mass - 0.5 * away - 0.5 * d * math.log(2 * math.pi)

    def likelihood(x):
        return torch.logsumexp(parts(x), dim=-1) - prior.log_prob(x)

    sampler = FlowSampler(likelihood, prior, n_effective=2000, random_state=0).fit()
    masses = torch.softmax(parts(torch.from_numpy(sampler.chains_.samples.reshape(-1, d))), -1).mean(0)
    error = torch.sqrt(log_mass.exp() * (1 - log_mass.exp()) / (0.3 * sampler.report_.ess))
    assert sampler.report_.reliability.ok and ((masses - log_mass.exp()).abs() < LEVEL * error).all(), (masses, sampler.report_)


@pytest.mark.parametrize("seed", [2, 4])
def test_drifting_particles_lose_no_mode_on_their_way(seed):
    """Modes of .9 and .1, as wide and with as much prior each, in 30 columns: these seeds lost one, and the result said ok.

    Sixteen chains come by themselves, each into either half of the prior: all into one by chance in 3e-5 of cases.
    """
    def likelihood(x):
        return torch.logaddexp(math.log(0.9) + normal((x - 2) / 0.3), math.log(0.1) + normal((x + 2) / 0.3))

    target = posterior(likelihood, BoxUniform([-5.0] * 30, [5.0] * 30))
    start = from_prior(target, 64, torch.Generator().manual_seed(seed), HMC(check=False, max_steps=128))
    assert start.shape == (64, 30) and 1 <= int((start.mean(1) < 0).sum()) <= 63


def test_bounded_and_circular_columns():
    target = from_log_prob(lambda x: x[:, 0] + 2 * torch.cos(x[:, 1] - 3.0), 2, support=[(0, 1), "circular"], names=["u", "phi"])
    sampler = FlowSampler(target=target, n_effective=1000, method="local", random_state=0).fit()
    u, phi = sampler.chains_.samples.reshape(-1, 2).T
    assert u.min() >= 0 and u.max() <= 1
    error = 1 / math.sqrt(12 * 0.5 * sampler.report_.ess)
    assert abs(u.mean() - 1 / (math.e - 1)) < LEVEL * error
    assert abs(np.cos(phi - 3.0).mean() - 0.697775) < LEVEL * error * 2  # I1(2) / I0(2)
    assert any("without a prior" in note for note in sampler.report_.reliability.notes)


def test_a_seed_repeats_a_run_and_everything_is_counted():
    calls = []

    def density(x):
        calls.append(len(x))
        return normal(x)

    target = from_log_prob(density, 2)
    first, second = (FlowSampler(target=target, n_effective=200, method="local", random_state=3).fit() for _ in range(2))
    assert np.array_equal(first.chains_.samples, second.chains_.samples)
    assert first.report_.n_evaluations + second.report_.n_evaluations == sum(calls)


# --- Modes and choice ------------------------------------------------------------------------------------------------------------


def test_clusters_that_chains_cross_between_are_one_mode():
    draws = torch.randn(64, 40, 2, generator=torch.Generator().manual_seed(0)).double()
    angles = torch.zeros(2, dtype=torch.bool)
    draws[:20, :, 0] += 12
    assert separated_modes(draws, angles).n == 2
    draws[:6, 20:, 0] -= 12
    assert separated_modes(draws, angles).n == 1


def test_a_flow_that_trains_badly_is_fallen_back_from():
    costs = FlowCosts(training=1.0, step=0.01, row=1e-5)
    apart = LocalPilot("HMC", 0.01, 10.0, 1000.0, 1e-6, n_modes=3)
    method, why, against = after_training(apart, costs, 0.001, 1999.0, 4000, 300)
    assert method == "local" and "trained badly" in why and "3 modes" in against[0]
    together = LocalPilot("HMC", 0.01, 10.0, 1000.0, 1e-6, n_modes=1)
    method, why, against = after_training(together, costs, 0.001, 1999.0, 4000, 300)
    assert method == "local" and "fell back" in why and not against


def test_a_flow_is_wanted_where_it_pays():
    costs = FlowCosts(training=2.0, step=0.01, row=1e-5)
    fast = LocalPilot("HMC", seconds_a_step=0.001, ess_a_step=50.0, rows_a_step=1000.0, row_seconds=1e-7, n_modes=1)
    slow = LocalPilot("HMC", seconds_a_step=0.1, ess_a_step=0.5, rows_a_step=1000.0, row_seconds=1e-4, n_modes=1)
    assert not wants_flow(fast, costs, 4000)[0]
    assert wants_flow(slow, costs, 4000)[0]
    assert "does not connect 2 modes" in wants_flow(LocalPilot("HMC", 0.001, 50.0, 1000.0, 1e-7, n_modes=2), costs, 4000)[1]


def test_a_wide_chain_among_narrow_ones_is_no_mode():
    """In more columns than there are chains some direction tells the noise of any chain's mean apart."""
    draws = torch.randn(64, 40, 100, generator=torch.Generator().manual_seed(0)).double()
    for t in range(1, 40):
        draws[:, t] = 0.7 * draws[:, t - 1] + math.sqrt(0.51) * draws[:, t]
    draws[0] *= 3
    angles = torch.zeros(100, dtype=torch.bool)
    assert separated_modes(draws, angles).n == 1
    draws[:8, :, 0] += 30
    assert separated_modes(draws, angles).n == 2


def test_leaders_set_the_spread_of_the_others():
    x = torch.randn(4000, 10, generator=torch.Generator().manual_seed(0)).double()
    x[:, :7] *= (x[:, 7:8] / 2).exp()
    assert leaders(x, None) == [7]
    assert leaders(x, [(-10.0, 10.0)] * 9 + ["circular"]) == []


def test_columns_that_are_led_alike_do_not_lead_each_other():
    """In a steep funnel every column tells much of the others, but nothing beyond what the leader tells."""
    x = torch.randn(2500, 30, generator=torch.Generator().manual_seed(0)).double()
    x[:, 0] *= 3
    x[:, 1:] *= (x[:, :1] / 2).exp()
    assert leaders(x, None) == [0]
    y = torch.randn(2500, 30, generator=torch.Generator().manual_seed(1)).double()
    y[:, 2:] = 2 * y[:, 1:2] + 0.5 * y[:, 2:] * y[:, :1].exp()
    assert leaders(y, None) == [0, 1]


def test_after_a_fall_back_the_chains_are_the_local_kernels(monkeypatch):
    """Also where rounds of training have run with flow proposals, which are exact but not what the report says."""
    monkeypatch.setattr("sbi_flows.flow_sampling.run.after_training", lambda *_, **__: ("local", "fell back", []))
    prior = BoxUniform([-9.0] * 2, [9.0] * 2)

    def four_wells(x):
        return -0.5 * ((x.abs() - 5) / 0.3).square().sum(-1)

    wells = FlowSampler(four_wells, prior, n_effective=400, kernel=HMC(), random_state=0).fit()
    assert wells.report_.method == "local" and "fell back" in wells.report_.reasons, wells.report_
    assert not [name for name in wells.chains_.stats if name.startswith("acceptance_")]
    labels = np.sign(wells.chains_.samples)
    assert (labels == labels[:, :1]).all()  # trajectories do not cross, whatever flow took the chains there


def test_a_local_kernel_slower_than_it_looked_gives_way_to_flows(monkeypatch):
    monkeypatch.setattr("sbi_flows.flow_sampling.run.disappoints", lambda *_: True)
    monkeypatch.setattr("sbi_flows.flow_sampling.choice._BRIEF", 60.0)  # the local kernel is chosen however busy the machine is
    sampler = FlowSampler(lambda x: -0.5 * x.square().sum(-1), BoxUniform([-9.0] * 2, [9.0] * 2), n_effective=9000, random_state=0).fit()
    report = sampler.report_
    assert any("flows take over" in reason for reason in report.reasons) and report.reliability.ok, report
    assert sampler.proposal_ is not None and len(sampler.proposal_.flows) == 1
    x = sampler.chains_.samples
    assert (np.abs(x.mean((0, 1))) < LEVEL / math.sqrt(report.ess)).all()
    assert sampler.evidence().log_z == pytest.approx(math.log(2 * math.pi / 324), abs=LEVEL * sampler.evidence().log_z_err)


@pytest.mark.parametrize("method, then", [("auto", "mixed"), ("local", "local"), ("mixed", "mixed")])
def test_flows_take_over_for_an_evidence(method, then):
    """Where the local kernel was chosen they may know more; where it was asked for, it stays."""
    box = BoxUniform([-9.0] * 2, [9.0] * 2)
    sampler = FlowSampler(lambda x: -0.5 * x.square().sum(-1), box, n_effective=300, method=method, random_state=0).fit()
    before = sampler.report_
    assert before.method == ("mixed" if method == "mixed" else "local")
    narrow = [note for note in before.reliability.notes if "narrow away from the bulk" in note]
    assert bool(narrow) is (before.method == "local")
    found = sampler.evidence()
    assert found.reliability.ok and abs(found.log_z - math.log(2 * math.pi / 324)) < LEVEL * found.log_z_err
    assert sampler.report_.method == then and sampler.report_.n_evaluations > before.n_evaluations


def test_draws_run_on_until_they_are_worth_what_was_asked_for():
    sampler = FlowSampler(target=from_log_prob(normal, 3), n_effective=500, method="local", random_state=0).fit()
    assert sampler.report_.ess >= 500
    for n in (1500, 4000):
        assert sampler.sample(n).shape == (n, 3) and sampler.report_.ess >= n


def test_modes_say_where_they_are():
    masses = ModeMasses(np.array([0.7, 0.3]), np.array([0.01, 0.01]), np.array([[1.0, 5.0], [1.1, -5.0]]), 1.0, ("a", "b"))
    assert str(masses) == "0.700 +- 0.010 about a = 1, b = 5; 0.300 +- 0.010 about a = 1.1, b = -5"
    many = ModeMasses(np.ones(2) / 2, np.ones(2), np.vstack([np.ones(9), np.ones(9) - 2 * (np.arange(9) == 7)]), 1.0, tuple("abcdefghi"))
    assert "h = 1" in many.places()[0] and "h = -1" in many.places()[1] and many.places()[0].count("=") == 4


def test_seconds_are_booked_once():
    ledger = Ledger()
    with ledger.purpose("draws"):
        time.sleep(0.02)
        with ledger.purpose("start"):
            time.sleep(0.05)
    assert ledger.seconds["start"] >= 0.05 and 0.02 <= ledger.seconds["draws"] < 0.05 + 0.5 * ledger.seconds["start"]


def test_a_mode_that_chains_leave_keeps_its_rows():
    """Of two clusters 20 apart; the second time all draws are in the first one."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(64, 20, 2, generator=generator).double()
    draws[:16] += 20
    modes = separated_modes(draws, torch.zeros(2, dtype=torch.bool))
    rows = RowsByMode(modes, lambda x: (x, torch.zeros(x.shape[:-1])))
    first = rows.take(draws)
    again = rows.take(draws[16:])
    assert len(rows) == modes.n == 2 and [part.shape[0] for part in first] == [GROUPS, GROUPS]
    far = next(k for k in range(2) if float(first[k].mean()) > 10)
    assert torch.equal(first[far], again[far]) and float(again[1 - far].mean()) < 1


def test_steps_are_halved_where_trajectories_diverge():
    """In a mixture too; what follows no trajectory keeps its state."""
    target = from_log_prob(normal, 3)
    kernel = Mixed([HMC(check=False), RandomWalk()])
    walk = Walk(kernel, unconstrained(target), torch.zeros(8, 3).double() + 0.1, torch.Generator().manual_seed(0))
    before, other = walk.state.parts[0].learned.step_size, walk.state.parts[1]
    walk.halve_steps()
    assert walk.state.parts[0].learned.step_size == 0.5 * before and walk.state.parts[1] is other
