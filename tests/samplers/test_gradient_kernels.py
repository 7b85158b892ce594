"""NUTS, HMC and MALA in use: what they learn, what they count, what they say; in the latent space of a flow; given bad targets."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from sbi_flows.bijections.linear import Permutation
from sbi_flows.bijections.support import parse_support
from sbi_flows.distributions import BoxUniform, MultivariateNormal
from sbi_flows.distributions.bases import StandardNormal
from sbi_flows.flows import Flow
from sbi_flows.samplers import HMC, MALA, NUTS, IndependentMetropolis, Mixed, RandomWalk, Stretch, convergence, run_chains
from sbi_flows.targets import from_log_prob, from_numpy, posterior, pulled_back

KERNELS = {"hmc": HMC, "nuts": NUTS, "mala": MALA}


def correlated(d, rho=0.95):
    covariance = (1 - rho) * torch.eye(d, dtype=torch.float64) + rho
    scale = torch.logspace(-2, 2, d, dtype=torch.float64)
    truth = MultivariateNormal([0.0] * d, (scale[:, None] * covariance * scale).tolist())
    return from_log_prob(truth.log_prob, d), scale.numpy()


def cost_per_draw(kernel, target, start, **run):
    chains = run_chains(kernel, target, start, random_state=0, **run)
    ess = convergence(chains.samples, chains.names).ess_bulk.min()
    return chains.stats["n_evaluations"].sum() / ess, chains


def test_nuts_beats_the_random_walk_in_twenty_dimensions():
    target, scale = correlated(20)
    start = np.random.default_rng(0).normal(size=(20, 20)) * scale
    nuts, chains = cost_per_draw(NUTS(), target, start, n_steps=60, n_warmup=100)
    walk, _ = cost_per_draw(RandomWalk(jumps=0.0), target, start, n_steps=1500, n_warmup=1000)
    assert chains.reliability.ok, str(chains.reliability)
    # Of 1200 draws that are worth 600 or more a spread is good to 2.9 %: four errors, chance 6e-5 a column.
    np.testing.assert_allclose(chains.samples.std((0, 1)) / scale, 1, atol=0.115)
    assert nuts < walk / 3


@pytest.mark.parametrize("name", KERNELS)
def test_counts_and_warm_up(name):
    calls = []

    def counted(x):
        calls.append(len(x))
        return -0.5 * ((x - 3) / torch.tensor([0.1, 10.0])).square().sum(-1)

    kernel = KERNELS[name]()
    chains = run_chains(kernel, from_log_prob(counted, 2), np.full((6, 2), 2.9), n_steps=40, n_warmup=120, random_state=0)
    assert chains.stats["acceptance"].mean() == pytest.approx(kernel.target_acceptance, abs=0.15)
    # The start is counted a chain, rounded up.
    assert sum(calls) <= chains.info["n_evaluations"] < sum(calls) + 2 * 6
    # Nine points on the axes were looked at for the tails.
    assert chains.info["n_warmup_evaluations"] + chains.stats["n_evaluations"].sum() + 9 == chains.info["n_evaluations"]
    assert (chains.stats["n_gradients"] == chains.stats["n_evaluations"]).all()


def test_nuts_on_a_circle_ends_its_rounds():
    """Without an end to rounds a fast chain would go on to the limit of 1023 steps."""
    target = from_log_prob(lambda x: 0.1 * torch.cos(x[:, 0]), 1, support="circular")
    chains = run_chains(NUTS(), target, np.zeros((20, 1)), n_steps=30, n_warmup=30, random_state=0)
    assert chains.stats["n_gradients"].max() < 64 and np.abs(chains.samples).max() <= math.pi


def test_saturation_is_told():
    target, scale = correlated(6, rho=0.999)
    chains = run_chains(NUTS(max_depth=1, metric="diagonal"), target, np.ones((4, 6)) * scale, n_steps=40, n_warmup=20, random_state=0)
    assert chains.stats["saturated"].mean() > 0.5
    assert any("cut off at the greatest length" in note for note in chains.reliability.notes)


def test_useless_flow_proposals_are_told():
    far = MultivariateNormal([0.0, 0.0], [[1e8, 0.0], [0.0, 1e8]])
    target = from_log_prob(lambda x: -0.5 * x.square().sum(-1), 2)
    chains = run_chains(Mixed([HMC(), IndependentMetropolis(far)], weights=[2, 1]), target, np.ones((4, 2)), n_steps=60, n_warmup=20)
    assert np.isnan(chains.stats["acceptance_HMC"]).any() and np.nanmean(chains.stats["acceptance_HMC"]) > 0.4
    assert any("proposals of IndependentMetropolis were accepted" in note for note in chains.reliability.notes)


RESUMED = {"nuts": NUTS(), "cycle": Mixed([RandomWalk(), NUTS()]), "mix": Mixed([HMC(), MALA()], weights=[1, 1])}


@pytest.mark.parametrize("at", [0.4, 0.6, 0.9])  # of the calls of the whole run: in warm-up, about its end, and among the draws
@pytest.mark.parametrize("kernel", RESUMED.values(), ids=RESUMED)
def test_resumes_to_the_same_bits(kernel, at, tmp_path):
    settings, start = {"n_steps": 20, "n_warmup": 20, "random_state": 3}, np.ones((4, 2))
    calls, left = 0, math.inf

    def density(x):
        nonlocal calls
        calls += 1
        if calls > left:
            raise KeyboardInterrupt
        return -0.5 * x.square().sum(-1)

    target, path = from_log_prob(density, 2), tmp_path / "run.h5"
    whole = run_chains(kernel, target, start, **settings)
    all_calls, calls, left = calls, 0, round(at * calls)
    with pytest.raises(KeyboardInterrupt):
        run_chains(kernel, target, start, **settings, path=path)
    calls, left = 0, math.inf
    resumed = run_chains(kernel, target, start, **settings, path=path)
    assert calls < all_calls  # it went on, and did not begin again
    np.testing.assert_array_equal(resumed.samples, whole.samples)
    assert all(np.array_equal(resumed.stats[name], values, equal_nan=True) for name, values in whole.stats.items())
    assert resumed.info == whole.info


SCRIPT = """
import sys, time
import numpy as np, torch
from sbi_flows.samplers import NUTS, run_chains
from sbi_flows.targets import from_log_prob

