"""ln Z of the free-spectrum problem against FACTS 1: quadrature up to two parameters, Monte Carlo from the prior beyond."""

import numpy as np
import pytest
import torch

from sbi_flows.physics.pta import MODELS, embedded_tables, pta_target

LOG_Z_SMBHB = -21.826
LOG_BAYES_FACTORS = {  # value, error of the reference calculation
    "power_law": (3.585, 0.0),
    "sigw_delta": (3.949, 0.0),
    "sigw_gauss": (4.616, 0.005),
    "sigw_box": (3.786, 0.009),
    "strings_super": (3.596, 0.004),
    "domain_walls": (3.509, 0.010),
    "strings_meta_ls": (3.504, 0.009),
    "strings_meta_l": (2.988, 0.012),
    "igw": (2.749, 0.009),
    "pt_bubble": (2.416, 0.009),
    "pt_sound": (2.059, 0.009),
    "strings_stable": (-1.648, 0.004),
}
INTERPOLATION = 0.003  # what the look-up in the density may move ln Z, FACTS 1


def quadrature(target, ends, n=801) -> float:
    """Trapezoidal rule in one or two dimensions; the integrand vanishes or is constant at the ends."""
    axes = [torch.linspace(low, high, n, dtype=torch.float64) for low, high in ends]
    theta = torch.stack([g.reshape(-1) for g in torch.meshgrid(*axes, indexing="ij")], dim=1)
    values = torch.from_numpy(target.log_posterior(theta.numpy()))
    weights = torch.ones(n, dtype=torch.float64)
    weights[[0, -1]] = 0.5
    log_weights = sum(torch.log(w).reshape(-1) for w in torch.meshgrid(*([weights] * len(ends)), indexing="ij"))
    cell = sum(float(torch.log(axis[1] - axis[0])) for axis in axes)
    return float(torch.logsumexp(values + log_weights, 0)) + cell


ENDS = {
    "smbhb": [(-16.0, -13.0), (2.5, 6.0)],
    "power_law": [(-18, -11), (0, 7)],
    "sigw_delta": [(-11, -5), (-3, 1)],
    "strings_stable": [(-14, -6)],
    "strings_super": [(-14, -6), (-3, 0)],
    "strings_meta_l": [(-14, -1.5), (7, 9.5)],
    "strings_meta_ls": [(-14, -1.5), (7, 9.5)],
}


@pytest.mark.parametrize("name", ["smbhb", "power_law", "sigw_delta"])
def test_quadrature_on_the_full_tables(full_target, name):
    """Known to three decimals; the interpolation may move each of the two ln Z by 0.003."""
    expected = LOG_Z_SMBHB + (LOG_BAYES_FACTORS[name][0] if name in LOG_BAYES_FACTORS else 0.0)
    assert quadrature(full_target(name), ENDS[name]) == pytest.approx(expected, abs=INTERPOLATION + 0.001)


@pytest.mark.parametrize("name", ["strings_stable", "strings_super", "strings_meta_l", "strings_meta_ls"])
def test_quadrature_of_the_strings_on_the_full_tables(full_target, name):
    """The references are Monte Carlo: 3.5 of their errors (1 false alarm in 500 over the four) and the interpolation."""
    value, error = LOG_BAYES_FACTORS[name]
    found = quadrature(full_target(name), ENDS[name]) - LOG_Z_SMBHB
    assert found == pytest.approx(value, abs=3.5 * error + INTERPOLATION)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sigw_gauss", "sigw_box", "domain_walls", "igw", "pt_bubble", "pt_sound"])
def test_monte_carlo_on_the_full_tables(full_target, name):
    """Prior draws until the error is 0.01; 3.5 joint errors, 1 false alarm in 300 over the six."""
    log_z, error = prior_monte_carlo(full_target(name), 0.01)
    value, reference_error = LOG_BAYES_FACTORS[name]
    assert log_z - LOG_Z_SMBHB == pytest.approx(value, abs=3.5 * np.hypot(error, reference_error) + INTERPOLATION)


def prior_monte_carlo(target, error, block=200_000, max_blocks=60):
    generator = torch.Generator().manual_seed(3)
    values = []
    while True:
        theta = target.prior.sample(block, generator).numpy()
        values.append(target.log_posterior(theta) - target.prior_log_prob(theta))
        ln_l = np.concatenate(values)
        weights = np.exp(ln_l - ln_l.max())
        reached = weights.std() / weights.mean() / np.sqrt(len(weights))
        if reached < error or len(values) == max_blocks:
            return float(np.log(weights.mean()) + ln_l.max()), float(reached)


@pytest.mark.parametrize("name", MODELS)
def test_the_embedded_summaries_move_no_evidence(full_target, name):
    """ln Z shifts by the ln of the posterior mean of L'/L: no sampling noise to speak of, since both see the same draws."""
    full, embedded = full_target(name), pta_target(name)
    theta = full.prior.sample(300_000, torch.Generator().manual_seed(4)).numpy()
    ln_full = full.log_posterior(theta)
    near = ln_full > ln_full.max() - 12
    change = embedded.log_posterior(theta[near]) - ln_full[near]
    posterior = np.exp(ln_full[near] - ln_full.max())
    assert abs(np.log(np.average(np.exp(change), weights=posterior))) < 0.005


def test_the_ten_suggested_models_and_more_need_no_other_file():
    frequencies = pta_target("power_law").data.frequencies
    assert {m.table for m in MODELS.values() if m.table} <= set(embedded_tables(frequencies))
    assert embedded_tables(frequencies * 1.01) == {}
