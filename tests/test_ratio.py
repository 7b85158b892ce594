"""Ratio losses have the ratio as their optimum, and the classifier finds a known one."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from torch import nn

from sbi_flows.estimators import RatioClassifier
from sbi_flows.losses import Batch, balanced, contrastive


def pairs(n, seed=0, noise=0.5):
    """theta ~ N(0, 1), x = theta + N(0, noise^2), in two independent columns."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=(n, 2))
    return theta, theta + noise * rng.normal(size=(n, 2))


def exact(theta, x, noise=0.5):
    total = 1 + noise**2
    terms = -0.5 * ((x - theta) / noise) ** 2 + 0.5 * x**2 / total - 0.5 * np.log(noise**2 / total)
    return terms.sum(1)


class Tilted:
    """The exact ratio, off by a constant and by a tilt in theta."""

    def __init__(self, offset=0.0, tilt=0.0):
        self.offset, self.tilt = offset, tilt

    def encode(self, theta, x):
        return theta, x

    def compare(self, theta, x):
        right = torch.from_numpy(exact(theta.numpy(), x.numpy()))
        return right + self.offset + self.tilt * theta[:, 0]


@pytest.mark.parametrize("loss", [contrastive(1), contrastive(10), balanced()], ids=["one", "ten", "balanced"])
@pytest.mark.parametrize("wrong", [{"offset": 0.3}, {"offset": -0.3}, {"tilt": 0.3}, {"tilt": -0.3}])
def test_the_exact_ratio_minimises_the_loss(loss, wrong):
    """On 20000 pairs, the difference of the mean losses against its standard error: 4 of them, false alarms 3e-5 each."""
    theta, x = pairs(20_000)
    batch = Batch(torch.from_numpy(theta), torch.from_numpy(x))
    right, off = loss(Tilted(), batch, torch.Generator()), loss(Tilted(**wrong), batch, torch.Generator())
    difference = (off - right).numpy()
    assert difference.mean() > 4 * difference.std() / math.sqrt(len(difference))


def test_losses_give_one_number_a_row_also_for_tiny_batches():
    for n in (1, 2, 7):
        theta, x = (torch.from_numpy(part) for part in pairs(n))
        for loss in (contrastive(10), balanced()):
            values = loss(Tilted(), Batch(theta, x), torch.Generator())
            assert values.shape == (n,) and bool(torch.isfinite(values).all())
    with pytest.raises(ValueError, match="context"):
        contrastive()(Tilted(), Batch(torch.zeros(3, 2)), torch.Generator())


@pytest.fixture(scope="module")
def fitted():
    theta, x = pairs(2000)
    return RatioClassifier(n_contrasts=4, random_state=0).fit(theta, x)


def test_a_known_ratio_is_found(fitted):
    """The exact values have a spread of 0.9 nats, which an untrained network would miss; the error must be below a third of that."""
    theta, x = pairs(2000, seed=1)
    found, right = fitted.log_ratio(theta, x), exact(theta, x)
    assert np.std(found - right) < 0.33 * np.std(right)
    assert abs(np.mean(found - right)) < 0.1
    np.testing.assert_allclose(fitted.log_ratio(theta[:5], x[:1]), fitted.log_ratio(theta[:5], np.repeat(x[:1], 5, axis=0)))


def test_same_seed_same_bits_and_going_on(fitted):
    theta, x = pairs(300)
    model = RatioClassifier(max_epochs=3, random_state=0, warm_start=True)
    first = model.fit(theta, x).log_ratio(theta, x)
    np.testing.assert_array_equal(clone(model).fit(theta, x).log_ratio(theta, x), first)
    assert (model.fit(theta, x).log_ratio(theta, x) != first).any()
    with pytest.raises(ValueError, match="warm_start=False"):
        model.fit(theta, x[:, :1])


def test_ensembles_embeddings_and_float64():
    theta, x = pairs(300)
    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    model = RatioClassifier(n_members=3, embedding=network, dtype="float64", max_epochs=2, random_state=0).fit(theta, x)
    points, given = torch.from_numpy(theta[:4]), torch.from_numpy(x[:4])
    each = torch.stack([net.log_ratio(points, given) for net in model.net_.nets])
    assert each.dtype == torch.float64
    expected = torch.logsumexp(each, 0) - math.log(3)
    np.testing.assert_allclose(model.log_ratio(theta[:4], x[:4]), expected.numpy(), rtol=1e-12)


