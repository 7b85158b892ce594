"""Maps that are set from data and not trained: supports, whitening, quantiles."""

import math

import pytest
import torch
from properties import (
    check_log_det,
)
from scipy.stats import kstest

from sbi_flows.bijections.elementwise import Elementwise
from sbi_flows.bijections.linear import Whiten, moments
from sbi_flows.bijections.spline import Spline
from sbi_flows.bijections.support import parse_support
from sbi_flows.bijections.unconstrain import Unconstrain

SUPPORTS = {
    "interval": (2, 5),
    "lower": (1, None),
    "upper": (None, -1),
    "heavy": "heavy",
    "circular": ("circular", 0, 24),
    "real": "real",
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_support_map(name):
    t = Unconstrain(parse_support(SUPPORTS[name], 2)).double()
    t.location.fill_(0.3)
    t.scale.fill_(2.0)
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).clamp(-3, 3)
    x, log_det = t.inverse_and_log_det(z)
    back, log_det_back = t.forward_and_log_det(x)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-10)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-9)
    check_log_det(t, x, None, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ends", [(0, 1), (1000, 1001), (-3e5, 7), (0.1, None), (None, -0.3)])
def test_draws_never_leave_the_support(ends, dtype):
    """Latents of any size, the infinite included, land strictly inside."""
    (column,) = parse_support([ends], 1)
    t = Unconstrain([column]).to(dtype)
    z = torch.tensor([-math.inf, -1e30, -40, -9, -5, 0, 5, 9, 40, 1e30, math.inf], dtype=dtype)[:, None]
    x, _ = t.inverse_and_log_det(z)
    assert (x.double() > column.low).all() and (x.double() < column.high).all()
    assert torch.isfinite(t.forward_and_log_det(x)[0]).all()


def test_edges_are_inside_and_have_finite_gradients():
    t = Unconstrain(parse_support([(0, 1), (0, None)], 2))
    x = torch.tensor([[0.0, 0.0], [1.0, 1e30]], requires_grad=True)
    z, log_det = t.forward_and_log_det(x)
    assert torch.isfinite(z).all() and torch.isfinite(log_det).all()
    assert torch.isfinite(torch.autograd.grad((z.sum() + log_det.sum()), x)[0]).all()


def test_whitening_gives_unit_covariance_under_the_weights():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 3, generator=generator).double() @ torch.randn(3, 3, generator=generator).double() + 5
    weights = torch.rand(500, generator=generator).double()
    t = Whiten(3).double()
    t.fit(x, weights)
    z, _ = t.forward_and_log_det(x)
    w = weights / weights.sum()
    torch.testing.assert_close(w @ z, torch.zeros(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close((z * w[:, None]).T @ z, torch.eye(3).double(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_and_duplicated_columns_do_not_explode(dtype):
    generator = torch.Generator().manual_seed(0)
    a = 1e3 + torch.randn(200, 1, generator=generator, dtype=dtype)
    x = torch.cat([a, a, torch.full_like(a, 7.3), 2 * a - 5, torch.randn(200, 1, generator=generator, dtype=dtype)], 1)
    t = Whiten(5).to(dtype)
    t.fit(x)
    z, log_det = t.forward_and_log_det(x)
    assert torch.isfinite(z).all() and torch.isfinite(log_det).all() and z.abs().max() < 1e3
    assert t.matrix.abs().max() < 1e7


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_fewer_rows_than_columns_are_scaled_one_by_one(rows):
    _, root = moments(torch.randn(rows, 5, dtype=torch.float64), None, correlated=True)
    assert torch.equal(root, torch.diag(root.diagonal())) and (root.diagonal() > 0).all()


def test_elementwise_splines_from_quantiles_make_marginals_normal():
    """Two separated wells and a skewed column: Kolmogorov-Smirnov on other draws than those fitted, false alarms 1e-4 a column."""
    generator = torch.Generator().manual_seed(0)

    def draws(n):
        wells = torch.where(torch.rand(n, generator=generator) < 0.8, 1.0, -1.0) + 0.15 * torch.randn(n, generator=generator)
        return torch.stack([wells, torch.randn(n, generator=generator).exp() / 2], 1).double()

    fitted = Elementwise(Spline(bins=16), 2).double().fit_quantiles(draws(20_000))
    z, _ = fitted.forward_and_log_det(draws(1000))
    assert min(kstest(z[:, j].detach().numpy(), "norm").pvalue for j in range(2)) > 1e-4
