"""Targets from other samplers' ingredients, failing functions, and the check of gradients."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sbi_flows import targets
from sbi_flows.distributions import BoxUniform, MultivariateNormal, Product, from_scipy
from sbi_flows.samplers import HMC, NUTS, RandomWalk, run_chains


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


# --- Functions that raise -------------------------------------------------------------------------------------------------------


def picky(theta):
    if theta[0] > 1:
        raise RuntimeError("no atmosphere")
    return -0.5 * theta @ theta


@pytest.mark.parametrize("vectorized", [False, True])
def test_points_that_raise_are_rejected_counted_and_told(vectorized):
    given = []

    def one(theta):
        given.append(1)
        return picky(theta)

    def many(theta):
        given.append(len(theta))
        if (theta[:, 0] > 1).any():
            raise RuntimeError("no atmosphere")
        return -0.5 * (theta**2).sum(-1)

    f = targets.from_numpy(many if vectorized else one, vectorized=vectorized)
    with pytest.warns(UserWarning, match=r"RuntimeError: no atmosphere at \[2\. 0\.\]"):
        values = f(rows([0.0, 1.0], [2.0, 0.0], [3.0, 0.0]))
    assert float(values[0]) == -0.5 and bool(torch.isnan(values[1:]).all())
    f(rows([2.0, 0.0]))  # told once
    # Batches of three and of one; the rows of the first are given again one by one, the only row of the second is not.
    assert f.n_failed == 3 and f.n_evaluations == sum(given) == (7 if vectorized else 4)
    assert "raised at 3 of 4 points" in f.notes[0] and ("3 were evaluated twice" in f.notes[0]) == vectorized
    target = targets.posterior(f, BoxUniform([-5.0, -5.0], [5.0, 5.0]))
    chains = run_chains(RandomWalk(), target, np.zeros((4, 2)), n_steps=50, n_warmup=10, random_state=0)
    assert any("no atmosphere" in note and "were rejected" in note for note in chains.reliability.notes)
    assert chains.samples[..., 0].max() <= 1


def test_gradient_that_raises_is_nan():
    def grad(theta):
        if theta[0] < 0:
            raise FloatingPointError("slope")
        return -theta

    f = targets.from_numpy(lambda theta: -0.5 * theta @ theta, grad, vectorized=False)
    with pytest.warns(UserWarning, match="slope"):
        _, gradient = targets.from_log_prob(f, 1).log_prob_and_grad(rows([1.0], [-1.0]))
    assert float(gradient[0]) == -1 and math.isnan(float(gradient[1]))


def test_broken_functions_are_not_rejections():
    with pytest.raises(ValueError, match=r"each of the 3 points of its first call, the first NameError.*shape \(d,\)"):
        targets.from_numpy(lambda theta: undefined_name, vectorized=False)(torch.zeros(3, 2))  # noqa: F821
    with pytest.raises(ValueError, match=r"shape \(n, d\), many points at once: for a function of one point pass vectorized=False"):
        targets.from_numpy(lambda theta: -0.5 * theta @ theta)(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="return a number; got shape"):
        targets.from_numpy(lambda theta: theta, vectorized=False)(torch.zeros(3, 2))
    with pytest.raises(RuntimeError, match="no atmosphere"):
        targets.from_numpy(picky, vectorized=False, on_error="raise")(torch.full((2, 2), 3.0))
    with pytest.raises(ValueError, match="on_error"):
        targets.from_numpy(picky, on_error="ignore")


@pytest.mark.parametrize("backend", ["threading", pytest.param("loky", marks=pytest.mark.slow)])
def test_jobs_give_the_same_values_and_failures(backend):
    import joblib

    x = torch.linspace(-2, 2, 30, dtype=torch.float64)[:, None]
    here, there = (targets.from_numpy(picky, vectorized=False, n_jobs=n) for n in (None, 2))
    with pytest.warns(UserWarning, match="no atmosphere"):
        expected = here(x)
    with joblib.parallel_config(backend=backend), pytest.warns(UserWarning, match="no atmosphere"):
        torch.testing.assert_close(there(x), expected, equal_nan=True, rtol=0, atol=0)
    assert here.n_failed == there.n_failed > 0


# --- Wrappers -------------------------------------------------------------------------------------------------------------------


def test_emcee_log_prob_with_arguments_and_blobs():
    def one(theta, centre):
        return -0.5 * np.sum((theta - centre) ** 2), theta[0]

    def many(theta, centre):
        return np.column_stack([-0.5 * ((theta - centre) ** 2).sum(-1), theta[:, 0]])

    x = rows([0.0, 1.0], [2.0, 2.0])
    for function, vectorized in ((one, False), (many, True)):
        target = targets.from_emcee(function, 2, args=[1.0], names=["a", "b"], vectorized=vectorized)
        torch.testing.assert_close(target.log_prob(x), rows([-0.5, -1.0])[0])
    with pytest.raises(TypeError, match="function of a parameter vector"):
        targets.from_emcee(3, 2)


def test_dynesty_pair_is_sampled_in_the_cube_and_reported_outside():
    def transform(u, width):
        u *= width  # in place, as transforms often are
        return u - width / 2

    target = targets.from_dynesty(
        transform, lambda t: -0.5 * (t**2).sum(-1), 2, names=["a", "b"], ptform_args=[12.0], vectorized=True
    )
    start = target.prior.sample(64, torch.Generator().manual_seed(0))
    chains = run_chains(RandomWalk(), target, start, n_steps=1500, n_warmup=500, random_state=0)
    assert chains.names == ("a", "b") and chains.log_posterior is None
    flat = chains.samples.reshape(-1, 2)
    # Some 5000 independent draws: four standard errors of a mean are 0.06, of a standard deviation 0.04; chance 5e-4 for the four.
    assert np.abs(flat.mean(0)).max() < 0.06 and np.abs(flat.std(0) - 1).max() < 0.045
    np.testing.assert_allclose(chains.log_likelihood.ravel(), -0.5 * (flat**2).sum(-1), rtol=0, atol=1e-9)


def test_periodic_columns_of_the_cube_go_round():
    target = targets.from_dynesty(lambda u: 2 * np.pi * u, lambda t: np.cos(t[0]), 1, periodic=[0])
    torch.testing.assert_close(target.log_prob(rows([0.1], [1.1], [-0.9])), rows([1, 1, 1])[0] * math.cos(0.2 * math.pi))
    torch.testing.assert_close(target.recorded(rows([1.25])), rows([math.pi / 2]))
    assert targets.unconstrained(target).support == [("circular", -math.pi, math.pi)]
    with pytest.raises(ValueError, match="periodic to hold columns 0 to 0; got 1"):
        targets.from_dynesty(lambda u: u, lambda t: 0.0, 1, periodic=[1])
    with pytest.raises(ValueError, match=r"prior_transform\(u\) of shape \(2,\)"):
        targets.from_dynesty(lambda u: u[:1], lambda t: 0.0, 2).log_prob(rows([0.5, 0.5]))


def test_cube_transform_gives_the_prior():
    import scipy.stats

    prior = Product([
        BoxUniform([2.0], [4.0]),
        MultivariateNormal([1.0, 0.0], [[2.0, 0.5], [0.5, 1.0]]),
        from_scipy([scipy.stats.gamma(2)]),
    ])
    cube = torch.rand(200, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.98 + 0.01
    transform = targets.cube_transform(prior)
    # The density of what a map makes of uniform points is one over its Jacobian.
    jacobian = torch.stack([
        (transform(cube + step) - transform(cube - step)) / 2e-6 for step in 1e-6 * torch.eye(4, dtype=torch.float64)
    ], dim=-1)
    torch.testing.assert_close(prior.log_prob(transform(cube)), -torch.linalg.slogdet(jacobian)[1], rtol=0, atol=1e-5)
    ends = transform(rows([0.0] * 4, [1.0] * 4))
    assert bool(torch.isfinite(ends[:, :3]).all())
    with pytest.raises(TypeError, match="from_dynesty"):
        targets.cube_transform(object())


class FakePrior:
    """The part of a bilby prior that is used: uniform."""

    def __init__(self, minimum, maximum, boundary=None):
        self.minimum, self.maximum, self.boundary, self.peak = minimum, maximum, boundary, minimum

    def rescale(self, u):
        return self.minimum + u * (self.maximum - self.minimum)

    def ln_prob(self, value):
        return -math.log(self.maximum - self.minimum) if self.minimum <= value <= self.maximum else -math.inf


class FakePriorDict(dict):
    """The part of bilby's PriorDict that is used, with a constraint a + b > 1."""

    fixed_keys = ("c",)
    non_fixed_keys = ("a", "b")
    constraint_keys = ("sum",)

    def rescale(self, keys, theta):
        return [self[key].rescale(u) for key, u in zip(keys, theta, strict=True)]

    def ln_prob(self, sample):
        inside = sample["a"] + sample["b"] > 1
        return sum(self[key].ln_prob(value) for key, value in sample.items()) if inside else -math.inf


