"""Limits in place of values: mass beyond a value, fits to rows that are censored, and what is refused."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from small_fits import FAST

from sbi_flows import ConditionalFlow, flows
from sbi_flows.flows.tails import check_tails, log_prob_and_tails
from sbi_flows.losses import Batch, censored_nll

SMALL = {**FAST, "flow": "nsf", "max_epochs": 10, "dtype": "float64"}


def line(n=4000, seed=0):
    """``y = x + normal``, of which two fifths are cut short at a limit that may depend on x."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 1))
    true = x[:, 0] + rng.normal(size=n)
    limit = x[:, 0] + rng.normal(0.3, 1.0, n)
    return x, np.minimum(true, limit), true > limit


@pytest.fixture(scope="module")
def model():
    x, y, censored = line()
    return ConditionalFlow(**SMALL).fit(x, y, censored=censored)


@pytest.mark.parametrize("support", ["real", "heavy", (0, np.inf), (-np.inf, 1), (-1, 2)])
@pytest.mark.parametrize("build", [flows.nsf, flows.maf, flows.realnvp])
def test_the_density_is_the_slope_of_the_mass(build, support):
    flow = build(1, 2, hidden=(8, 8), support=support, generator=torch.Generator().manual_seed(0)).double()
    for parameter in flow.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    check_tails(flow)
    context = torch.tensor([[0.4, -1.0]], dtype=torch.float64)
    column = flow.support.support[0]
    x = torch.linspace(max(column.low, -6.0), min(column.high, 6.0), 52, dtype=torch.float64)[1:-1, None].requires_grad_()
    log_prob, below, above = log_prob_and_tails(flow, x, context)
    (slope,) = torch.autograd.grad(below.exp().sum(), x)
    np.testing.assert_allclose(slope[:, 0], log_prob.detach().exp(), atol=1e-10)
    np.testing.assert_allclose((below.exp() + above.exp()).detach(), 1.0, atol=1e-12)
    np.testing.assert_array_equal(log_prob.detach(), flow.log_prob(x, context).detach())


def test_a_continuous_flow_has_tails_too():
    """To the error that its integrator states."""
    flow = flows.cnf(1, hidden=(8, 8), support=(0, np.inf), generator=torch.Generator().manual_seed(0)).double()
    for parameter in flow.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = torch.linspace(0.2, 3.0, 5, dtype=torch.float64)[:, None].requires_grad_()
    log_prob, below, above = log_prob_and_tails(flow, x)
    (slope,) = torch.autograd.grad(below.exp().sum(), x)
    error = (slope[:, 0].log() - log_prob).detach().abs()
    assert (error < 1e-8 + 2 * flow.log_prob_error(x.detach())).all()
    np.testing.assert_allclose((below.exp() + above.exp()).detach(), 1.0, atol=1e-12)


def test_small_tails_keep_their_digits_and_edges_are_edges():
    flow = flows.nsf(1).double()  # as it starts, the identity
    x = torch.tensor([[-30.0], [30.0]], dtype=torch.float64)
    with torch.no_grad():
        _, below, above = log_prob_and_tails(flow, x)
        np.testing.assert_allclose(below, norm.logcdf(x[:, 0]), rtol=1e-12)
        np.testing.assert_allclose(above, norm.logsf(x[:, 0]), rtol=1e-12)
        half_line = flows.nsf(1, support=(0, np.inf)).double()
        log_prob, below, above = log_prob_and_tails(half_line, torch.tensor([[-1.0], [0.0], [np.inf]], dtype=torch.float64))
    assert log_prob[0] == -np.inf == below[0] == below[1] == above[2]
    assert above[0] == above[1] == 0.0 == below[2]


def test_gradients_far_out_are_finite():
    flow = flows.nsf(1, layers=1, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([[1e4, 0.0], [1e4, 1.0], [-1e4, 1.0], [1e4, -1.0], [-1e4, -1.0]])
    censored_nll(flow, Batch(rows), torch.Generator()).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in flow.parameters())


def test_a_fit_to_limits_finds_the_truth(model):
    """4000 rows know the mean to .02; masses, with the few parameters of the flow, within .04: 5 standard errors and a bias of .01."""
    x = np.array([-1.0, 0.0, 1.0]).repeat(3)[:, None]
    y = x[:, 0] + np.tile([-1.0, 0.0, 1.0], 3)
    truth = norm.cdf(y - x[:, 0])
    np.testing.assert_allclose(model.cdf(x, y), truth, atol=0.04)
    np.testing.assert_allclose(model.survival(x, y), 1 - truth, atol=0.04)
    assert model.history_.reliability.ok and model.history_.loss == "censored_nll"
    # What limits are for: taken as values, they leave masses three times as far off as that.
    cut, seen, _ = line()
    naive = ConditionalFlow(**SMALL).fit(cut, seen)
    assert np.abs(naive.cdf(x, y) - truth).max() > 0.12


def test_upper_limits_are_lower_limits_seen_in_a_mirror():
    """As above: within .04."""
    x, y, censored = line(seed=1)
    model = ConditionalFlow(**SMALL).fit(x, -y, censored=-censored.astype(int))
    np.testing.assert_allclose(model.cdf(np.zeros((3, 1)), [-1.0, 0.0, 1.0]), norm.cdf([-1.0, 0.0, 1.0]), atol=0.04)


