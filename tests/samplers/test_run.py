"""``run_chains``: same seed same bits, a killed run goes on as if nothing had happened, and bad input is told."""

import h5py
import numpy as np
import pytest
import torch
from scipy import stats

from sbi_flows.distributions import BoxUniform
from sbi_flows.samplers import HMC, MALA, NUTS, Mixed, RandomWalk, Stretch, convergence, parallel_tempering, run_chains, run_emcee, smc
from sbi_flows.samplers.convergence import bulk_ess
from sbi_flows.targets import from_log_prob, posterior

SETTINGS = {"n_steps": 30, "n_warmup": 20, "thin": 3, "random_state": 7}


def target(log_likelihood=lambda x: -0.5 * x.square().sum(-1)):
    return posterior(log_likelihood, BoxUniform([-3.0, -1.0], [3.0, 1.0], names=["a", "b"]))


def start(n=12, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, size=(n, 2))


def test_shapes_names_and_densities():
    chains = run_chains(RandomWalk(), target(), start(), **SETTINGS)
    assert chains.samples.shape == (12, 10, 2) and chains.names == ("a", "b")
    rows = torch.from_numpy(chains.samples.reshape(-1, 2))
    np.testing.assert_allclose(chains.log_posterior.ravel(), target().log_prob(rows), atol=1e-10)
    np.testing.assert_allclose(chains.log_likelihood.ravel(), target().log_likelihood(rows), atol=1e-10)
    assert chains.stats["acceptance"].shape == (12, 10) and 0 < chains.stats["acceptance"].mean() < 1
    assert "lp" in chains.to_arviz().sample_stats


def test_same_seed_same_bits():
    first, again = (run_chains(RandomWalk(), target(), start(), **SETTINGS) for _ in range(2))
    np.testing.assert_array_equal(first.samples, again.samples)
    other = run_chains(RandomWalk(), target(), start(), **{**SETTINGS, "random_state": 8})
    assert (first.samples != other.samples).any()


@pytest.mark.parametrize("calls", [5, 21, 35], ids=["in warm-up", "after warm-up", "between draws"])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, calls):
    whole = run_chains(RandomWalk(), target(), start(), **SETTINGS)
    left = calls

    def dies(x):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return -0.5 * x.square().sum(-1)

    path = tmp_path / "run.h5"
    with pytest.raises(KeyboardInterrupt):
        run_chains(RandomWalk(), target(dies), start(), **SETTINGS, path=path)
    resumed = run_chains(RandomWalk(), target(), start(), **SETTINGS, path=path, save_seconds=0)
    np.testing.assert_array_equal(resumed.samples, whole.samples)
    np.testing.assert_array_equal(resumed.log_posterior, whole.log_posterior)
    assert [file.name for file in tmp_path.iterdir()] == ["run.h5"]


def test_a_finished_run_is_read_back(tmp_path):
    path = tmp_path / "run.h5"
    first = run_chains(RandomWalk(), target(), start(), **SETTINGS, path=path)
    before = path.stat().st_mtime_ns
    again = run_chains(RandomWalk(), target(), start(), **SETTINGS, path=path)
    np.testing.assert_array_equal(first.samples, again.samples)
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("kernel", [RandomWalk(), Mixed([RandomWalk(), Stretch()])], ids=["one kernel", "two"])
def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path, kernel):
    path, longer = tmp_path / "run.h5", {**SETTINGS, "n_steps": 63}
    run_chains(kernel, target(), start(), **SETTINGS, path=path)
    on = run_chains(kernel, target(), start(), **longer, path=path)
    whole = run_chains(kernel, target(), start(), **longer)
    np.testing.assert_array_equal(on.samples, whole.samples)
    np.testing.assert_array_equal(on.log_posterior, whole.log_posterior)
    assert on.stats.keys() == whole.stats.keys()
    for name, values in whole.stats.items():
        np.testing.assert_array_equal(on.stats[name], values)
    # The look at the start again is the only thing that costs.
    assert on.reliability == whole.reliability and on.info == whole.info


