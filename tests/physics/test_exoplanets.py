"""Transit spectra against quadrature of the slant path, likelihoods, features, the score, a small network, and bad input."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import integrate
from scipy.stats import kstest, spearmanr

from sbi_flows import ConditionalFlow
from sbi_flows.physics.exoplanets import (
    GASES,
    NAMES,
    WAVELENGTHS,
    AtmosphereNPE,
    Planets,
    challenge_score,
    cross_sections,
    planet_prior,
    planet_target,
    simulate_planets,
    transit_radius,
)
from sbi_flows.physics.exoplanets.offset import RadiusOffset, offset_prior
from sbi_flows.physics.exoplanets.opacities import rayleigh
from sbi_flows.physics.exoplanets.planets import expected_depths
from sbi_flows.physics.exoplanets.transit import ATOMIC_MASS, BOLTZMANN, JUPITER_RADIUS, SUN_RADIUS
from sbi_flows.targets import check_gradient

WARM = np.array([[1.0, 1200.0, -4.0, -6.0, -5.0, -7.0, -6.0]])


# --- The forward model --------------------------------------------------------------------------------------------------------


def test_the_radius_is_that_of_the_slant_path():
    """The covered area is ``R0^2 + 2 int (1 - exp(-tau)) r dr`` above R0; the analytic radius is its first order in H / R, here 1/200."""
    theta, log_gravity = WARM, np.array([1.0])
    shares = 10 ** theta[0, 2:]
    masses = np.array([18.015, 44.010, 28.010, 16.043, 17.031])
    mass = ATOMIC_MASS * ((1 - shares.sum()) * 2.3 + shares @ masses)
    kappa = (shares @ cross_sections(WAVELENGTHS) + (1 - shares.sum()) * rayleigh(WAVELENGTHS)) / mass
    height = BOLTZMANN * 1200.0 / (mass * 10.0)
    base = JUPITER_RADIUS
    tau0 = 1e6 / 10.0 * kappa * np.sqrt(2 * np.pi * base / height)
    ours = transit_radius(theta, log_gravity)[0].numpy()
    for k in (0, 18, 32, 51):
        area, _ = integrate.quad(lambda u, k=k: -np.expm1(-tau0[k] * np.exp(-u)), 0, 60, limit=200)
        # In units of H above R0, at fixed geometry (r = R0 in the area element).
        assert ours[k] == pytest.approx((base + height * area) / JUPITER_RADIUS, rel=1e-9)


def test_each_gas_is_seen_in_its_own_band_and_more_of_it_is_larger():
    bare = np.array([[1.0, 1500.0, *[-12.0] * 5]])
    empty = transit_radius(bare, [1.0])[0]
    for j, (gas, band) in enumerate(zip(GASES, (1.38, 4.3, 4.67, 3.32, 10.4), strict=True)):
        with_gas = bare.copy()
        with_gas[0, 2 + j] = -4
        excess = transit_radius(with_gas, [1.0])[0] - empty
        # A heavier gas makes the scale height a little smaller, by 1e-4 times its mass over that of the rest.
        assert (excess > -2e-4).all() and excess.max() > 0.01, gas
        if band < WAVELENGTHS[-1] and gas != "H2O":
            assert abs(math.log(WAVELENGTHS[int(excess.argmax())] / band)) < 0.06, gas


def test_no_atmosphere_no_spectrum_and_hot_ones_are_larger():
    cold = transit_radius([[1.0, 0.0, *[-4.0] * 5]], [1.0])
    assert torch.isfinite(cold).all() and (cold - 1).abs().max() < 1e-3
    low, high = (transit_radius([[1.0, t, *[-4.0] * 5]], [1.0]) for t in (800.0, 1600.0))
    assert (high > low).all()


def test_the_series_meets_the_function_and_the_gradient_is_right():
    from sbi_flows.physics.exoplanets.transit import _Ein

    x = torch.tensor([0.99e-4, 1.01e-4, 0.3, 5.0, 200.0], dtype=torch.float64, requires_grad=True)
    exact = [integrate.quad(lambda t: -math.expm1(-t) / t, 0, float(v), epsabs=0, epsrel=1e-11)[0] for v in x.detach()]
    np.testing.assert_allclose(_Ein.apply(x).detach(), exact, rtol=1e-9)
    torch.autograd.gradcheck(_Ein.apply, x[2:4].detach().requires_grad_())


# --- Planets and their likelihoods --------------------------------------------------------------------------------------------


def test_noise_is_what_the_errors_say_and_differs_by_target():
    """20 800 standardised residuals against a standard normal (false alarm 1e-4)."""
    planets = simulate_planets(400, random_state=0)
    residual = (planets.depths - expected_depths(planets.theta, planets.star_radius, planets.log_gravity)) / planets.errors
    assert kstest(residual.ravel(), "norm").pvalue > 1e-4
    best = planets.errors.min(1)
    assert 1e-7 < best.min() < best.max() < 0.1 and best.max() > 5 * best.min()
    shape = planets.errors / best[:, None]
    assert shape.max() > 1.5 and np.ptp(shape[:, -1]) > 0.1


def test_the_likelihood_as_it_is_written():
    planets = simulate_planets(3, random_state=1)
    planet, theta = planets[1], planets.theta[1:2]
    expected = expected_depths(theta, planet.star_radius, planet.log_gravity)[0]
    chi2 = (((planet.depths[0] - expected) / planet.errors[0]) ** 2).sum()
    log_l = -0.5 * chi2 - np.log(planet.errors).sum() - 26 * math.log(2 * math.pi)
    target = planet_target(planet)
    assert target.names == NAMES
    assert target.log_likelihood(torch.from_numpy(theta)).item() == pytest.approx(log_l, rel=1e-10)
    assert target.log_prob(torch.from_numpy(theta)).item() == pytest.approx(log_l - math.log(2.9 * 7000 * 11**5), rel=1e-10)
    assert (transit_radius(theta, planet.log_gravity)[0].numpy() * JUPITER_RADIUS / SUN_RADIUS / planet.star_radius) ** 2 == pytest.approx(
        expected, rel=1e-12
    )


def test_gradient():
    target = planet_target(simulate_planets(1, WARM, random_state=2))
    check_gradient(target, torch.from_numpy(np.repeat(WARM, 3, 0) * [[1.0], [1.1], [0.9]]), rtol=1e-4)


def test_features_know_the_planet_and_not_the_star():
    """The same planet before a larger star, with errors scaled alike, is the same row."""
    near = simulate_planets(5, random_state=3)
    far = Planets(near.depths / 4, near.errors / 4, 2 * near.star_radius, near.log_gravity)
    np.testing.assert_allclose(near.features(), far.features(), rtol=1e-10)
    assert np.isfinite(simulate_planets(500, random_state=4).features()).all()


def test_same_seed_same_planets():
    a, b = simulate_planets(3, random_state=7), simulate_planets(3, random_state=7)
    np.testing.assert_array_equal(a.depths, b.depths)
    assert len(a[[0, 2]]) == 2 and a[-1].theta[0, 0] == a.theta[2, 0]


# --- The score ----------------------------------------------------------------------------------------------------------------


def test_score_by_hand():
    planet = simulate_planets(1, WARM, random_state=0)
    rng = np.random.default_rng(0)
    draws = WARM + rng.normal(size=(2000, 7)) * [0.002, 30, 0.1, 0.1, 0.1, 0.1, 0.1]
    same = challenge_score(planet, draws, draws, n_spectra=2000, random_state=0)
    assert (same.total, same.posterior, same.spectral) == (1000.0, 1000.0, 1000.0)
    # One parameter of seven wholly elsewhere: KS one there. It is the radius: all spectra grow by 21 %.
    moved = draws * [1.1, 1, 1, 1, 1, 1, 1]
    off = challenge_score(planet, moved, draws, n_spectra=2000, random_state=0)
    assert off.ks[0] > 0.99 and off.posterior == pytest.approx(1000 * (1 - off.ks[0] / 7), abs=1e-9)
    assert off.total == pytest.approx(0.8 * off.posterior + 0.2 * off.spectral)
    # log10 of medians and of ranges differ by 2 log10 1.1, but for the height of the atmosphere; Huber halves the square.
    assert 1000 - off.spectral == pytest.approx(100 * 0.5 * (2 * math.log10(1.1)) ** 2, rel=0.15)
    nonsense = challenge_score(planet, planet_prior().sample(2000, torch.Generator().manual_seed(0)).numpy(), draws, random_state=0)
    assert nonsense.total < off.total - 200


# --- The radius by its offset --------------------------------------------------------------------------------------------------


def test_the_offset_of_simulations_is_standard_normal_whatever_theta():
    """A Kolmogorov-Smirnov test and six correlations at 1e-3 each: false alarm below 1 %."""
    planets = simulate_planets(3000, random_state=5)
    rows, _ = RadiusOffset(planets).rows(torch.from_numpy(planets.theta))
    assert kstest(rows[:, 0].numpy(), "norm").pvalue > 1e-3
    for column in rows[:, 1:].T:
        assert spearmanr(rows[:, 0].numpy(), column.numpy()).pvalue > 1e-3
    assert offset_prior().features == 7 and offset_prior().box


def test_offsets_and_radii_there_and_back_with_their_slope():
    planets = simulate_planets(200, random_state=6)
    offset, theta = RadiusOffset(planets), torch.from_numpy(planets.theta)
    rows, log_slope = offset.rows(theta)
    back, inside = offset.theta(rows)
    assert inside.all()
    torch.testing.assert_close(back, theta, rtol=0, atol=1e-10)
    step = torch.zeros_like(theta)
    step[:, 0] = 1e-6
    difference = (offset.rows(theta - step)[0] - offset.rows(theta + step)[0])[:, 0] / 2e-6
    torch.testing.assert_close(difference.log(), log_slope, rtol=0, atol=1e-6)
    far = rows.clone()
    far[:, 0] = 1e6 * torch.sign(torch.arange(200) - 99.5)
    assert not offset.theta(far)[1].any(), "no radius of the prior is so far off"


def test_the_posterior_integrates_to_one_over_the_radius():
    """Given all else, the density of the radius, by quadrature, against the share of draws of an untrained network inside the prior."""
    planet = simulate_planets(1, WARM, random_state=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = AtmosphereNPE(400, ConditionalFlow(layers=1, hidden=(8,), max_epochs=1), random_state=0).fit()
    posterior = network.posterior(planet)
    assert 0 < posterior.acceptance <= 1
    draws = posterior.sample(300, random_state=0)
    box = planet_prior()
    assert ((draws > box.low.numpy()) & (draws < box.high.numpy())).all()
    radii = np.linspace(0.1, 3, 20_001)[1:-1]
    theta = np.repeat(WARM, len(radii), 0)
    theta[:, 0] = radii
    density = np.exp(posterior.log_prob(theta))
    # The density of the other six at WARM, from rows whose offset is integrated over all of the line.
    rows, _ = RadiusOffset(planet).rows(torch.from_numpy(WARM))
    line = rows.repeat(20_001, 1)
    reach = RadiusOffset(planet).rows(torch.from_numpy(np.repeat(WARM, 2, 0) * np.array([[0.1 + 1e-9], [3 - 1e-9]]) ** np.eye(7)[0]))[0]
    line[:, 0] = torch.linspace(float(reach[1, 0]), float(reach[0, 0]), 20_001, dtype=torch.float64)
    learned = np.exp(network.npe_.posterior(planet.features()[0]).log_prob(line.numpy())) / posterior.acceptance
    assert np.trapezoid(density, radii) == pytest.approx(np.trapezoid(learned, line[:, 0].numpy()), rel=2e-2)
    assert posterior.log_prob(np.array([[3.5, *WARM[0, 1:]]]))[0] == -np.inf


# --- One network for all planets ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:[A-Za-z].*:UserWarning")  # of a fit cut short
def test_a_network_learns_the_radius_first_and_is_saved(tmp_path):
    given = ConditionalFlow(layers=1, hidden=(32,), max_epochs=4)
    network = AtmosphereNPE(1500, given, random_state=0).fit(tmp_path / "fit.checkpoint")
    assert (tmp_path / "fit.checkpoint").exists() and given.checkpoint is None
    theta = simulate_planets(40, random_state=9).theta
    theta[:, 0] = np.linspace(0.8, 2.8, 40)  # of planets near the prior's least radius so poor a network knows too little
    planets = simulate_planets(40, theta, random_state=9)
    draws = network.posterior(planets).sample(200, random_state=0)
    assert draws.shape == (40, 200, 7)
    assert np.corrcoef(np.median(draws[:, :, 0], 1), planets.theta[:, 0])[0, 1] > 0.8
    refined = network.refined(planets[0], 500, random_state=1)
    assert refined.samples.shape == (500, 7) and not refined.reliability.ok, "so poor a network is not to be believed"
    network.save(tmp_path / "network.safetensors")
    again = AtmosphereNPE.load(tmp_path / "network.safetensors")
    np.testing.assert_array_equal(again.posterior(planets).sample(3, random_state=5), network.posterior(planets).sample(3, random_state=5))


@pytest.fixture(scope="module")
def learned():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a fit cut short
        return AtmosphereNPE(4000, ConditionalFlow(layers=2, hidden=(32, 32), max_epochs=10), random_state=0).fit()


@pytest.fixture(scope="module")
def planet():
    """One of the noisiest of sixty: so small a network knows such spectra well enough for its weights."""
    return simulate_planets(60, random_state=3)[56]


def by_prior_draws(planet, n=60_000):
    """ln Z and its error: six parameters from their prior, the radius from a normal about where the mean measured radius wants it.

    Half of the draws have temperature and water from a box about the truth, which the density of the mixture knows.
    """
    target, rng = planet_target(planet), np.random.default_rng(1)
    theta = planet_prior().sample(n, torch.Generator().manual_seed(1)).double().numpy()
    truth = planet.theta[0, 1:3]
    box = np.array([[truth[0] / 3, truth[1] - 2], [truth[0] * 3, truth[1] + 2]])
    theta[::2, 1:3] = rng.uniform(*box, size=(n // 2, 2))
    within = ((theta[:, 1:3] > box[0]) & (theta[:, 1:3] < box[1])).all(1)
    range_of_both = (planet_prior().high - planet_prior().low)[1:3].prod().item()
    assert (box[0] > planet_prior().low[1:3].numpy()).all() and (box[1] < planet_prior().high[1:3].numpy()).all()
    unit = SUN_RADIUS / JUPITER_RADIUS * planet.star_radius[0]
    weights = planet.errors[0] ** -2 / (planet.errors[0] ** -2).sum()
    measured = unit * math.sqrt(weights @ planet.depths[0])
    width = 2 * unit**2 * (planet.errors[0] ** -2).sum() ** -0.5 / (2 * measured)
    theta[:, 0] = measured
    for _ in range(3):
        radius = transit_radius(theta, np.full(n, planet.log_gravity[0])).numpy()
        theta[:, 0] = (theta[:, 0] + measured - np.sqrt(radius**2 @ weights)).clip(0.05, 3)
    normal = rng.standard_normal(n)
    theta[:, 0] += width * normal
    inside = (theta[:, 0] > 0.1) & (theta[:, 0] < 3)
    theta[~inside, 0] = 1.0
    log_density = -0.5 * normal**2 - math.log(width * math.sqrt(2 * math.pi))
    log_density += np.log(0.5 + 0.5 * within * range_of_both / np.diff(box, axis=0).prod())
    log_weights = np.where(inside, target.log_likelihood(torch.from_numpy(theta)).numpy() - log_density - math.log(2.9), -np.inf)
    share = np.exp(log_weights - log_weights.max())
    return math.log(share.mean()) + log_weights.max(), share.std() / share.mean() / math.sqrt(n)


def test_the_evidence_of_a_planet_is_the_integral(learned, planet):
    """Within four joint errors, false alarm 6e-5, and these are small."""
    refined = learned.refined(planet, 4000, random_state=0)
    exact, error = by_prior_draws(planet)
    assert refined.reliability.ok, refined.reliability
    assert abs(refined.log_z - exact) < 4 * math.hypot(refined.log_z_err, error) < 0.4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, line: Planets(p.depths + 10 * p.errors * line, p.errors, p.star_radius, p.log_gravity), "more than the model"),
        (lambda p, line: Planets(p.depths, p.errors / 2, p.star_radius, p.log_gravity), "more than the model"),
        (lambda p, line: Planets(p.depths, 3 * p.errors, p.star_radius, p.log_gravity), "less scatter than the errors say"),
    ],
)
def test_spectra_that_the_model_cannot_make_are_told(learned, planet, change, message):
    refined = learned.refined(change(planet, np.arange(52) == 30), 4000, random_state=0)
    assert not refined.reliability.ok and any(message in reason for reason in refined.reliability.reasons)


def test_other_units_are_told_before_anything_is_drawn(learned, planet):
    p = planet
    with pytest.raises(ValueError, match="not % or ppm"):
        learned.refined(Planets(p.depths * 1e6, p.errors * 1e6, p.star_radius, p.log_gravity))
    with pytest.raises(ValueError, match="not % or ppm"):
        learned.posterior(Planets(-p.depths, p.errors, p.star_radius, p.log_gravity))
    with pytest.raises(ValueError, match=r"log10 of m/s\^2"):
        learned.posterior(Planets(p.depths, p.errors, p.star_radius, 10**p.log_gravity))
    simulate_planets(2000, random_state=8).check_units()
    assert Planets(p.depths[:, ::-1], p.errors[:, ::-1], p.star_radius, p.log_gravity).depths.flags.c_contiguous


# --- Bad input ----------------------------------------------------------------------------------------------------------------


def test_shapes_that_do_not_fit():
    planets = simulate_planets(2, random_state=0)
    with pytest.raises(ValueError, match=r"Expected theta \(n, 7\).*theta\[None\]"):
        transit_radius(WARM[0], [1.0])
    with pytest.raises(ValueError, match="positive wavelengths"):
        transit_radius(WARM, [1.0], wavelengths=[-1.0])
    with pytest.raises(ValueError, match=r"Expected one planet; got 2.*planets\[0\]"):
        planet_target(planets)
    with pytest.raises(ValueError, match=r"errors \(n, 52\)"):
        Planets(planets.depths[:, :-1], planets.errors, planets.star_radius, planets.log_gravity)
    with pytest.raises(ValueError, match="positive errors"):
        Planets(planets.depths, 0 * planets.errors, planets.star_radius, planets.log_gravity)
    with pytest.raises(ValueError, match=r"theta of shape \(2, 7\)"):
        simulate_planets(2, WARM)
    with pytest.raises(ValueError, match=r"ours to be draws of shape \(m, 7\)"):
        challenge_score(planets[0], WARM[0], WARM)
    with pytest.raises(ValueError, match="Expected n"):
        simulate_planets(0)
