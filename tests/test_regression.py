"""The ridge regression taken off before training: slopes, strength, and what a conditional flow makes of it."""

import math

import numpy as np
import torch

from sbi_flows.bijections.linear import MOST_REGRESSORS, Whiten
from sbi_flows.bijections.regression import ridge
from sbi_flows.flows import nsf

# Draws are seeded: a passing run passes for ever.


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_slopes_are_those_of_least_squares_where_there_is_much_data():
    context, noise = normal(5000, 3), normal(5000, 2, seed=1)
    slope = torch.tensor([[1.0, 0.0, -2.0], [0.3, 0.0, 0.0]], dtype=torch.float64)
    found = ridge(5 + context @ slope.T + 0.5 * noise, context)
    assert (found - slope).abs().max() < 6 * 0.5 / math.sqrt(5000)


def test_rows_of_weight_zero_are_absent_and_the_scale_of_weights_is_nothing():
    context, y = normal(300, 2), normal(300, 1, seed=1)
    y = y + context[:, :1] ** 2 + context[:, 1:]
    used = torch.arange(300) < 200
    torch.testing.assert_close(ridge(y, context, used.double()), ridge(y[used], context[used]))
    torch.testing.assert_close(ridge(y, context, torch.full((300,), 7.0)), ridge(y, context))


def test_noise_is_not_regressed_on():
    """With 60 columns for 100 rows least squares would explain 60 % of pure noise; leave-one-out sees through it."""
    context, y = normal(100, 60), normal(100, 4, seed=1)
    assert (context @ ridge(y, context).T).square().mean() < 0.1


def test_more_columns_than_rows_and_dependent_columns_stay_finite():
    context = normal(20, 50)
    context[:, 7], context[:, 8] = context[:, 6], 0.0
    slope = ridge(context[:, :2] + 0.1 * normal(20, 2, seed=1), context)
    assert torch.isfinite(slope).all()


def test_whitening_leaves_the_residual_and_inverts():
    context, y = normal(2000, 2), normal(2000, 3, seed=1)
    y[:, 0] += 4 * context[:, 1]
    scaling = Whiten(3, [0, 2], context=2)
    scaling.fit(y, None, context)
    z, log_det = scaling.forward_and_log_det(y, context)
    assert torch.equal(z[:, 1], y[:, 1])
    torch.testing.assert_close(torch.cov(z[:, [0, 2]].T), torch.eye(2, dtype=torch.float64), atol=5e-3, rtol=0)
    assert abs(np.corrcoef(z[:, 0], context[:, 1])[0, 1]) < 1e-3
    back, log_back = scaling.inverse_and_log_det(z, context)
    torch.testing.assert_close(back, y)
    torch.testing.assert_close(log_back, -log_det)


def test_the_regression_ends_a_range_beyond_the_data():
    context = normal(500, 1)
    scaling = Whiten(1, context=1)
    scaling.fit(3 * context + 0.1 * normal(500, 1, seed=1), None, context)
    width, zero = context.max() - context.min(), torch.zeros(1, 1, dtype=torch.float64)
    at = [scaling.forward_and_log_det(zero, (context.max() + k * width)[None, None])[0].item() for k in (0, 0.5, 1, 1e6)]
    assert at[0] > at[1] > at[2] == at[3]


def test_very_many_columns_are_left_alone():
    context = normal(30, MOST_REGRESSORS + 1)
    scaling = Whiten(1, context=MOST_REGRESSORS + 1)
    scaling.fit(context[:, :1] * 2, None, context)
    assert not scaling.slope.any()


def test_an_untrained_flow_is_the_answer_to_a_linear_gaussian_model():
    """Fitting 3 slopes and 2 moments to 4000 rows costs 5 / (2 * 4000) nats; the bound is ten times that."""
    context, noise = normal(4000, 3), normal(4000, 1, seed=1)
    y = 1 + context @ torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64) + 0.1 * noise
    flow = nsf(1, context=3, layers=2, generator=torch.Generator().manual_seed(0)).fit_scaling(y, context)
    new, fresh = normal(20_000, 3, seed=2), normal(20_000, 1, seed=3)
    y = 1 + new @ torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64) + 0.1 * fresh
    with torch.no_grad():
        found = flow.log_prob(y, new).mean()
    exact = torch.distributions.Normal(0, 0.1).log_prob(0.1 * fresh).mean()
    assert abs(found - exact) < 10 * 5 / (2 * 4000)


def test_a_built_flow_can_do_without():
    context = normal(200, 1)
    flow = nsf(1, context=1, layers=1).fit_scaling(2 * context, context, regress=False)
    assert not flow.scaling.slope.any()