@pytest.mark.parametrize(
    "kernel",
    [RandomWalk(), MALA(), HMC(), HMC(metric="dense"), NUTS(), NUTS(metric="dense")],
    ids=["random walk", "MALA", "HMC", "dense HMC", "NUTS", "dense NUTS"],
)
@pytest.mark.parametrize("n_steps", [0, 30], ids=["in warm-up", "between draws"])
def test_what_a_kernel_learned_in_many_columns_comes_back_bit_by_bit(tmp_path, kernel, n_steps):
    """From four columns on a product with a factor stored by columns is rounded otherwise than with one stored by rows."""
    root = torch.linalg.cholesky(0.5 * torch.eye(5, dtype=torch.float64) + 0.5)
    left = 10**9

    def log_prob(x):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return -0.5 * torch.linalg.solve_triangular(root, x.T, upper=False).square().sum(0)

    settings = {"n_steps": 60, "n_warmup": 200, "random_state": 7}
    init, path = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), tmp_path / "run.h5"
    whole = run_chains(kernel, from_log_prob(log_prob, 5), init, **settings)
    if n_steps:
        run_chains(kernel, from_log_prob(log_prob, 5), init, **{**settings, "n_steps": n_steps}, path=path)
    else:
        left = 180
        with pytest.raises(KeyboardInterrupt):
            run_chains(kernel, from_log_prob(log_prob, 5), init, **settings, path=path, save_seconds=0)
        left = 10**9
    resumed = run_chains(kernel, from_log_prob(log_prob, 5), init, **settings, path=path)
    np.testing.assert_array_equal(resumed.samples, whole.samples)