def fake_priors():
    return FakePriorDict(a=FakePrior(0.0, 1.0), b=FakePrior(0.0, 2.0, "periodic"), c=FakePrior(7.0, 7.0))


def test_bilby_likelihood_old_and_new():
    class New:
        def log_likelihood(self, parameters=None):
            return -(parameters["a"] ** 2) - parameters["b"] * parameters["c"]

    class Old:
        def __init__(self):
            self.parameters = {}

        def log_likelihood(self):
            return New().log_likelihood(self.parameters)

    for likelihood in (New(), Old()):
        target = targets.from_bilby(likelihood, fake_priors())
        assert target.names == ("a", "b") and target.support == [(0.0, 1.0), ("circular", 0.0, 2.0)]
        values = target.log_prob(rows([0.5, 1.0], [0.1, 0.1]))
        assert float(values[0]) == pytest.approx(-0.25 - 7 - math.log(2)) and float(values[1]) == -math.inf
    draws = target.prior.sample(300, torch.Generator().manual_seed(0))
    assert bool((draws.sum(1) > 1).all()) and float(draws[:, 1].max()) > 1.5
    torch.testing.assert_close(draws, target.prior.sample(300, torch.Generator().manual_seed(0)), rtol=0, atol=0)


def test_bilby_wrong_kinds():
    with pytest.raises(TypeError, match="bilby likelihood"):
        targets.from_bilby(lambda x: x, fake_priors())
    likelihood = SimpleNamespace(log_likelihood=lambda parameters: 0.0)
    with pytest.raises(TypeError, match="bilby PriorDict"):
        targets.from_bilby(likelihood, 3)
    all_fixed = fake_priors()
    all_fixed.non_fixed_keys = ()
    with pytest.raises(ValueError, match="at least one parameter that is not fixed"):
        targets.from_bilby(likelihood, all_fixed)
    narrow = fake_priors()
    narrow.ln_prob = lambda sample: -math.inf
    with pytest.raises(ValueError, match="Only 0 of"):
        targets.from_bilby(likelihood, narrow).prior.sample(2, torch.Generator())