def test_score_counts_limits_by_the_mass_beyond(model):
    x, y, censored = line(50, seed=2)
    kinds = np.where(censored, 1, 0)
    kinds[:5] = -1
    expected = np.where(kinds > 0, np.log(model.survival(x, y)), np.where(kinds < 0, np.log(model.cdf(x, y)), model.log_prob(x, y)))
    assert model.score(x, y, censored=kinds) == pytest.approx(expected.mean())
    assert model.score(x, y, censored=np.zeros(50)) == model.score(x, y)


def test_shapes_and_files(model, tmp_path):
    x = np.zeros((2, 1))
    y = np.array([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0]])
    masses = model.cdf(x, y)
    assert masses.shape == (2, 3) and (np.diff(masses) > 0).all()
    np.testing.assert_array_equal(masses[:, 1], model.cdf(x, y[:, 1]))
    np.testing.assert_allclose(masses + model.survival(x, y), 1.0, atol=1e-12)
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(ConditionalFlow.load(tmp_path / "model").cdf(x, y), masses)


def test_ensembles_behind_an_embedding_and_weights():
    """The mass of an ensemble is the mean of its members', and rows without weight are as good as absent."""
    x, y, censored = line(400)
    settings = {**SMALL, "n_members": 3, "embedding": torch.nn.Linear(1, 2, dtype=torch.float64)}
    weights = np.ones(400)
    weights[300:] = 0.0
    y[300:] += 100.0
    model = ConditionalFlow(**settings).fit(x, y, sample_weight=weights, censored=censored)
    fewer = ConditionalFlow(**settings).fit(x[:300], y[:300], censored=censored[:300])
    np.testing.assert_allclose(model.cdf(x[:5], y[:5]), fewer.cdf(x[:5], y[:5]), atol=1e-10)
    single = []
    whole = model.flow_
    for member in whole.flows:
        model.flow_ = member
        single.append(model.cdf(x[:5], y[:5]))
    model.flow_ = whole
    np.testing.assert_allclose(model.cdf(x[:5], y[:5]), np.mean(single, axis=0), atol=1e-12)


def test_mass_beyond_everything_seen_is_noted():
    x, y, _ = line(400)
    model = ConditionalFlow(**SMALL).fit(x, np.minimum(y, 0.0), censored=y > 0)
    assert any("above the largest value of y seen" in note for note in model.history_.reliability.notes)


@pytest.mark.parametrize(
    ("censored", "message"),
    [
        (np.zeros(3), r"shape \(40,\).*got \(3,\)"),
        (np.full(40, 2), "got 2, 2, 2"),
        (np.full(40, np.nan), "got nan, nan, nan"),
        (np.full(40, "dead"), "0 or False for a value seen"),
        (np.ones(40, dtype=bool), r"at least two values.*censored=\(event == 0\)"),
    ],
)
def test_odd_limits_are_refused(censored, message):
    x, y, _ = line(40)
    with pytest.raises(ValueError, match=message):
        ConditionalFlow(**SMALL).fit(x, y, censored=censored)


def test_what_has_no_above_is_refused(conditional):
    x, y, censored = line(40)
    with pytest.raises(ValueError, match="one column of y"):
        ConditionalFlow(**SMALL).fit(x, np.stack([y, x[:, 0]], axis=1), censored=censored)
    with pytest.raises(ValueError, match="got an angle"):
        ConditionalFlow(**SMALL, support="circular").fit(x, y, censored=censored)
    with pytest.raises(ValueError, match="flow matching knows no limits"):
        ConditionalFlow(**{**SMALL, "flow": "cnf", "hidden": (8, 8)}).fit(x, y, censored=censored)
    with pytest.raises(ValueError, match="normal base"):
        ConditionalFlow(**{**SMALL, "flow": lambda d, c: flows.nsf(d, c, base="student-t")}).fit(x, y, censored=censored)
    with pytest.raises(ValueError, match="got CountFlow"):
        ConditionalFlow(**{**SMALL, "flow": flows.CountDensity({0: ("unit", 0, 10)})}).fit(x, np.arange(40.0) % 7, censored=censored)
    with pytest.raises(ValueError, match="this one has 2"):
        conditional.cdf(np.zeros((1, 2)), [0.0])


def test_odd_values_are_refused(model):
    with pytest.raises(ValueError, match=r"\(2,\) or \(2, k\).*got \(3,\)"):
        model.cdf(np.zeros((2, 1)), np.zeros(3))
    with pytest.raises(ValueError, match="without NaN; got 1"):
        model.survival(np.zeros((2, 1)), [0.0, np.nan])


def test_a_flow_that_turns_its_column_round_is_refused():
    class Mirror(torch.nn.Module):
        def forward_and_log_det(self, x, context=None):
            return -x, x.new_zeros(len(x))

    flow = flows.nsf(1)
    flow.bijection = Mirror()
    with pytest.raises(ValueError, match="rising function"):
        check_tails(flow)