def test_files_of_other_runs_and_damaged_ones_are_refused(tmp_path):
    path = tmp_path / "run.h5"
    run_chains(RandomWalk(), target(), start(), **SETTINGS, path=path)
    with pytest.raises(ValueError, match=r"another run: n_draws was 10 and is 5.*as many or more"):
        run_chains(RandomWalk(), target(), start(), **{**SETTINGS, "n_steps": 15}, path=path)
    with pytest.raises(ValueError, match="another run: init"):
        run_chains(RandomWalk(), target(), start(seed=1), **SETTINGS, path=path)
    other = target(lambda x: -x.square().sum(-1))
    with pytest.raises(ValueError, match="another run: target"):
        run_chains(RandomWalk(), other, start(), **SETTINGS, path=path)
    with pytest.raises(ValueError, match="another run: kernel's settings"):
        run_chains(RandomWalk(target_acceptance=0.5), target(), start(), **SETTINGS, path=path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is damaged"):
        run_chains(RandomWalk(), target(), start(), **SETTINGS, path=path)
    with h5py.File(path, "w") as file:
        file["x"] = 1
    with pytest.raises(ValueError, match="not one written by run_chains"):
        run_chains(RandomWalk(), target(), start(), **SETTINGS, path=path)
    with pytest.raises(FileNotFoundError, match="existing folder"):
        run_chains(RandomWalk(), target(), start(), **SETTINGS, path=tmp_path / "no" / "run.h5")


def test_a_file_of_another_generator_or_of_a_target_changed_elsewhere_is_refused(tmp_path):
    path, settings = tmp_path / "run.h5", {**SETTINGS, "random_state": np.random.default_rng(1)}
    first = run_chains(RandomWalk(), target(), start(), **settings, path=path)
    again = run_chains(RandomWalk(), target(), start(), **{**settings, "random_state": np.random.default_rng(1)}, path=path)
    np.testing.assert_array_equal(first.samples, again.samples)
    with pytest.raises(ValueError, match=r"another run: random_state .checksum of a generator's state. was"):
        run_chains(RandomWalk(), target(), start(), **{**settings, "random_state": np.random.default_rng(2)}, path=path)
    begun = {tuple(row) for row in start().tolist()}

    def changed(x):
        return -0.5 * x.square().sum(-1) - torch.tensor([50.0 * (tuple(row) not in begun) for row in x.tolist()])

    elsewhere = target(changed)
    with pytest.raises(ValueError, match=r"holds a run of another target: at .* places where its chains were last"):
        run_chains(RandomWalk(), elsewhere, start(), **{**settings, "random_state": np.random.default_rng(1)}, path=path)
    with pytest.raises(ValueError, match=r"HDF5 file, such as run\.h5; got run\.zarr"):
        run_chains(RandomWalk(), target(), start(), **SETTINGS, path=tmp_path / "run.zarr")


def test_holes_in_the_target_are_counted():
    with_holes = target(lambda x: torch.where(x[:, 0] > 0.5, torch.nan, 0.0))
    chains = run_chains(RandomWalk(), with_holes, -abs(start()), **SETTINGS)
    assert np.isfinite(chains.log_posterior).all() and (chains.samples[..., 0] <= 0.5).all()
    # Half a box is missing: a third of the proposals or so go there.
    (reason,) = [reason for reason in chains.reliability.reasons if "NaN or +inf" in reason]
    share = float(reason.split("proposals (")[1].split("%")[0]) / 100
    assert 0.1 < share < 0.6 and "return -inf where it rules the parameters out" in reason


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_few_holes_are_a_note(value):
    """About one proposal in a thousand meets a hole, NaN and +inf alike: 20 000 proposals make more than a hundredth with 1e-50."""
    with_holes = target(lambda x: torch.where((x[:, 0] - 1).abs() < 0.003, value, 0.0))
    chains = run_chains(RandomWalk(), with_holes, start(20), n_steps=1000, n_warmup=100, random_state=0)
    assert chains.reliability.ok and any("NaN or +inf" in note and "holes" in note for note in chains.reliability.notes)


# --- Where chains started ---------------------------------------------------------------------------------------------------------


def two_bumps(x):
    return torch.logaddexp(-0.5 * (x - 6).square().sum(1), -0.5 * (x + 6).square().sum(1))


def starts_note(target, init, **changed):
    settings = {"n_steps": 40, "n_warmup": 40, "random_state": 0, **changed}
    return [note for note in run_chains(RandomWalk(), target, init, **settings).reliability.notes if "close together" in note]


def test_starts_in_one_mode_are_noted():
    rng, wide = np.random.default_rng(0), BoxUniform([-20.0] * 2, [20.0] * 2)
    one_mode, anywhere = rng.normal(6.0, 1.0, size=(20, 2)), rng.uniform(-20, 20, size=(20, 2))
    free, bounded = from_log_prob(two_bumps, 2), from_log_prob(two_bumps, 2, support=[(-20, 20)] * 2)
    for start_of in (free, posterior(two_bumps, wide), bounded):
        (note,) = starts_note(start_of, one_mode)
        assert "all 20 chains" in note and "FlowSampler or smc" in note
        assert not starts_note(start_of, anywhere)
    (alone,) = starts_note(free, one_mode[:1])
    assert "the one chain" in alone


def test_starts_on_a_circle():
    angle = from_log_prob(lambda x: 3 * torch.cos(2 * x[:, 0]), 1, support="circular")
    rng = np.random.default_rng(0)
    assert starts_note(angle, rng.normal(np.pi, 0.2, size=(20, 1)))
    assert not starts_note(angle, rng.uniform(-np.pi, np.pi, size=(20, 1)))


@pytest.mark.parametrize("features", [1, 10])
def test_starts_from_the_prior_are_not_close_together(features):
    """Four draws of a normal prior have a spread below a third of it in 1 % of cases; the median of ten columns next to never."""
    prior = BoxUniform([-3.0] * features, [3.0] * features)
    starts = prior.sample(4, torch.Generator().manual_seed(0))
    assert not starts_note(posterior(lambda x: -0.5 * (x / 0.01).square().sum(-1), prior), starts)


# --- What is no kernel and no target ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "of", "message"),
    [
        (RandomWalk, target(), r"such as RandomWalk\(\); got the class"),
        (two_bumps, target(), "no init and no step and no adapt"),
        (RandomWalk(), two_bumps, r"got a function.*from_log_prob\(function, features\)"),
        (RandomWalk(), 3, "Expected target to be a Target; got a int"),
    ],
)
def test_what_is_no_kernel_or_no_target(kernel, of, message):
    with pytest.raises(TypeError, match=message):
        run_chains(kernel, of, start(), **SETTINGS)


@pytest.mark.parametrize("sampler", [smc, parallel_tempering, run_emcee])
def test_other_samplers_want_targets_too(sampler):
    with pytest.raises(TypeError, match="Expected target to be a Target; got a function"):
        sampler(two_bumps)


def test_a_mixture_of_classes_is_refused():
    with pytest.raises(TypeError, match="got the class RandomWalk itself"):
        Mixed([RandomWalk])


