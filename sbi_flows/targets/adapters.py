"""Targets from what other samplers are given: an emcee log-probability, a bilby likelihood, a cobaya model."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from sbi_flows._random import numpy_generator, rand
from sbi_flows.bijections.support import SupportEntry
from sbi_flows.distributions import from_pair
from sbi_flows.targets.base import Target, from_log_prob, posterior
from sbi_flows.targets.bilby_priors import check_priors, joint_columns, joint_draws
from sbi_flows.targets.numpy_functions import from_numpy

_MOST_ROUNDS = 200  # of drawing from a prior with constraints, most of whose draws may be refused


def from_emcee(
    log_prob_fn: Callable,
    features: int,
    *,
    args: Sequence[Any] = (),
    names: Sequence[str] | None = None,
    support: Any = None,
    vectorized: bool = False,
    n_jobs: int | None = None,
) -> Target:
    """A target from the log-probability that an ``emcee.EnsembleSampler`` takes.

    Parameters
    ----------
    log_prob_fn : callable
        ``(d,)``, then ``args``, to ln p or to a tuple of ln p and blobs, which are dropped. Where it raises, the point is rejected and
        counted (:func:`from_numpy`).
    features : int
    args : sequence
    names : sequence of str, optional
    support : optional
        Ends of the columns, as in :class:`Target`. A function that returns -inf outside needs none, but flows and gradients do much
        better with them.
    vectorized : bool
        As emcee's ``vectorize``: the function takes many rows.
    n_jobs : int, optional
        Processes that share the rows of a batch.

    Examples
    --------
    >>> def log_prob(theta, centre):
    ...     return -0.5 * np.sum((theta - centre) ** 2), {"a": "blob"}
    >>> from_emcee(log_prob, 2, args=[1.0]).log_prob(torch.zeros(1, 2))
    tensor([-1.], dtype=torch.float64)
    """
    if not callable(log_prob_fn):
        raise TypeError(f"Expected log_prob_fn to be a function of a parameter vector; got a {type(log_prob_fn).__name__}.")

    def evaluate(theta: np.ndarray) -> Any:
        value = log_prob_fn(theta, *args)
        # With blobs a vectorised function returns one column more a blob, any other a tuple.
        if isinstance(value, tuple):
            return value[0]
        return value[:, 0] if vectorized and np.ndim(value) == 2 else value

    function = from_numpy(evaluate, vectorized=vectorized, n_jobs=n_jobs)
    return from_log_prob(function, features, names=names, support=support)


def from_bilby(likelihood: Any, priors: Any, *, n_jobs: int | None = None) -> Target:
    """The posterior of a bilby likelihood and its priors.

    Fixed parameters (numbers, delta functions) are passed on to the likelihood; the others are the columns, by name, with bilby's own
    ends and periodic boundaries. Conditional priors, constraints and joint Gaussian priors are honoured.

    Parameters
    ----------
    likelihood : bilby.core.likelihood.Likelihood
        With ``log_likelihood(parameters)``, or the older ``parameters`` dictionary and ``log_likelihood()``.
    priors : bilby.core.prior.PriorDict
        A plain dict of bilby priors is made into one.
    n_jobs : int, optional
        Processes that share the rows of a batch.

    Raises
    ------
    ImportError
        If a plain dict of priors is given and bilby is not installed.
    TypeError, ValueError
        If these are no likelihood and priors, no parameter is free, or a prior has no density that a target could have: those of discrete
        values, a mere name of another parameter, joint ones that are cut off or no Gaussians.

    Examples
    --------
    >>> target = from_bilby(likelihood, priors)                                                             # doctest: +SKIP
    >>> chains = run_chains(RandomWalk(), target, draws, n_steps=2000, n_warmup=500)                        # doctest: +SKIP

    References
    ----------
    Ashton et al. 2019, "BILBY: a user-friendly Bayesian inference library for gravitational-wave astronomy", ApJS 241, 27.
    """
    if not callable(getattr(likelihood, "log_likelihood", None)):
        raise TypeError(f"Expected a bilby likelihood, with a method log_likelihood; got a {type(likelihood).__name__}.")
    priors = _prior_dict(priors)
    check_priors(priors)
    names = list(priors.non_fixed_keys)
    if not names:
        raise ValueError("Expected priors with at least one parameter that is not fixed; all of them are.")
    joints = joint_columns(priors, names)
    fixed = {key: float(priors[key].peak) for key in priors.fixed_keys}
    takes_parameters = bool(inspect.signature(likelihood.log_likelihood).parameters)

    def log_likelihood(theta: np.ndarray) -> float:
        parameters = {**dict(zip(names, theta.tolist(), strict=True)), **fixed}
        if takes_parameters:
            return float(likelihood.log_likelihood(parameters))
        likelihood.parameters.update(parameters)
        return float(likelihood.log_likelihood())

    def log_prior(theta: torch.Tensor) -> torch.Tensor:
        rows = theta.detach().cpu().numpy()
        if not len(rows):
            return torch.zeros(0, dtype=torch.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            return torch.from_numpy(np.array([float(priors.ln_prob(dict(zip(names, row, strict=True)))) for row in rows]))

    def draw(n: int, generator: torch.Generator | None) -> torch.Tensor:
        # By our own uniform numbers: bilby draws from a global generator.
        def some(m: int) -> torch.Tensor:
            cube = rand((m, len(names)), generator, dtype=torch.float64).numpy()
            together = {j for _, columns in joints for j in columns}
            alone = [j for j in range(len(names)) if j not in together]
            rows = np.empty_like(cube)
            for row, u in zip(rows, cube, strict=True):
                values = priors.rescale(names, u)
                row[alone] = [float(np.squeeze(values[j])) for j in alone]
            for dist, columns in joints:
                modes = rand((m,), generator, dtype=torch.float64).numpy()
                rows[:, columns] = joint_draws(dist, cube[:, columns], modes)
            return torch.from_numpy(rows)

        return _accepted(some, log_prior, n) if priors.constraint_keys else some(n)

    prior = from_pair(draw, log_prior, len(names), names=names, support=[_bilby_support(priors[name]) for name in names])
    return posterior(from_numpy(log_likelihood, vectorized=False, n_jobs=n_jobs), prior)


def from_cobaya(model: Any, *, n_jobs: int | None = None) -> Target:
    """The posterior of a cobaya model.

    Parameters
    ----------
    model : cobaya.model.Model or dict
        A model, or the input dictionary from which ``cobaya.model.get_model`` makes one.
    n_jobs : int, optional
        Processes that share the rows of a batch; the model must then be picklable.

    Returns
    -------
    Target
        Columns are the sampled parameters. External priors, which cobaya does not normalise either, count as part of the likelihood.

    Raises
    ------
    ImportError
        If a dictionary is given and cobaya is not installed.
    TypeError
        If it is no model.

    Examples
    --------
    >>> info = {"likelihood": {"g": "lambda a: -0.5 * a**2"}, "params": {"a": {"prior": [-5, 5]}}}
    >>> target = from_cobaya(info)                                                                          # doctest: +SKIP

    References
    ----------
    Torrado & Lewis 2021, "Cobaya: code for Bayesian analysis of hierarchical physical models", JCAP 05, 057.
    """
    if isinstance(model, Mapping):
        model = _cobaya_model(model)
    if not (hasattr(model, "loglike") and hasattr(model, "parameterization")):
        raise TypeError(f"Expected a cobaya model or its input dictionary; got a {type(model).__name__}.")
    # Their infos; sampled_params() has the names alone.
    sampled = model.parameterization.sampled_params_info()
    names = list(sampled)
    external = bool(getattr(model.prior, "external", None))

    def log_likelihood(theta: np.ndarray) -> float:
        value = float(model.loglike(theta, return_derived=False))
        return value + float(np.sum(model.prior.logps(theta)[1:])) if external else value

    def log_prior(theta: torch.Tensor) -> torch.Tensor:
        rows = theta.detach().cpu().numpy()
        return torch.tensor([float(model.prior.logps(row)[0]) for row in rows], dtype=torch.float64)

    def draw(n: int, generator: torch.Generator | None) -> np.ndarray:
        return np.asarray(model.prior.sample(n, ignore_external=True, random_state=numpy_generator(generator)))

    bounds = np.asarray(model.prior.bounds(confidence_for_unbounded=1), dtype=np.float64)
    periodic = [isinstance(entry, Mapping) and bool(entry.get("periodic", False)) for entry in sampled.values()]
    support = [_ends(low, high, circular) for (low, high), circular in zip(bounds, periodic, strict=True)]
    prior = from_pair(draw, log_prior, len(names), names=names, support=support)
    return posterior(from_numpy(log_likelihood, vectorized=False, n_jobs=n_jobs), prior)


def _prior_dict(priors: Any) -> Any:
    if hasattr(priors, "rescale"):
        if hasattr(priors, "convert_floats_to_delta_functions"):
            priors.convert_floats_to_delta_functions()  # as bilby does before it samples: numbers may have been put in since
        return priors
    if not isinstance(priors, Mapping):
        raise TypeError(f"Expected a bilby PriorDict or a dict of bilby priors; got a {type(priors).__name__}.")
    try:
        from bilby.core.prior import PriorDict
    except ImportError as error:
        raise ImportError("A plain dict of priors needs bilby to read it: pip install 'sbi_flows[bilby]'.") from error
    return PriorDict(dict(priors))


def _cobaya_model(info: Mapping[str, Any]) -> Any:
    try:
        from cobaya.model import get_model
    except ImportError as error:
        raise ImportError("An input dictionary needs cobaya to make its model: pip install 'sbi_flows[cobaya]'.") from error
    return get_model(dict(info))


def _bilby_support(prior: Any) -> SupportEntry:
    # The ends of a conditional prior move with the parameters it depends on.
    if getattr(prior, "required_variables", None):
        return "real"
    return _ends(float(prior.minimum), float(prior.maximum), getattr(prior, "boundary", None) == "periodic")


def _ends(low: float, high: float, circular: bool) -> SupportEntry:
    if circular:
        return ("circular", float(low), float(high))
    return "real" if math.isinf(low) and math.isinf(high) else (float(low), float(high))


def _accepted(draw: Callable[[int], torch.Tensor], log_prior: Callable, n: int) -> torch.Tensor:
    """``n`` of the draws that the constraints allow."""
    kept: list[torch.Tensor] = []
    for _ in range(_MOST_ROUNDS):
        rows = draw(max(n, 100))
        kept.append(rows[torch.isfinite(log_prior(rows))])
        if sum(map(len, kept)) >= n:
            return torch.cat(kept)[:n]
    found = sum(map(len, kept))
    raise ValueError(
        f"Only {found} of {_MOST_ROUNDS * max(n, 100)} draws of the priors meet their constraints, {n} are needed. Narrow the priors."
    )
