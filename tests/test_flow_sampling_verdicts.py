"""``FlowSampler``: verdicts and messages."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError

from sbi_flows import FlowSampler
from sbi_flows.distributions import BoxUniform
from sbi_flows.flow_sampling.choice import LocalPilot
from sbi_flows.flow_sampling.counting import CountedTarget, Ledger
from sbi_flows.flow_sampling.judgement import judged
from sbi_flows.flow_sampling.modes import separated_modes
from sbi_flows.flow_sampling.run import Run
from sbi_flows.flow_sampling.settings import Settings
from sbi_flows.flow_sampling.starts import Ascended
from sbi_flows.flow_sampling.walk import Drawn, Walk
from sbi_flows.samplers import HMC, RandomWalk, Stretch
from sbi_flows.targets import from_dynesty, from_log_prob, from_numpy, unconstrained


def normal(x):
    return -0.5 * x.square().sum(-1)


BOX = BoxUniform([-1.0] * 2, [1.0] * 2)


def raising(x):
    if (x[:, 0] > 0.5).any():
        raise KeyError("no table there")
    return normal(x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "both or neither"),
        ({"log_likelihood": normal}, "prior is missing"),
        ({"log_likelihood": normal, "prior": BOX, "target": from_log_prob(normal, 2)}, "both or neither"),
        ({"log_likelihood": lambda x: x.sum(), "prior": BOX}, "of shape"),
        ({"log_likelihood": lambda x: 0 * x[:, 0] / 0, "prior": BOX}, r"NaN or \+inf at all"),
        ({"log_likelihood": lambda x: 0 * x[:, 0] + math.inf, "prior": BOX}, r"NaN or \+inf at all"),
        ({"log_likelihood": raising, "prior": BOX}, "KeyError.*no table there.*first at x0="),
        ({"log_likelihood": lambda x: x[:, 0] * 0 - math.inf, "prior": BOX}, "likelihood above zero"),
        ({"log_likelihood": normal, "prior": BOX, "method": "best"}, "method"),
        ({"log_likelihood": normal, "prior": BOX, "n_effective": 0}, "n_effective"),
    ],
)
def test_bad_input_is_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        FlowSampler(**arguments, random_state=0).fit()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_holes_spoil_the_draws_and_the_evidence(value):
    """A sixth of the posterior cannot be computed: not ok, with the share; NaN and +inf alike."""
    prior = BoxUniform([-5.0] * 2, [5.0] * 2)
    likelihood = lambda x: torch.where(x[:, 0] > 1, value, normal(x))  # noqa: E731
    sampler = FlowSampler(likelihood, prior, n_effective=300, method="local", random_state=0).fit()
    for verdict in (sampler.report_.reliability, sampler.chains_.reliability, sampler.evidence().reliability):
        assert any("proposals (" in reason and "what lies there is missing" in reason for reason in verdict.reasons), verdict
    # 40 % of the prior, of 200 draws that were looked at: 80 +- 7.
    (note,) = [note for note in sampler.report_.reliability.notes if "looked at first" in note]
    assert 45 < int(note.split(" at ")[1].split(" of 200")[0]) < 115


def test_a_function_that_raises_somewhere_spoils_the_draws():
    def half(theta):
        if theta[0] > 1:
            raise RuntimeError("no table there")
        return -0.5 * theta @ theta

    prior = BoxUniform([-3.0] * 2, [3.0] * 2)
    with pytest.warns(UserWarning, match="no table there"):
        sampler = FlowSampler(from_numpy(half, vectorized=False), prior, n_effective=100, n_chains=20, method="local", random_state=0).fit()
    verdict = sampler.report_.reliability
    assert any("could not be computed" in reason for reason in verdict.reasons)
    (told,) = [note for note in verdict.notes if "the function raised" in note]
    assert f"of {sampler.report_.n_evaluations} points" in told


def test_fewer_draws_than_asked_for_are_told():
    prior = BoxUniform([-5.0] * 2, [5.0] * 2)
    sampler = FlowSampler(normal, prior, n_effective=2000, max_evaluations=1000, random_state=0).fit()
    (reason,) = [reason for reason in sampler.report_.reliability.reasons if "max_evaluations=1000" in reason]
    assert f"{sampler.report_.n_evaluations} evaluations were spent" in reason and "2000 were asked for" in reason
    assert sampler.chains_.samples.shape[1] >= 20


def test_draws_asked_for_beyond_the_evaluations_are_told():
    prior = BoxUniform([-5.0] * 2, [5.0] * 2)
    sampler = FlowSampler(normal, prior, n_effective=100, max_evaluations=1000, random_state=0).fit()
    n = sampler.chains_.samples.shape[:2]
    assert len(sampler.sample(100_000)) == 100_000 and sampler.chains_.samples.shape[:2] == n
    (reason,) = [reason for reason in sampler.report_.reliability.reasons if "100000 were asked for" in reason]
    assert f"there are {n[0] * n[1]} draws in all, sample(100000) repeats some" in reason and "max_evaluations=1000" in reason


def test_a_small_request_is_judged_as_strictly():
    """A hundred draws of a normal pass; of chains that start and stay at other places they do not."""
    sampler = FlowSampler(normal, BoxUniform([-5.0] * 2, [5.0] * 2), n_effective=100, method="local", random_state=0).fit()
    assert sampler.report_.reliability.ok, sampler.report_
    shifted = torch.randn(64, 40, 1, generator=torch.Generator().manual_seed(0)).double()
    shifted += torch.linspace(-1.0, 1.0, 64)[:, None, None]
    found = judged(drawn_run(from_log_prob(normal, 1), shifted))[1]
    assert any("chains disagree" in reason and "wanted 1.1" in reason for reason in found.reliability.reasons), found


def test_walkers_of_an_ensemble_are_called_so():
    target = from_log_prob(normal, 2)
    sampler = FlowSampler(target=target, n_effective=100, method="local", kernel=Stretch(), random_state=0)
    sampler.fit(np.random.default_rng(0).normal(size=(64, 2)))
    assert sampler.chains_.ensemble and any("walkers of one ensemble" in note for note in sampler.report_.reliability.notes)


def test_angles_are_judged_where_the_sampler_has_them():
    """Of an angle in degrees, sampled as a turn: half the chains stay about .25, half about .75."""
    turn = from_dynesty(lambda u: 360 * u, lambda theta: 0.0, 1, periodic=[0])
    noise = 0.03 * torch.randn(16, 100, 1, generator=torch.Generator().manual_seed(0)).double()
    apart = judged(drawn_run(turn, noise + torch.tensor([0.25, 0.75]).repeat(8)[:, None, None]))[1].reliability
    assert any("chains disagree" in reason for reason in apart.reasons), apart
    assert judged(drawn_run(turn, noise % 1))[1].reliability.ok


def test_draws_at_the_end_of_a_range_are_told():
    """ln x uniform for as far as numbers reach."""
    endless = from_log_prob(lambda x: -x[:, 0].log(), 1, names=["t"], support=(0, math.inf))
    draws = 90 * torch.rand(64, 40, 1, generator=torch.Generator().manual_seed(0)).double() - 45
    verdict = judged(drawn_run(endless, draws.exp()))[1].reliability
    assert any("draws of t lie at the end of its range" in reason for reason in verdict.reasons), verdict


def drawn_run(target, points):
    """A run of n_effective=100 that drew these ``points (chain, draw, d)``."""
    n_chains, n_draws, _ = points.shape
    counted, generator = CountedTarget(target, Ledger()), torch.Generator().manual_seed(0)
    run = Run(counted, Settings(100, n_chains, "local", None, 10**6), generator)
    start = torch.full_like(points[:, 0], 0.5)
    run.space = unconstrained(counted, start)
    run.walk = Walk(RandomWalk(), run.space, start, generator)
    run.modes = separated_modes(torch.zeros(4, 8, 1).double(), torch.zeros(1, dtype=torch.bool))
    run.pilot = SimpleNamespace(kernel=RandomWalk(), local=LocalPilot("RandomWalk", 0.01, 10.0, 1000.0, 1e-6, n_modes=1))
    position = run.space.from_user(points.flatten(0, 1)).view_as(points)
    stats = {"acceptance": np.full((n_chains, n_draws), 0.4)}
    run.records = [Drawn(position, torch.zeros(n_chains, n_draws).double(), stats, 0, n_draws, 0.01)]
    return run


def test_before_fit_and_what_is_no_kernel():
    for name in ("report_", "chains_", "proposal_"):
        with pytest.raises(NotFittedError, match="Call 'fit'"):
            getattr(FlowSampler(normal, BOX), name)
    assert not hasattr(FlowSampler(normal, BOX), "report_")
    with pytest.raises(TypeError, match=r"such as HMC\(\)"):
        FlowSampler(normal, BOX, kernel=HMC).fit()
    with pytest.raises(TypeError, match="from_log_prob"):
        FlowSampler(target=normal).fit()


def test_a_wrong_gradient_that_is_not_used_is_noted():
    wrong = from_numpy(lambda x: -0.5 * (x**2).sum(-1), grad=lambda x: x * np.r_[-1.0, -3.0])
    target = from_log_prob(wrong, 2, names=["mass", "spin"])
    settings = {"target": target, "n_effective": 100, "n_chains": 20, "method": "local", "random_state": 0}
    sampler = FlowSampler(**settings).fit(np.random.default_rng(0).normal(size=(20, 2)))
    (note,) = [note for note in sampler.report_.reliability.notes if "gradient" in note]
    assert "wrong in 'spin'" in note and "use no gradient" in note
    shape = from_log_prob(from_numpy(lambda x: -0.5 * (x**2).sum(-1), grad=lambda x: -x.sum(-1)), 2)
    with pytest.raises(ValueError, match=r"grad\(x\) of shape \(10, 2\), as x, one slope a column; got \(10,\)"):
        shape.log_prob_and_grad(torch.zeros(10, 2))
    with pytest.raises(ValueError, match=r"grad\(x\) of shape \(1, 2\)"):
        FlowSampler(target=shape, random_state=0).fit()


def test_bad_starts_are_told():
    target = from_log_prob(normal, 2, support=[(0, 1), "real"])
    with pytest.raises(ValueError, match="not at 1 of 2, first row 1"):
        FlowSampler(target=target).fit([[0.5, 0.0], [2.0, 0.0]])
    with pytest.raises(ValueError, match="none of the 1"):
        FlowSampler(target=target).fit([[2.0, 0.0]])
    with pytest.raises(ValueError, match=r"start\[None\]"):
        FlowSampler(target=target).fit([0.5, 0.0])
    with pytest.raises(ValueError, match="near the origin there are only 0"):
        FlowSampler(target=from_log_prob(lambda x: normal(x) - math.inf, 2)).fit()


def test_a_wrong_gradient_is_named():
    wrong = from_numpy(lambda x: -0.5 * (x**2).sum(-1), grad=lambda x: x * np.r_[-1.0, -3.0, [-1.0] * 7])
    target = from_log_prob(wrong, 9, names=[f"p{i}" for i in range(9)])
    with pytest.raises(ValueError, match="wrong in 'p1'"):
        FlowSampler(target=target, random_state=0).fit(np.random.default_rng(0).normal(size=(20, 9)))


def test_masses_that_flows_from_the_prior_confirm_need_no_crossings():
    """Half of the chains stay in each of two clusters: in order only where independent draws say so too."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(64, 40, 1, generator=generator).double()
    points[32:] += 20
    run = drawn_run(from_log_prob(lambda x: -0.5 * x.square().sum(-1), 1), points)
    run.modes = separated_modes(points, torch.zeros(1, dtype=torch.bool))
    assert any("masses of the modes" in reason for reason in judged(run)[1].reliability.reasons)
    for share, confirmed in ((0.5, True), (0.8, False)):
        draws = torch.randn(2000, 1, generator=generator).double() + 20 * (torch.arange(2000) < share * 2000)[:, None]
        run.ascended = Ascended(draws, None, [])
        told = any("masses of the modes" in reason for reason in judged(run)[1].reliability.reasons)
        assert told is not confirmed