def test_angles_repeat_and_edges_end():
    rng = np.random.default_rng(0)
    theta = np.stack([rng.uniform(-math.pi, math.pi, 300), rng.random(300)], axis=1)
    model = RatioClassifier(support=["circular", (0, 1)], max_epochs=2, random_state=0).fit(theta, np.cos(theta))
    here = model.log_ratio([[3.0, 0.5]], [[0.1, 0.2]])
    np.testing.assert_allclose(model.log_ratio([[3.0 - 2 * math.pi, 0.5]], [[0.1, 0.2]]), here, rtol=1e-5)
    assert model.log_ratio([[3.0, 1.5]], [[0.1, 0.2]])[0] == -math.inf


def test_units_do_not_matter(fitted):
    theta, x = pairs(500)
    scale, shift = np.array([1e6, 1e-6]), np.array([1e9, 3.0])
    plain = RatioClassifier(max_epochs=3, random_state=0).fit(theta, x).log_ratio(theta, x)
    moved = RatioClassifier(max_epochs=3, random_state=0).fit(theta * scale + shift, x * scale).log_ratio(theta * scale + shift, x * scale)
    np.testing.assert_allclose(moved, plain, atol=2e-2)


BAD = {
    "loss": (lambda t, x: RatioClassifier(loss="nre").fit(t, x), "loss to be one of 'contrastive', 'balanced'"),
    "lengths": (lambda t, x: RatioClassifier().fit(t, x[:5]), "as many of theta as of x; got 20 and 5"),
    "missing": (lambda t, x: RatioClassifier().fit(t, np.where(x > 1, np.nan, x)), "finite values in x"),
    "outside": (lambda t, x: RatioClassifier(support=(0, 1)).fit(t, x), "inside its declared support"),
    "one axis": (lambda t, x: RatioClassifier().fit(t[0], x), "theta of shape"),
    "embedding": (lambda t, x: RatioClassifier(embedding="cnn").fit(t, x), "'auto', None or a torch module"),
    "name": (lambda t, x: RatioClassifier(support={"c": (0, 1)}).fit(pd.DataFrame(t, columns=["a", "b"]), x), "not there: c"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call(*pairs(20))


def test_rows_of_x_must_match(fitted):
    with pytest.raises(ValueError, match="one row, or one for each of the 3"):
        fitted.log_ratio(np.zeros((3, 2)), np.zeros((2, 2)))


def test_columns_in_another_order_are_refused(tmp_path):
    theta, x = pairs(300)
    theta, x = pd.DataFrame(theta, columns=["a", "b"]), pd.DataFrame(x, columns=["u", "v"])
    model = RatioClassifier(max_epochs=1, random_state=0).fit(theta, x)
    assert list(model.feature_names_in_) == ["a", "b"] and list(model.condition_names_) == ["u", "v"]
    model.save(tmp_path / "model")
    for one in (model, RatioClassifier.load(tmp_path / "model")):
        np.testing.assert_array_equal(one.log_ratio(theta, x), one.log_ratio(theta.to_numpy(), x.to_numpy()))
        with pytest.raises(ValueError, match=r"Expected theta with the columns of the fit, a, b; got in another order: b, a.*\['a', 'b'\]"):
            one.log_ratio(theta[["b", "a"]], x)
        with pytest.raises(ValueError, match="Expected x with the columns of the fit, u, v; got others: u, w"):
            one.log_ratio(theta, x.rename(columns={"v": "w"}))
    with pytest.raises(ValueError, match="in another order"):
        model.set_params(warm_start=True).fit(theta[["b", "a"]], x)
    model.set_params(warm_start=False).fit(theta[["b", "a"]], x.to_numpy())
    assert list(model.feature_names_in_) == ["b", "a"] and not hasattr(model, "condition_names_")


def test_files_without_names_are_read(tmp_path):
    theta, x = pairs(300)
    model = RatioClassifier(max_epochs=1, random_state=0).fit(theta, x)
    facts = {"n_features_in": 2, "n_conditions": 2}
    again = RatioClassifier.from_facts(model.net_, model.history_, {}, facts)
    np.testing.assert_array_equal(again.log_ratio(pd.DataFrame(theta), x), model.log_ratio(theta, x))
