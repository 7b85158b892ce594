"""``NLE``: the likelihood learned from simulations, for data that come as independent trials or priors that change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from sbi_flows._random import RandomState, numpy_generator
from sbi_flows.bijections.support import parse_support
from sbi_flows.estimators import ConditionalFlow
from sbi_flows.estimators.files import load_estimator, save_estimator
from sbi_flows.flows import CountDensity
from sbi_flows.inference.by_target import TargetEstimator
from sbi_flows.inference.cells import reasons_against
from sbi_flows.inference.conditions import Conditions
from sbi_flows.inference.modelled import Modelled
from sbi_flows.inference.settings import own_copy
from sbi_flows.inference.simulations import Simulations
from sbi_flows.results import FitHistory

_WITH_COUNTS = ("nsf", "maf", "realnvp")  # the flows that go with probabilities of whole numbers


class NLE(TargetEstimator):
    """Neural likelihood estimation: p(x | theta) by a conditional flow, posteriors by Markov chains.

    Unlike :class:`NPE` it learns from simulations of any parameters, not only draws of the prior, combines any number of independent
    trials, and gives the likelihood itself. x must have a density: few columns, continuous or finely graded.

    Parameters
    ----------
    prior
        Anything that :func:`sbi_flows.distributions.as_prior` reads.
    estimator : ConditionalFlow, optional
        Unfitted; a clone of it is fitted to x given theta. Its support is taken from the data. Spline flows by default.
    random_state : int, generator or None
        Seeds the fit; None leaves the estimator's own.

    Attributes
    ----------
    estimator_ : ConditionalFlow
    history_ : FitHistory
        Of the last fit; its ``reliability`` is part of every posterior's.
    prior_ : Distribution
    modelled_ : Modelled
        Which columns of x are modelled, and how.
    observations_ : Observations
        Reads x.
    theta_names_ : tuple of str
    n_simulations_ : int

    Examples
    --------
    >>> import numpy as np
    >>> from sbi_flows import NLE
    >>> from sbi_flows.distributions import BoxUniform
    >>> prior = BoxUniform([-1.0], [1.0])
    >>> theta = prior.sample(500).numpy()
    >>> x = theta + 0.1 * np.random.default_rng(0).normal(size=theta.shape)
    >>> nle = NLE(prior, random_state=0).fit(theta, x)
    >>> nle.log_likelihood([[0.3]], [[0.25]]).shape
    (1,)
    >>> trials = [[0.31], [0.25], [0.36]]
    >>> nle.posterior(trials, trials=True).sample(100, random_state=0).shape
    (100, 1)

    References
    ----------
    Papamakarios, Sterratt & Murray 2019, "Sequential neural likelihood", arXiv:1805.07226.
    """

    estimator_: ConditionalFlow
    modelled_: Modelled
    _needs_prior_draws = False

    def __init__(self, prior: Any, estimator: ConditionalFlow | None = None, *, random_state: RandomState = None):
        self.prior = prior
        self.estimator = estimator
        self.random_state = random_state

    def log_likelihood(self, theta, x, *, trials: bool = False) -> np.ndarray:
        """ln p(x | theta), normalised over x (over the whole numbers where x holds such): ``(n,)``.

        Parameters
        ----------
        theta : array_like or DataFrame (n, d)
        x : array_like
            One x for all, or one for each row of theta; with ``trials=True`` each is a set ``(n_trials, ...)``, and their terms are added.
        trials : bool
        """
        return self._learned(theta, x, trials)

    def _write(self, path: str | Path, facts: dict[str, Any]) -> None:
        own = {"modelled": self.modelled_.to_data(), "conditions": self._conditions.to_data()}
        facts = {**facts, **self.estimator_.facts(), **own}
        save_estimator(path, "NLE", self.estimator_.flow_, self.history_, self.estimator_.get_params(deep=False), facts)

    @classmethod
    def _read(cls, path: str | Path, embedding: nn.Module | None) -> tuple[Any, FitHistory, dict, dict]:
        return load_estimator(path, "NLE", embedding)

    def _restore(self, path: str | Path, learned: Any, parameters: dict, facts: dict, embedding: nn.Module | None) -> None:
        self.estimator_ = self._estimator = ConditionalFlow.from_facts(learned, self.history_, parameters, facts, embedding)
        self.modelled_ = Modelled.from_data(facts["modelled"])
        self.observations_ = self.modelled_.observations
        columns = parse_support(self.prior_.support, self.prior_.features)
        self._conditions = Conditions.from_data(columns, facts["conditions"])

    def _begin(self, simulations: Simulations, x_names: list[str] | None) -> None:
        columns = parse_support(self.prior_.support, self.prior_.features)
        self._conditions = Conditions(columns, torch.from_numpy(simulations.theta))
        unfitted = ConditionalFlow() if self.estimator is None else self.estimator
        estimator = own_copy(unfitted, ConditionalFlow, "estimator", self.random_state)
        estimator.target_called = "x"
        given = self._conditions(torch.from_numpy(simulations.theta)).numpy()
        plain, named = estimator.support is not None, estimator.flow in _WITH_COUNTS if isinstance(estimator.flow, str) else False
        self.modelled_ = Modelled().fit(simulations.x, given, x_names, plain=plain, probabilities=named)
        self.observations_ = self.modelled_.observations
        settings: dict[str, Any] = {"warm_start": True}
        if estimator.support is None:
            settings["support"] = self.modelled_.support
        if self.modelled_.counts:
            self._conditions = Conditions(columns, torch.from_numpy(simulations.theta), stretched=True)
            settings["flow"] = CountDensity(self.modelled_.counts, estimator.flow)
        self._estimator = estimator.set_params(**settings)

    def _learn(self, simulations: Simulations):
        self.modelled_.refuse_impossible(simulations.x)
        # The same noise at every fit: rows that were held out must not return in disguise.
        x = self.modelled_.noisy_rows(simulations.x, numpy_generator(self._estimator.random_state))
        theta = self._conditions(torch.from_numpy(simulations.theta)).numpy()
        self.estimator_ = self._estimator.fit(theta, pd.DataFrame(x, columns=self.modelled_.labels))
        modelled = self.modelled_
        rows, given = self._rows(simulations.x), torch.from_numpy(theta)
        modelled.cells, error = modelled.cells.fine_enough(self._log_density, rows, given)
        return self.estimator_.history_, (*modelled.reasons, *reasons_against(error)), modelled.notes

    def _rows(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(self.modelled_.rows(x))

    def _pairs(self, theta: Tensor, rows: Tensor) -> Tensor:
        return self.modelled_.cells.log_mass(self._log_density, rows, self._conditions(theta))

    def _log_density(self, rows: Tensor, given: Tensor) -> Tensor:
        flow = self.estimator_.flow_
        device = next(flow.parameters()).device
        return flow.log_prob(rows.to(device), given.to(device)).to(given)