BAD = {
    "one chain": ({"init": [0.0, 0.0]}, r"pass init\[None\]"),
    "outside": ({"init": [[0.0, 0.0], [0.0, 2.0]]}, "1 of 2 do not, the first is row 1"),
    "nothing kept": ({"n_steps": 2}, "keep no draw"),
    "no steps": ({"n_steps": 0}, "n_steps to be a whole number above 0"),
    "negative": ({"n_warmup": -1}, "n_warmup"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    change, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        run_chains(RandomWalk(), target(), **{"init": start(), **SETTINGS, **change})


@pytest.mark.parametrize(
    ("density", "support", "reaches"),
    [
        (lambda x: -x[:, 0].log(), (0, float("inf")), True),
        (lambda x: -1.5 * x[:, 0].log(), (0, 1), True),
        (lambda x: -1.5 * (-x[:, 0]).log1p(), (0, 1), True),
        (lambda x: -0.5 * (-x[:, 0]).log1p(), (0, 1), False),
        (lambda x: 2 * torch.cos(x[:, 0]), "circular", False),
        (lambda x: -0.5 * x[:, 0].square(), "real", False),
        (lambda x: -0.5 * x[:, 0].square(), "heavy", False),
        (lambda x: -0.5 * x[:, 0].square(), (0, float("inf")), False),
        (lambda x: -0.5 * x[:, 0].log(), (0, 1), False),
        (lambda x: 20 * x[:, 0], (0, 1), False),
    ],
    ids=["1/x", "x^-1.5", "upper", "upper, integrable", "angle", "normal", "normal, heavy", "half-normal", "x^-.5", "steep"],
)
def test_a_density_with_an_infinite_integral_is_told(density, support, reaches):
    init = np.random.default_rng(0).uniform(0.2, 0.8, size=(40, 1))
    endless = from_log_prob(density, 1, names=["t"], support=support)
    verdict = run_chains(RandomWalk(), endless, init, n_steps=600, n_warmup=200, random_state=0).reliability
    assert any("of the draws of t lie at the end of its range" in reason for reason in verdict.reasons) == reaches, verdict
    assert verdict.ok != reaches, verdict


@pytest.mark.parametrize("shape", [(4, 400, 3), (1, 401, 3), (3, 7, 3)])
def test_what_draws_are_worth_alone_is_what_is_reported(shape):
    """One chain, few draws, angles and a column that never moves included."""
    draws = np.random.default_rng(0).normal(size=shape).cumsum(1) * [0.1, 1.0, 0.0]
    found = bulk_ess(draws, circular=[False, True, False])
    np.testing.assert_array_equal(found, convergence(draws, ["a", "b", "c"], circular=[False, True, False]).ess_bulk)


def test_convergence_of_good_draws():
    draws = np.random.default_rng(0).normal(size=(4, 400, 2))
    good = convergence(draws, ["a", "b"])
    assert good.reliability.ok and (good.rhat < 1.01).all() and (good.ess_bulk > 1200).all()
    assert convergence(draws[:1].repeat(2, axis=1), ["a", "b"]).rhat.shape == (2,)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x + np.array([0.0, 1.0, 0.0, 0.0])[:, None, None] * [0, 1], "most about b"),
        (lambda x: x[:, :20], "effective sample size"),
        (lambda x: x[:, :3], "too few to see"),
        (lambda x: np.concatenate([x[:3], np.zeros_like(x[:1])]), "1 of 4 chains never moved"),
        (lambda x: np.zeros_like(x), "4 of 4 chains never moved"),
    ],
)
def test_convergence_of_bad_draws(change, reason):
    draws = change(np.random.default_rng(0).normal(size=(4, 400, 2)))
    verdict = convergence(draws, ["a", "b"]).reliability
    assert not verdict.ok and any(reason in text for text in verdict.reasons)


def test_convergence_sees_angles_across_the_seam():
    draws = np.random.default_rng(0).normal(size=(4, 400, 1)) * 0.1 + np.pi
    wrapped = np.angle(np.exp(1j * draws))
    assert convergence(wrapped, ["phase"], circular=[True]).reliability.ok
    apart = wrapped.copy()
    apart[0] = np.angle(np.exp(1j * (draws[0] + 1)))
    assert not convergence(apart, ["phase"], circular=[True]).reliability.ok


@pytest.mark.parametrize("power, heavy", [(2.0, True), (5.0, False)], ids=["Cauchy", "Student's t, four degrees of freedom"])
def test_a_tail_without_a_variance_is_told(power, heavy):
    """Of the density itself: draws that have not been far out do not show it. Starts are draws of it; with this seed MALA's P(x > q95) is
    .027 for .05 of the Cauchy, and its R-hat and effective size were in order."""
    t = from_log_prob(lambda x: -0.5 * power * torch.log1p(x.square() / (power - 1)).sum(-1), 2, names=["a", "b"])
    start = stats.t.rvs(power - 1, size=(16, 2), random_state=0)
    told = [r for r in run_chains(MALA(), t, start, n_steps=300, n_warmup=200, random_state=0).reliability.reasons if "like a power" in r]
    assert [reason.split()[1] for reason in told] == (["a", "b"] if heavy else [])