def slow(x):
    time.sleep(0.01)
    return -0.5 * x.square().sum(-1)

run_chains(NUTS(), from_log_prob(slow, 2), np.ones((4, 2)), n_steps=100, n_warmup=50, random_state=3, path=sys.argv[1], save_seconds=0)
"""


def test_nuts_killed_at_any_moment_resumes_to_the_same_bits(tmp_path):
    """SIGKILL while it writes after every step: what is in the file is a whole step, and the rest follows from it."""
    path = tmp_path / "run.h5"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen([sys.executable, "-c", SCRIPT, str(path)], env=environment)
    deadline = time.monotonic() + 120
    while not path.exists() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL and path.exists()
    target, settings = from_log_prob(lambda x: -0.5 * x.square().sum(-1), 2), {"n_steps": 100, "n_warmup": 50, "random_state": 3}
    whole = run_chains(NUTS(), target, np.ones((4, 2)), **settings)
    resumed = run_chains(NUTS(), target, np.ones((4, 2)), **settings, path=path)
    np.testing.assert_array_equal(resumed.samples, whole.samples)
    assert resumed.info == whole.info


# --- In the latent space of a flow ---------------------------------------------------------------------------------------------


def test_hmc_behind_a_whitening_flow():
    """Seen through an exact flow the target is its base: one long quarter period is a fresh draw, accepted but for the leapfrog's error."""
    covariance = np.array([[4.0, 3.9, 0.0], [3.9, 4.0, 0.0], [0.0, 0.0, 1e-4]])
    truth = MultivariateNormal([100.0, -5.0, 0.02], covariance.tolist())
    draws = truth.sample(20_000, torch.Generator().manual_seed(0))
    flow = Flow(parse_support("real", 3), Permutation([0, 1, 2]), StandardNormal(3))
    flow.fit_scaling(draws)
    target = from_log_prob(truth.log_prob, 3, names=["mass", "spin", "phase"])
    kernel = HMC(n_steps=10, step_size=math.pi / 20, metric="diagonal")
    chains = run_chains(kernel, pulled_back(target, flow), draws[:50].numpy(), n_steps=80, n_warmup=0, random_state=0)
    assert chains.stats["acceptance"].mean() > 0.99
    assert chains.names == ("mass", "spin", "phase")
    # 4000 draws: five errors of a mean in units of its spread, and of a covariance in units of both; nine numbers, chance 5e-6.
    spread = np.sqrt(np.diag(covariance))
    apart = (chains.samples.reshape(-1, 3).mean(0) - [100, -5, 0.02]) / spread
    assert np.abs(apart).max() < 5 / math.sqrt(4000)
    units = spread[:, None] * spread
    np.testing.assert_allclose(np.cov(chains.samples.reshape(-1, 3).T) / units, covariance / units, atol=5 * math.sqrt(2 / 4000))
    rows = torch.from_numpy(chains.samples.reshape(-1, 3))
    np.testing.assert_allclose(chains.log_posterior.ravel(), truth.log_prob(rows), atol=1e-6)


# --- Bad targets ---------------------------------------------------------------------------------------------------------------

RUN = {"n_steps": 20, "n_warmup": 10, "random_state": 0}


