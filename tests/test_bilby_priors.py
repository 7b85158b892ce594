"""bilby's joint priors and those that are refused, on doubles of its classes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sbi_flows import targets

FLAT = SimpleNamespace(log_likelihood=lambda parameters: 0.0)


class Part:
    """Of a joint prior: bilby's answers with nothing but for the last of the parts."""

    def __init__(self, dist):
        self.dist, self.minimum, self.maximum = dist, -np.inf, np.inf

    def rescale(self, u):
        return []

    def ln_prob(self, value):
        return 0.0


class Shifted:
    """Uniform on unit squares at each mode; the parameters are b and a, in this order."""

    names, nmodes, cumweights = ("b", "a"), 2, np.array([0.25, 1.0])

    def __init__(self):
        self.bounds = dict.fromkeys(self.names, (-np.inf, np.inf))

    def rescale(self, u, mode):
        return np.squeeze(u + np.array([10.0 + 5 * mode, 20.0]))


class Categorical:
    is_fixed = False

    def ln_prob(self, value):
        return 0.0


class Priors(dict):
    fixed_keys = constraint_keys = ()

    @property
    def non_fixed_keys(self):
        return list(self)

    def rescale(self, keys, theta):
        return [self[key].rescale(u) for key, u in zip(keys, theta, strict=True)]

    def ln_prob(self, sample):
        return 0.0


def test_joint_columns_are_drawn_together_in_their_own_order():
    dist = Shifted()
    target = targets.from_bilby(FLAT, Priors(a=Part(dist), b=Part(dist)))
    draws = target.prior.sample(400, torch.Generator().manual_seed(0))
    assert target.names == ("a", "b") and bool(((draws[:, 0] - 20.5).abs() <= 0.5).all())
    first, second = ((draws[:, 1] >= low) & (draws[:, 1] <= low + 1) for low in (10, 15))
    assert bool((first | second).all()) and abs(float(first.double().mean()) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)  # chance 6e-5
    assert target.prior.sample(1, torch.Generator().manual_seed(0)).shape == (1, 2)


def test_priors_without_a_density_are_named():
    dist = Shifted()
    for priors, match in (
        (Priors(b="a"), "prior of 'b'; got the text 'a'"),
        (Priors(b={}), "bilby prior or a number for 'b'; got a dict"),
        (Priors(b=Categorical()), "'b' is discrete"),
        (Priors(a=Part(dist)), "not that of 'b' in these priors"),
        (Priors(a=Part(SimpleNamespace(names=["a"]))), "is no Gaussian one"),
    ):
        with pytest.raises(ValueError, match=match):
            targets.from_bilby(FLAT, priors)
    dist.bounds["a"] = (0.0, np.inf)
    with pytest.raises(ValueError, match="cut off in 'a'"):
        targets.from_bilby(FLAT, Priors(a=Part(dist), b=Part(dist)))
