"""Spectra against hand calculations, limits and autograd."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from sbi_flows.physics.pta import MODELS, embedded_degrees_of_freedom, embedded_free_spectrum, get_model, pta_target
from sbi_flows.physics.pta.cosmology import F_YEAR, DegreesOfFreedom
from sbi_flows.physics.pta.spectra import SILENT, log_broken_power_law, log_broken_power_law_integral

FACTS_NAMES = (
    "smbhb power_law igw sigw_delta sigw_gauss sigw_box domain_walls pt_bubble pt_sound strings_stable strings_meta_l "
    "strings_meta_ls strings_super"
)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_the_registry_holds_the_thirteen_models():
    assert sorted(MODELS) == sorted(FACTS_NAMES.split())


def test_domain_walls_at_10_mev_peak_at_1_138_nhz():
    f0 = embedded_degrees_of_freedom().horizon_frequency(torch.tensor([1e-2], dtype=torch.float64))
    assert float(f0) * 1e9 == pytest.approx(1.138, abs=5e-4)


def test_degrees_of_freedom_are_constant_below_the_table():
    dof = embedded_degrees_of_freedom()
    assert dof.entropy_today == dof.entropy_equality == pytest.approx(3.93094)
    assert dof.energy_today == pytest.approx(3.38308)


def test_degrees_of_freedom_refuse_unsorted_rows():
    with pytest.raises(ValueError, match="ascending"):
        DegreesOfFreedom.from_columns(np.ones((5, 4)))


@pytest.mark.parametrize(("a", "b", "c"), [(1.0, 1.0, 1.0), (3.0, 2.0, 5.0), (1.2, 2.7, 1.9)])
def test_the_shape_of_a_phase_transition_has_unit_integral(a, b, c):
    shape = [column(v) for v in (a, b, c)]
    integral, _ = quad(lambda ln_x: float(torch.exp(log_broken_power_law(column(ln_x), *shape))), -40, 40, points=[0])
    assert math.log(integral) == pytest.approx(float(log_broken_power_law_integral(*shape)), abs=1e-7)


def test_the_broken_power_law_is_one_at_its_peak_with_the_named_slopes():
    a, b, c = column(3.0), column(1.5), column(2.0)
    at = lambda ln_x: float(log_broken_power_law(column(ln_x), a, b, c))  # noqa: E731
    assert at(0.0) == pytest.approx(0, abs=1e-12)
    assert at(-60.0) - at(-61.0) == pytest.approx(3.0, abs=1e-6)
    assert at(60.0) - at(61.0) == pytest.approx(1.5, abs=1e-6)


def test_power_law_residuals_match_the_definition():
    target = pta_target("power_law")
    log10_amplitude, gamma = -14.2, 3.2
    f = embedded_free_spectrum().frequencies
    rho2 = 10 ** (2 * log10_amplitude) / (12 * math.pi**2) * F_YEAR ** (gamma - 3) * f**-gamma * f[0]
    found = target.log10_rho(torch.tensor([[log10_amplitude, gamma]]).double())
    np.testing.assert_allclose(found[0].numpy(), 0.5 * np.log10(rho2), atol=1e-9)


def test_a_delta_peak_is_silent_beyond_twice_its_frequency():
    target = pta_target("sigw_delta")
    f = embedded_free_spectrum().frequencies
    omega = target.log10_h2_omega(torch.tensor([[math.log10(f[4]) - math.log10(2) + 1e-6, 0.0]]).double())[0]
    assert torch.all(omega[5:] == SILENT)
    assert torch.all(omega[:4] > SILENT)


def test_superstrings_are_stable_strings_over_p():
    stable = pta_target("strings_stable").log10_h2_omega(torch.tensor([[-10.3]]).double())
    super_ = pta_target("strings_super").log10_h2_omega(torch.tensor([[-10.3, -1.25]]).double())
    torch.testing.assert_close(super_, stable + 1.25)


@pytest.mark.parametrize("name", MODELS)
def test_spectra_are_finite_batched_and_independent_of_the_batch(name):
    target = pta_target(name)
    theta = target.prior.sample(500, torch.Generator().manual_seed(1))
    omega = target.log10_h2_omega(theta)
    assert omega.dtype == torch.float64
    assert omega.shape == (500, 14)
    assert torch.isfinite(omega).all()
    torch.testing.assert_close(target.log10_h2_omega(theta[7:8]), omega[7:8], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_agree_with_differences(name):
    """Central differences of ln L; a table has kinks at its knots, so nine rows in ten must agree and the rest be finite."""
    target = pta_target(name)
    theta = target.prior.sample(4000, torch.Generator().manual_seed(2))
    theta = theta[target.log_likelihood(theta).argsort(descending=True)[:200]].requires_grad_()
    (gradient,) = torch.autograd.grad(target.log_likelihood(theta).sum(), theta)
    assert torch.isfinite(gradient).all()
    step = 1e-6
    with torch.no_grad():
        for j in range(target.features):
            shift = torch.zeros_like(theta)
            shift[:, j] = step
            numeric = (target.log_likelihood(theta + shift) - target.log_likelihood(theta - shift)) / (2 * step)
            close = (numeric - gradient[:, j]).abs() < 1e-3 * (1 + gradient[:, j].abs())
            assert close.double().mean() > 0.9


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'domain_walls'"):
        get_model("domain-wall")
    with pytest.raises(ValueError, match="The models are smbhb"):
        get_model("xyzzy")
