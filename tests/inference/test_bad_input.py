"""What users get wrong with the inference methods, and what they are told: what was expected, what came, what to do."""

import numpy as np
import pytest
import torch

from sbi_flows import NLE, NPE, NRE, sequential, simulate
from sbi_flows.distributions import BoxUniform, Choice, MultivariateNormal, Product
from sbi_flows.estimators import ConditionalFlow

PRIOR = BoxUniform([0.0, 0.0], [1.0, 1.0], names=["a", "b"])
THETA = PRIOR.sample(300, torch.Generator().manual_seed(3)).numpy()
X = np.column_stack([THETA + 0.1 * np.random.default_rng(0).normal(size=THETA.shape), THETA[:, 0]])


def simulator(theta, rng):
    return theta + rng.normal(size=2)


@pytest.fixture(scope="module")
def npe():
    return NPE(PRIOR, ConditionalFlow(layers=1, hidden=(8,), max_epochs=1), random_state=0).fit(THETA, X)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (BoxUniform, r"Expected a prior; got the class BoxUniform. Make one: BoxUniform\(...\)"),
        (([0, -1], [10, 1]), r"got numbers. For a uniform one between bounds pass BoxUniform\(low="),
        ([(0, 1), (0, 1)], r"got numbers. .* pass BoxUniform\(low="),
        (None, "Expected a prior: .* got NoneType"),
    ],
)
def test_what_is_no_prior(prior, message):
    with pytest.raises(TypeError, match=message):
        NPE(prior).fit(THETA, X)


def test_ends_and_names_of_priors():
    with pytest.raises(ValueError, match=r"as many ends in low as in high; got 3 and 2"):
        BoxUniform([0, 0, 0], [1, 1])
    assert BoxUniform([0, 0, 0], 1).features == 3
    with pytest.raises(ValueError, match=r"names as a list, one a column; got the text 'ab'"):
        BoxUniform([0, 0], [1, 1], names="ab")


def test_priors_show_what_they_are():
    assert repr(PRIOR) == "BoxUniform(a: (0.0, 1.0), b: (0.0, 1.0))"
    assert repr(Product([PRIOR, BoxUniform(0, 2, names=["c"])])) == "Product(a: (0.0, 1.0), b: (0.0, 1.0), c: (0.0, 2.0))"
    assert repr(MultivariateNormal(np.zeros(8), np.eye(8))).endswith("column 5: 0 +- 1, and 2 more)")
    assert repr(Choice([1, 2])) == "Choice(column 0: one of 2 values)"


@pytest.mark.parametrize(
    ("theta", "x", "message"),
    [
        (np.zeros((0, 2)), np.zeros((0, 3)), r"got none: theta of shape \(0, 2\)"),
        ([], [], "Expected simulations; got none"),
        (THETA, [[1, 2], [3]], "x as an array; got a list whose items have different lengths. Pad"),
        ([[1, 2], [3]], X, "theta as an array; got a list whose items have different lengths"),
        (X, THETA, r"Expected fit\(theta, x\) .* Are they the wrong way around"),
    ],
    ids=["empty", "lists", "ragged", "ragged-theta", "swapped"],
)
@pytest.mark.parametrize("method", [NPE, NLE, NRE])
def test_pairs_that_are_none(method, theta, x, message):
    with pytest.raises(ValueError, match=message):
        method(PRIOR).fit(theta, x)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (NPE(PRIOR, "cnf"), r"estimator to be a ConditionalFlow or None; got 'cnf'. Make one, such as ConditionalFlow\(flow=\"cnf\"\)"),
        (NLE(PRIOR, ConditionalFlow), "estimator to be a ConditionalFlow or None; got the class ConditionalFlow"),
        (NRE(PRIOR, "balanced"), r"classifier to be a RatioClassifier or None; got 'balanced'. .*RatioClassifier\(loss=\"balanced\"\)"),
    ],
)
def test_what_is_no_estimator(method, message):
    with pytest.raises(TypeError, match=message):
        method.fit(THETA, X)


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda batch: batch[5], IndexError, "number of an observation below 3; got 5"),
        (lambda batch: batch[0:2], TypeError, r"the number of one observation; got slice"),
        (lambda batch: batch[0].marginal(0), ValueError, "parameters a, b, each once; got 0. Pass names, not numbers: 0 is 'a'"),
        (lambda batch: batch[0].conditional({1: 0.5}), ValueError, "not numbers: 1 is 'b'"),
        (lambda batch: batch[0].conditional(0.5), TypeError, r'mapping of name to value such as \{"a": 1.0\}; got 0.5'),
        (lambda batch: batch[0].conditional({"a": "x"}), ValueError, "finite number for a to be held at; got 'x'"),
    ],
)
def test_what_posteriors_are_asked(npe, ask, error, message):
    with pytest.raises(error, match=message):
        ask(npe.posterior(X[:3]))


def test_observations_are_counted_from_the_end_too(npe):
    batch = npe.posterior(X[:3])
    np.testing.assert_array_equal(batch[-1].x_o, X[2])
    np.testing.assert_array_equal(batch[np.int64(1)].x_o, X[1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((simulator, NPE(PRIOR), X[0, :2]), TypeError, r"Expected sequential\(NPE\(prior\), simulator, x_o.* got function, NPE, ndarray"),
        ((NPE(PRIOR), X[0, :2], simulator), TypeError, "got NPE, ndarray, function"),
        ((NPE, simulator, X[0, :2]), TypeError, "got the class NPE, function, ndarray"),
    ],
)
def test_arguments_of_sequential_in_another_order(arguments, error, message):
    with pytest.raises(error, match=message):
        sequential(*arguments)


@pytest.mark.parametrize(
    ("x_o", "message"),
    [
        (np.zeros(5), r"x_o of shape \(2,\) like one simulation; got \(5,\)"),
        (np.zeros((5, 2)), "Expected a single observation; got 5"),
        ([np.inf, 1.0], "Expected finite x_o"),
    ],
)
def test_sequential_looks_at_x_o_before_it_simulates(x_o, message):
    calls = []

    def counted(theta, rng):
        calls.append(theta)
        return simulator(theta, rng)

    with pytest.raises(ValueError, match=message):
        sequential(NPE(PRIOR), counted, x_o, 2, 1000)
    assert len(calls) <= 1


def test_simulate_of_nothing():
    with pytest.raises(TypeError, match=r"Expected simulate\(simulator, theta\) with a function first; got a ndarray"):
        simulate(THETA, simulator)
    with pytest.raises(ValueError, match="at least one row of theta; got none"):
        simulate(lambda theta: theta, np.zeros((0, 2)))


def test_messages_call_things_by_their_names():
    """Not "y", nor the number of an internal column."""
    whole = np.column_stack([np.round(10 * THETA[:, 0]) / 10, THETA[:, 1]])
    with pytest.warns(UserWarning, match="theta: 'a' has only 11 distinct values"):
        NPE(PRIOR, ConditionalFlow(layers=1, hidden=(8,), max_epochs=1), random_state=0).fit(whole, X)
    twice = np.column_stack([np.ones(300), X, X[:, 0]])
    with pytest.raises(ValueError, match=r"columns of x that are independent of each other; 'x\[1\]', 'x\[4\]' are copies"):
        NLE(PRIOR).fit(THETA, twice)
    edge = THETA.copy()
    edge[0] = [0.0, 1.0]
    nre = NRE(PRIOR, random_state=0).fit(edge, X)
    assert "theta: 1 values of 'a' lie exactly on the edge" in str(nre.history_.reliability)