@pytest.mark.parametrize(("module", "make"), [
    ("bilby.core.prior", lambda: targets.from_bilby(SimpleNamespace(log_likelihood=lambda parameters: 0.0), {"a": FakePrior(0, 1)})),
    ("cobaya.model", lambda: targets.from_cobaya({"likelihood": {}})),
])
def test_absent_packages_are_named(monkeypatch, module, make):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'sbi_flows\[" + module.split(".")[0]):
        make()


class FakeCobayaPrior:
    external = ("band",)

    def logps(self, x):
        inside = 0 <= x[0] <= 2
        return [-math.log(2) - 0.5 * x[1] ** 2 if inside else -math.inf, -x[0]]

    def sample(self, n=1, ignore_external=False, random_state=None):
        assert ignore_external
        return np.column_stack([random_state.uniform(0, 2, n), random_state.normal(size=n)])

    def bounds(self, confidence=1, confidence_for_unbounded=1):
        return np.array([[0.0, 2.0], [-np.inf, np.inf]])


def test_cobaya_model_with_an_external_prior():
    model = SimpleNamespace(
        prior=FakeCobayaPrior(),
        parameterization=SimpleNamespace(
            sampled_params=lambda: {"phase": math.nan, "b": math.nan},  # as cobaya 3.6: its infos are the next
            sampled_params_info=lambda: {"phase": {"prior": [0, 2], "periodic": True}, "b": {"prior": {"dist": "norm"}}},
        ),
        loglike=lambda theta, return_derived=True: -float(theta @ theta),
    )
    target = targets.from_cobaya(model)
    assert target.names == ("phase", "b") and target.support == [("circular", 0.0, 2.0), "real"]
    assert float(target.log_prob(rows([1.0, 2.0]))) == pytest.approx(-math.log(2) - 2 - 5 - 1)
    assert float(target.log_likelihood(rows([1.0, 2.0]))) == pytest.approx(-6)  # external priors are part of it
    assert target.prior.sample(3, torch.Generator().manual_seed(0)).shape == (3, 2)
    with pytest.raises(TypeError, match="cobaya model"):
        targets.from_cobaya(object())