@pytest.mark.parametrize("hole", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", KERNELS)
def test_targets_with_holes(name, hole):
    target = from_log_prob(lambda x: torch.where(x[:, 0] > 0.5, hole, -0.5 * x.square().sum(-1)), 2)
    chains = run_chains(KERNELS[name](), target, -np.ones((10, 2)), **RUN)
    assert np.isfinite(chains.log_posterior).all() and (chains.samples[..., 0] <= 0.5).all()
    told = any("NaN or +inf" in reason for reason in chains.reliability.reasons)
    assert told == (hole != -math.inf)


@pytest.mark.parametrize("name", KERNELS)
def test_wrong_gradients_are_named(name):
    def density(x):
        return -0.5 * (x**2).sum(-1)

    def gradient(x):
        return -x * np.array([1.0, 2.0])

    start = np.random.default_rng(0).normal(size=(4, 2))
    target = from_log_prob(from_numpy(density, gradient), 2, names=["mass", "spin"])
    with pytest.raises(ValueError, match="gradient of the target is wrong in 'spin'"):
        run_chains(KERNELS[name](), target, start, **RUN)
    assert run_chains(KERNELS[name](check=False), target, start, **RUN).samples.shape == (4, 20, 2)
    with pytest.raises(ValueError, match="no gradient: write it in torch"):
        run_chains(KERNELS[name](), from_log_prob(from_numpy(density), 2), start, **RUN)
    with pytest.raises(ValueError, match="no gradient"):
        run_chains(KERNELS[name](), from_log_prob(lambda x: -x.detach().square().sum(-1), 2), start, **RUN)


def test_a_rough_density_is_not_called_wrong():
    """Computed in float32 at a large offset: differences of it are noise, which convicts nobody."""
    target = from_log_prob(lambda x: (1e3 - 0.5 * x.float().square().sum(-1)).double(), 20)
    wrong = from_log_prob(lambda x: (1e3 - 0.5 * x.float().square().sum(-1)).double() + 1e3 * (x - x.detach()).sum(-1), 20)
    for seed in range(5):
        start = torch.from_numpy(np.random.default_rng(seed).normal(size=(4, 20)))
        state = HMC().init(start, target)
        torch.testing.assert_close(state.gradient, -start.float().double())
        # What is far above the noise is found all the same.
        with pytest.raises(ValueError, match="gradient of the target is wrong"):
            HMC().init(start, wrong)


def test_wrong_shapes_starts_and_failures():
    box = BoxUniform([-1.0, -1.0], [1.0, 1.0], names=["a", "b"])
    start = np.zeros((4, 2))
    with pytest.raises(ValueError, match=r"log_likelihood\(x\) of shape \(4,\)"):
        run_chains(NUTS(), posterior(lambda x: -x.square(), box), start, **RUN)
    with pytest.raises(ValueError, match="4 of 4 do not"):
        run_chains(NUTS(), posterior(lambda x: torch.full((len(x),), -math.inf), box), start, **RUN)
    with pytest.raises(ValueError, match="4 of 4 do not, the first is row 0"):
        run_chains(NUTS(), posterior(lambda x: -x.square().sum(-1), box), start + 2, **RUN)


def test_a_target_that_raises_says_what_to_do(tmp_path):
    """And what was drawn before stays in the file."""
    path, start = tmp_path / "run.h5", np.random.default_rng(0).normal(size=(10, 2)).clip(-1, 1)

    def fragile(x):
        if bool((x[:, 0] > 3).any()):
            raise ArithmeticError("no solution")
        return -0.5 * x.square().sum(-1)

    with pytest.raises(ArithmeticError, match="no solution") as caught:
        run_chains(RandomWalk(), from_log_prob(fragile, 2), start, n_steps=3000, n_warmup=10, random_state=0, path=path)
    assert "Where the model has no value return -inf" in caught.value.__notes__[0]
    assert path.exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HMC(step_size=0.0), "step_size"),
        (lambda: HMC(n_steps=0), "n_steps"),
        (lambda: HMC(trajectory=-1.0), "trajectory"),
        (lambda: NUTS(max_depth=0), "max_depth"),
        (lambda: NUTS(target_acceptance=1.0), "target_acceptance in"),
        (lambda: MALA(metric="full"), "one of auto, dense, diagonal"),
        (lambda: Mixed([]), "at least one kernel"),
        (lambda: Mixed([RandomWalk()], weights=[1, 2]), "1 weights"),
        (lambda: Mixed([RandomWalk()], weights=[0]), "not all 0"),
        (lambda: Stretch(a=1.0), "above 1"),
    ],
)
def test_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_stretch_wants_walkers():
    target = from_log_prob(lambda x: -x.square().sum(-1), 3)
    for start, message in [(np.eye(3), "at least twice the 3"), (np.ones((6, 3)), "span all 3 directions")]:
        with pytest.raises(ValueError, match=message):
            run_chains(Stretch(), target, start, **RUN)
