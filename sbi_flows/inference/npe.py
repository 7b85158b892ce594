"""``NPE``: the posterior density learned directly from pairs of parameters and simulations."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted

from sbi_flows._random import RandomState
from sbi_flows._validation import as_float
from sbi_flows.distributions import Distribution
from sbi_flows.estimators import ConditionalFlow
from sbi_flows.inference.posterior import FlowPosterior
from sbi_flows.results import FitHistory, Reliability


class NPE(BaseEstimator):
    """Neural posterior estimation: p(theta | x) by a conditional flow that lives on the prior's support.

    Parameters
    ----------
    prior : Distribution
        What the parameters were drawn from; see :mod:`sbi_flows.distributions`.
    estimator : ConditionalFlow, optional
        Unfitted; a clone of it is fitted. Its support is taken from the prior. Spline flows by default;
        ``ConditionalFlow(flow="cnf")`` makes it flow-matching posterior estimation.
    random_state : int, generator or None
        Seeds the fit; None leaves the estimator's own.

    Attributes
    ----------
    estimator_ : ConditionalFlow
    history_ : FitHistory
    prior_ : Distribution
    theta_names_ : tuple of str

    Examples
    --------
    >>> import numpy as np
    >>> from sbi_flows import NPE
    >>> from sbi_flows.distributions import BoxUniform
    >>> prior = BoxUniform([-1.0], [1.0])
    >>> theta = prior.sample(500).numpy()
    >>> x = theta + 0.1 * np.random.default_rng(0).normal(size=theta.shape)
    >>> npe = NPE(prior, random_state=0).fit(theta, x)
    >>> npe.posterior([0.3]).sample(100).shape
    (100, 1)

    References
    ----------
    Papamakarios & Murray 2016, "Fast epsilon-free inference of simulation models with Bayesian conditional density estimation",
    arXiv:1605.06376; Cranmer, Brehmer & Louppe 2020, "The frontier of simulation-based inference", arXiv:1911.01429.
    """

    estimator_: ConditionalFlow
    history_: FitHistory
    prior_: Distribution
    theta_names_: tuple[str, ...]

    def __init__(self, prior: Any, estimator: ConditionalFlow | None = None, *, random_state: RandomState = None):
        self.prior = prior
        self.estimator = estimator
        self.random_state = random_state

    def fit(self, theta, x) -> NPE:
        """Learn from simulations.

        Parameters
        ----------
        theta : array_like or DataFrame (n, d)
            Parameters, drawn from the prior.
        x : array_like or DataFrame (n, ...)
            What the simulator made of each.

        Returns
        -------
        self
        """
        self.prior_ = self.prior
        names = [str(name) for name in theta.columns] if hasattr(theta, "columns") else self.prior_.names
        self.theta_names_ = tuple(names or (f"theta_{i}" for i in range(self.prior_.features)))
        theta, x = as_float(theta, "theta").double().numpy(), as_float(x, "x").double().numpy()
        self._event_shape = x.shape[1:]
        estimator = ConditionalFlow() if self.estimator is None else clone(self.estimator)
        estimator.set_params(support=self.prior_.support)
        if self.random_state is not None:
            estimator.set_params(random_state=self.random_state)
        self.estimator_ = estimator.fit(x.reshape(len(x), -1), theta)
        self.history_ = estimator.history_
        return self

    def posterior(self, x_o) -> FlowPosterior:
        """The posterior given ``x_o``, of the shape of one simulation, or ``(m, ...)`` for a batch of m observations."""
        check_is_fitted(self)
        x = as_float(x_o, "x_o").double().cpu().numpy()
        single = x.shape == self._event_shape
        rows = (x[None] if single else x).reshape(1 if single else len(x), -1)
        history = self.history_.reliability
        reliability = Reliability(history.ok, history.reasons, history.notes)
        return FlowPosterior(
            self.estimator_, rows, self.prior_, self.theta_names_, x, reliability, None if single else len(rows)
        )

    def sample(self, x, n_samples: int = 1, random_state: RandomState = None) -> np.ndarray:
        """Posterior draws: ``(n_samples, d)`` for one observation, ``(m, n_samples, d)`` for a batch ``(m, ...)``."""
        return self.posterior(x).sample(n_samples, random_state)

    def log_prob(self, theta, x) -> np.ndarray:
        """Log posterior density of ``theta (n, d)`` given the x of the same row ``(n, ...)``, or one x for all: ``(n,)``."""
        posterior = self.posterior(x)
        theta = as_float(theta, "theta").double().numpy()
        if posterior.n_observations is None:
            return posterior.log_prob(theta)
        return posterior.log_prob(theta[:, None])[:, 0]
