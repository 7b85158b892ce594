"""Linear bijections beyond what every bijection is checked for."""

import pytest
import torch

from sbi_flows.bijections.linear import LULinear


@torch.no_grad()
def test_a_linear_map_fitted_to_whiten():
    root = torch.tensor([[2.0, 0.0, 0.0], [1.5, 0.3, 0.0], [-1.0, 0.2, 0.1]], dtype=torch.float64)
    x = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ root.T + 4.0
    mixing = LULinear(3, [0, 2]).double().fit_whitening(x)
    z, log_det = mixing.forward_and_log_det(x)
    assert torch.allclose(z[:, [0, 2]].mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(torch.cov(z[:, [0, 2]].T, correction=0), torch.eye(2, dtype=torch.float64), atol=1e-10)
    assert torch.equal(z[:, 1], x[:, 1])
    of_the_draws = torch.cov(x[:, [0, 2]].T, correction=0)
    assert float(log_det[0]) == pytest.approx(-0.5 * float(torch.logdet(of_the_draws)), abs=1e-10)