# --- Gradients ------------------------------------------------------------------------------------------------------------------


def with_gradient(grad):
    return targets.from_log_prob(targets.from_numpy(lambda x: -0.5 * (x**2 * [1.0, 1e6, 1.0]).sum(-1), grad), 3, names=["m", "r", "T"])


def test_right_gradients_pass():
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets.check_gradient(with_gradient(lambda x: -x * [1.0, 1e6, 1.0]), x)
    bounded = targets.posterior(lambda t: -t.abs().sum(-1), BoxUniform([-1.0], [2.0]))  # a kink at zero
    targets.check_gradient(bounded, torch.linspace(-0.99, 1.99, 7, dtype=torch.float64)[:, None])
    targets.check_gradient(targets.unconstrained(bounded), torch.randn(5, 1, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("scale", [1e-21, 1e-6, 1.0, 1e6])
def test_units_do_not_decide_whether_a_gradient_is_right(scale):
    x = scale * torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = targets.from_log_prob(lambda x: -2 * torch.log(torch.cosh(x / scale)).sum(-1), 2)
    targets.check_gradient(target, x)
    wrong = targets.from_numpy(lambda x: -2 * np.log(np.cosh(x / scale)).sum(-1), lambda x: -2.2 * np.tanh(x / scale) / scale)
    with pytest.raises(ValueError, match=r"\(1\.1 times\)"):
        targets.check_gradient(targets.from_log_prob(wrong, 2), x)


@pytest.mark.parametrize(("grad", "message"), [
    (lambda x: -x * [1.0, 1e6, 2.0], r"wrong in 'T': at 5 of 5 points.*\(2 times\)"),
    (lambda x: -x * [1.0, 1e6, 1.01], "wrong in 'T'"),
    (lambda x: -x * [1e-3, 1e3, 1.0], "wrong in 'm', 'r'"),
    (lambda x: x * np.nan, "wrong in 'm', 'r', 'T'"),
])
def test_wrong_gradients_are_named(grad, message):
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=message):
        targets.check_gradient(with_gradient(grad), x)


@pytest.mark.parametrize("kernel", [NUTS(), HMC()])
def test_wrong_gradients_are_told_in_the_users_parameters(kernel):
    """A box and a half-line, which are sampled on the real line: points, slopes and factor are those of the user's columns."""
    wrong = targets.from_numpy(lambda x: -0.5 * (x**2).sum(1), grad=lambda x: x * [1.0, -1.0])
    start = np.random.default_rng(0).uniform(2.0, 4.0, (8, 2))
    box = BoxUniform([-5.0] * 2, [5.0] * 2, names=["a", "b"])
    for target in (targets.posterior(wrong, box), targets.from_log_prob(wrong, 2, names=["a", "b"], support=[(0, torch.inf), (-9, 9)])):
        with pytest.raises(ValueError, match=r"wrong in 'a': .*\(-1 times\)") as told:
            run_chains(kernel, target, start, n_steps=10, n_warmup=10, random_state=0)
        numbers = r"such as \(([-\d.e]+), [-\d.e]+\), it is ([-\d.e]+) where differences of the density give ([-\d.e]+)"
        point, got, expected = map(float, re.search(numbers, str(told.value)).groups())
        assert got == pytest.approx(point, rel=1e-3) and expected == pytest.approx(-point, rel=1e-3)


def test_gradient_check_needs_points_with_density():
    with pytest.raises(ValueError, match="draws of the prior"):
        targets.check_gradient(targets.posterior(lambda t: -t.sum(-1), BoxUniform([-1.0], [2.0])), torch.full((2, 1), 9.0))


# --- The real packages, where they are: pytest -m slow tests/test_adapters.py ---------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_real_bilby():
    prior = pytest.importorskip("bilby").core.prior
    likelihood_class = pytest.importorskip("bilby").core.likelihood.Likelihood

    class Gaussian(likelihood_class):
        def log_likelihood(self, parameters=None):
            return -0.5 * ((parameters["m"] - parameters["offset"]) / 0.1) ** 2

        def log_likelihood_ratio(self, parameters=None):
            return self.log_likelihood(parameters)

    angle = prior.Uniform(0, 2 * np.pi, boundary="periodic")
    target = targets.from_bilby(Gaussian(), {"m": prior.Uniform(0, 2), "phase": angle, "offset": 1.3})
    assert target.support == [(0.0, 2.0), ("circular", 0.0, 2 * math.pi)]
    assert float(target.log_prob(rows([1.3, 1.0]))) == pytest.approx(-math.log(2) - math.log(2 * math.pi))
    start = target.prior.sample(8, torch.Generator().manual_seed(0))
    chains = run_chains(RandomWalk(), target, start, n_steps=1500, n_warmup=500, random_state=0)
    assert abs(chains.samples[..., 0].mean() - 1.3) < 0.02
    ordered = prior.PriorDict(
        {"m1": prior.Uniform(0, 2), "m2": prior.Uniform(0, 2), "q": prior.Constraint(0, 1)},
        conversion_function=lambda p: {**p, "q": p["m2"] / p["m1"]},
    )
    half = targets.from_bilby(Gaussian(), ordered).prior
    draws = half.sample(100, torch.Generator().manual_seed(0))
    assert bool((draws[:, 1] < draws[:, 0]).all())
    assert half.log_prob(draws).exp().mean() == pytest.approx(0.5, rel=0.02)  # bilby measures the area, 2, by drawing
    conditional = prior.ConditionalPriorDict({
        "a": prior.Uniform(0, 1),
        "b": prior.ConditionalUniform(lambda reference, a: {"minimum": 0, "maximum": a}, name="b", minimum=0, maximum=1),
    })
    triangle = targets.from_bilby(Gaussian(), conditional).prior
    draws = triangle.sample(100, torch.Generator().manual_seed(0))
    torch.testing.assert_close(triangle.log_prob(draws), -draws[:, 0].log())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_real_cobaya():
    pytest.importorskip("cobaya")
    info = {
        "likelihood": {"g": "lambda a, b: -0.5 * (a / 0.5)**2 - 0.5 * ((b - 1) / .1)**2"},
        "params": {"a": {"prior": [-5, 5]}, "b": {"prior": {"dist": "norm", "loc": 0, "scale": 1}}},
    }
    target = targets.from_cobaya(info)
    assert target.names == ("a", "b") and target.support == [(-5.0, 5.0), "real"]
    assert float(target.log_prob(rows([0.0, 1.0]))) == pytest.approx(-math.log(10) - 0.5 - 0.5 * math.log(2 * math.pi))
    with_external = targets.from_cobaya({**info, "prior": {"band": "lambda a, b: -a**2"}})
    assert float(with_external.log_likelihood(rows([1.0, 1.0]))) == pytest.approx(-3)
