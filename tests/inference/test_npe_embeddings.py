"""NPE on data with a shape: sets of varying number, series, images, networks of one's own, missing values."""

import warnings

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from sbi_flows import NPE, NRE, ConditionalFlow, RatioClassifier
from sbi_flows.distributions import BoxUniform, MultivariateNormal
from sbi_flows.embeddings import SetEmbedding
from sbi_flows.inference.observations import Observations

QUICK = {"flow": "maf", "layers": 1, "hidden": (16,), "max_epochs": 2}


def trials(n, most=20, seed=0):
    """Normal means with a normal prior, 2 to ``most`` trials of unit noise, the others NaN."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=(n, 1))
    x = theta[:, None] + rng.normal(size=(n, most, 1))
    number = rng.integers(2, most + 1, size=n)
    x[np.arange(most) >= number[:, None]] = np.nan
    return theta, x


def test_the_posterior_of_a_set_is_the_conjugate_one():
    """The mean log density of 1000 fresh pairs is within .06 nats of the exact posterior's, whose mean given n trials is sum / (n + 1) and
    whose width (n + 1)^-1/2. One width for any number of trials would lose .11, no use of x at all 1.2; the noise of the mean is .01."""
    theta, x = trials(4000)
    npe = NPE(MultivariateNormal([0.0], [[1.0]]), ConditionalFlow(layers=1, hidden=(32,), max_epochs=12), random_state=0).fit(theta, x)
    assert npe.estimator_.embedding["embedding"] == "set"
    fresh, observed = trials(1000, seed=1)
    number = (~np.isnan(observed)).sum((1, 2))
    exact = norm.logpdf(fresh[:, 0], np.nansum(observed, (1, 2)) / (number + 1), (number + 1) ** -0.5)
    assert -0.02 < (exact - npe.log_prob(fresh, observed)).mean() < 0.06
    x_o = observed[number == 20][0]
    gaps = np.full((20, 1), np.nan)
    gaps[[1, 6, 17]] = x_o[:3]
    np.testing.assert_allclose(npe.log_prob([[0.1]], gaps), npe.log_prob([[0.1]], x_o[[2, 0, 1]]), atol=1e-4)
    assert npe.posterior(x_o).reliability.ok
    assert any("x_o has 1 trials where the simulations had 2 to 20" in reason for reason in npe.posterior(x_o[:1]).reliability.reasons)


def test_units_do_not_matter_to_a_set():
    theta, x = trials(500)
    npes = [NPE(MultivariateNormal([0.0], [[1.0]]), ConditionalFlow(**QUICK), random_state=0).fit(theta, scale * x) for scale in (1.0, 1e6)]
    values = [npe.log_prob(theta[:20], scale * x[:20]) for npe, scale in zip(npes, (1.0, 1e6), strict=True)]
    np.testing.assert_allclose(values[0], values[1], atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "embedding", "kind"),
    [
        ((12, 2), "set", "set"),
        ((12,), "series", "series"),
        ((1, 8, 8), "auto", "image"),
        ((6,), "token", "token"),
        ((200,), "auto", "spectrum"),
    ],
)
def test_shapes_names_and_files(tmp_path, shape, embedding, kind):
    rng = np.random.default_rng(0)
    theta = rng.uniform(size=(300, 1))
    x = theta.reshape(-1, *[1] * len(shape)) + rng.normal(size=(300, *shape))
    x.reshape(300, -1)[:150, -1] = np.nan
    npe = NPE(BoxUniform([0.0], [1.0]), ConditionalFlow(**QUICK), embedding=embedding, random_state=0).fit(theta, x)
    assert npe.estimator_.embedding["embedding"] == kind
    assert npe.sample(x[:3], 5, random_state=0).shape == (3, 5, 1)
    npe.fit(theta, x)  # goes on
    npe.save(tmp_path / "npe")
    again = NPE.load(tmp_path / "npe")
    np.testing.assert_array_equal(again.log_prob(theta, x), npe.log_prob(theta, x))


def test_a_network_of_ones_own_and_its_file(tmp_path):
    class Means(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(2, 3)

        def forward(self, x):
            return self.line(x.nanmean(1))

    theta, x = trials(300)
    x = np.concatenate([x, x], axis=2)
    npe = NPE(MultivariateNormal([0.0], [[1.0]]), ConditionalFlow(**QUICK, n_members=2), embedding=Means(), random_state=0).fit(theta, x)
    npe.save(tmp_path / "npe")
    with pytest.raises(ValueError, match="pass it as embedding="):
        NPE.load(tmp_path / "npe")
    again = NPE.load(tmp_path / "npe", embedding=Means())
    np.testing.assert_array_equal(again.log_prob(theta, x), npe.log_prob(theta, x))


def test_two_embeddings_or_one_of_another_shape_are_refused():
    theta, x = trials(300)
    prior = MultivariateNormal([0.0], [[1.0]])
    with pytest.raises(ValueError, match="an embedding in one place"):
        NPE(prior, ConditionalFlow(embedding=nn.Linear(20, 2)), embedding="set").fit(theta, x)
    with pytest.raises(ValueError, match=r"shape=\(20, 1\), missing=20 columns to match x; got one of shape=\(9, 1\), missing=\[\]"):
        NPE(prior, embedding=SetEmbedding((9, 1))).fit(theta, x)


def test_shared_maps_are_shared():
    rng = np.random.default_rng(0)
    x = np.exp(rng.normal(size=(500, 7, 2))) * [1.0, -1e3]
    observations = Observations(trials=True).fit(x)
    order = rng.permutation(7)
    rows = observations.transform(x).reshape(500, 7, 2)
    np.testing.assert_array_equal(observations.transform(x[:, order]).reshape(500, 7, 2), rows[:, order])
    assert abs(rows.mean(axis=(0, 1))).max() < 0.05 and abs(rows.std(axis=(0, 1)) - 1).max() < 0.05
    again = Observations.from_data(observations.to_data())
    np.testing.assert_array_equal(again.transform(x), observations.transform(x))
    with pytest.raises(ValueError, match="which no simulation missed"):
        observations.rows_of(x[0, :5])
    with pytest.raises(ValueError, match="like one simulation"):
        observations.rows_of(np.zeros((9, 2)))


def test_members_of_a_set_start_apart():
    theta, x = trials(200)
    npe = NPE(MultivariateNormal([0.0], [[1.0]]), ConditionalFlow(**QUICK, n_members=3), random_state=0).fit(theta, x)
    weights = [member.embedding.pool.score.weight for member in npe.estimator_.flow_.flows]
    assert not torch.allclose(weights[0], weights[1])


@pytest.mark.parametrize("members", [1, 3])
def test_ratios_of_sets_do_not_see_the_order(tmp_path, members):
    theta, x = trials(400)
    classifier = RatioClassifier(hidden=(16,), n_contrasts=2, max_epochs=2, dtype="float64", n_members=members)
    nre = NRE(MultivariateNormal([0.0], [[1.0]]), classifier, random_state=0).fit(theta, x)
    assert nre.estimator_.embedding["embedding"] == "set"
    values = nre.log_ratio(theta, x)
    np.testing.assert_allclose(nre.log_ratio(theta, x[:, ::-1]), values, atol=1e-9)
    np.testing.assert_allclose(nre.log_ratio(theta[:1], x[0][~np.isnan(x[0, :, 0])]), values[:1], atol=1e-9)
    assert np.ptp(values) > 0
    nre.save(tmp_path / "nre")
    np.testing.assert_array_equal(NRE.load(tmp_path / "nre").log_ratio(theta, x), values)


def test_ratios_with_a_network_of_ones_own_and_its_file(tmp_path):
    theta, x = trials(300)
    x[np.isnan(x)] = 0.0
    network = nn.Sequential(nn.Flatten(), nn.Linear(20, 3))
    classifier = RatioClassifier(hidden=(16,), n_contrasts=2, max_epochs=20)
    nre = NRE(MultivariateNormal([0.0], [[1.0]]), classifier, embedding=network, random_state=0).fit(theta, x)
    nre.save(tmp_path / "nre")
    with pytest.raises(ValueError, match="pass it as embedding="):
        NRE.load(tmp_path / "nre")
    np.testing.assert_array_equal(NRE.load(tmp_path / "nre", embedding=network).log_ratio(theta, x), nre.log_ratio(theta, x))


def lines(n, seed):
    """A line of unknown place and height, far narrower than the curve of 60 places is long, in noise."""
    rng = np.random.default_rng(seed)
    theta = rng.uniform([0.1, 0.5], [0.9, 2.0], size=(n, 2))
    return theta, theta[:, 1:] * np.exp(-0.5 * ((np.linspace(0, 1, 60) - theta[:, :1]) / 0.02) ** 2) + 0.2 * rng.normal(size=(n, 60))


def test_a_curve_of_few_columns_is_read_as_one():
    """Where the line is cannot be learned from columns taken one by one."""
    theta, x = lines(600, 1)
    estimator = ConditionalFlow(layers=1, hidden=(8,), max_epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        npe = NPE(BoxUniform([0.1, 0.5], [0.9, 2.0]), estimator, random_state=0).fit(theta, x)
    assert npe.estimator_.embedding["embedding"] == "spectrum"
    assert any("60 columns are read as a curve" in note for note in npe.history_.reliability.notes)


@pytest.mark.slow
def test_a_narrow_line_is_found_by_default():
    """Of 2000 simulations the columns alone tell 0.3 nats of a line, a curve's embedding more than 3."""
    (theta, x), fresh = lines(2000, 1), lines(500, 2)
    prior = BoxUniform([0.1, 0.5], [0.9, 2.0])
    estimator = ConditionalFlow(layers=3, hidden=(64, 64), bins=5)
    auto, none = (NPE(prior, estimator, embedding=embedding, random_state=0).fit(theta, x) for embedding in ("auto", None))
    assert auto.log_prob(*fresh).mean() > none.log_prob(*fresh).mean() + 1.5
