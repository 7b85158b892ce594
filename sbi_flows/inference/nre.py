"""``NRE``: the ratio of likelihood to evidence learned by classification, for data of any kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from sbi_flows._random import RandomState, torch_generator
from sbi_flows.estimators import RatioClassifier
from sbi_flows.estimators.ratio_files import load_ratio, save_ratio
from sbi_flows.inference.by_target import TargetEstimator
from sbi_flows.inference.layout import read_observations
from sbi_flows.inference.observations import Observations
from sbi_flows.inference.settings import own_copy
from sbi_flows.inference.simulations import Simulations
from sbi_flows.inference.target_posterior import TargetPosterior
from sbi_flows.results import FitHistory

# Of the prior, for the mean of the ratio over it: for a single observation, and for each of many.
_DRAWS, _FEWEST_DRAWS = 20_000, 1000
_OFF, _SIGMAS = 0.3, 4.0


class NRE(TargetEstimator):
    """Neural ratio estimation: ``ln p(x | theta) / p(x)`` by a classifier, posteriors by Markov chains.

    It needs no density of x, so that x may be discrete, of many columns, or with values missing, and combines independent trials.

    Parameters
    ----------
    prior
        Anything that :func:`sbi_flows.distributions.as_prior` reads; parameters of the simulations must be its draws.
    classifier : RatioClassifier, optional
        Unfitted; a clone of it is fitted. Its support is taken from the prior.
    loss : {"contrastive", "balanced"}, optional
        "balanced" makes posteriors that are rather too wide than too narrow. None leaves the classifier's own, "contrastive" by default.
    embedding : str, nn.Module or None
        Network that learns summaries of x, as in :class:`sbi_flows.NPE`.
    random_state : int, generator or None
        Seeds the fit; None leaves the classifier's own.

    Attributes
    ----------
    estimator_ : RatioClassifier
    history_ : FitHistory
        Of the last fit; its ``reliability`` is part of every posterior's.
    prior_ : Distribution
    observations_ : Observations
        How x became finite, well-scaled numbers.
    theta_names_ : tuple of str
    n_simulations_ : int

    Examples
    --------
    >>> import numpy as np
    >>> from sbi_flows import NRE
    >>> from sbi_flows.distributions import BoxUniform
    >>> prior = BoxUniform([-1.0], [1.0])
    >>> theta = prior.sample(500).numpy()
    >>> x = theta + 0.1 * np.random.default_rng(0).normal(size=theta.shape)
    >>> nre = NRE(prior, random_state=0).fit(theta, x)
    >>> nre.posterior([0.3]).sample(100, random_state=0).shape
    (100, 1)

    References
    ----------
    Hermans, Begy & Louppe 2020, arXiv:1903.04057; Miller, Weniger & Forre 2022, arXiv:2210.06170; Delaunoy et al. 2022,
    arXiv:2208.13624.
    """

    estimator_: RatioClassifier

    def __init__(
        self,
        prior: Any,
        classifier: RatioClassifier | None = None,
        *,
        loss: str | None = None,
        embedding: str | nn.Module | None = "auto",
        random_state: RandomState = None,
    ):
        self.prior = prior
        self.classifier = classifier
        self.loss = loss
        self.embedding = embedding
        self.random_state = random_state

    def posterior(self, x_o, *, trials: bool = False) -> TargetPosterior:
        """As :meth:`sbi_flows.NLE.posterior`; ``reliability`` tells the mean of the ratio over the prior, which should be one."""
        posterior = super().posterior(x_o, trials=trials)
        if not trials:
            posterior.remark(*_about_means(self._means_over_prior(posterior)))
        return posterior

    @torch.no_grad()
    def _means_over_prior(self, posterior: TargetPosterior) -> np.ndarray:
        """For each observation the mean of its ratio over draws of the prior and the standard error of that, ``(m, 2)``."""
        n = max(_FEWEST_DRAWS, _DRAWS // len(posterior))
        theta = self.prior_.sample(n, torch_generator(0)).double().cpu()
        means = []
        for target in posterior.targets:
            ratio = target.log_likelihood(theta).exp()
            means.append([float(ratio.mean()), float(ratio.std()) / n**0.5])
        return np.array(means)

    def log_ratio(self, theta, x, *, trials: bool = False) -> np.ndarray:
        """``ln p(x | theta) / p(x)``, ``(n,)``; with ``trials=True`` the sum over the trials of each x.

        Parameters
        ----------
        theta : array_like or DataFrame (n, d)
        x : array_like
            One x for all, or one for each row of theta.
        trials : bool
        """
        return self._learned(theta, x, trials)

    def _write(self, path: str | Path, facts: dict[str, Any]) -> None:
        facts = {**facts, **self.estimator_.facts(), "observations": self.observations_.to_data()}
        save_ratio(path, "NRE", self.estimator_.net_, self.history_, self.estimator_.get_params(deep=False), facts)

    @classmethod
    def _read(cls, path: str | Path, embedding: nn.Module | None) -> tuple[Any, FitHistory, dict, dict]:
        return load_ratio(path, "NRE", embedding)

    def _restore(self, path: str | Path, learned: Any, parameters: dict, facts: dict, embedding: nn.Module | None) -> None:
        self.estimator_ = self._estimator = RatioClassifier.from_facts(learned, self.history_, parameters, facts, embedding)
        self.observations_ = Observations.from_data(facts["observations"])

    def _begin(self, simulations: Simulations, x_names: list[str] | None) -> None:
        given = RatioClassifier() if self.classifier is None else self.classifier
        classifier = own_copy(given, RatioClassifier, "classifier", self.random_state)
        if classifier.support is not None:
            raise ValueError(f"Expected a classifier without support=, which the prior decides; got {classifier.support!r}.")
        self.observations_, network = read_observations(
            simulations.x, x_names, self.embedding, classifier.embedding, theta=simulations.theta
        )
        settings: dict[str, Any] = {"embedding": network, "warm_start": True, "support": self.prior_.support}
        if self.loss is not None:
            settings["loss"] = self.loss
        self._estimator = classifier.set_params(**settings)

    def _learn(self, simulations: Simulations):
        theta = pd.DataFrame(simulations.theta, columns=list(self.theta_names_))
        self.estimator_ = self._estimator.fit(theta, self.observations_.transform(simulations.x))
        return self.estimator_.history_, (), self.observations_.notes

    def _rows(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(self.observations_.transform(x))

    def _pairs(self, theta: Tensor, rows: Tensor) -> Tensor:
        return self.estimator_.log_ratio_tensor(theta, rows)


def _about_means(means: np.ndarray) -> tuple[list[str], list[str]]:
    """Reasons and notes from the means of the ratio over the prior and their errors, ``(m, 2)``; exact ratios have a mean of one."""
    distance = np.abs(means[:, 0] - 1) - _SIGMAS * means[:, 1]
    worst = int(distance.argmax())
    where = "" if len(means) == 1 else f" for observation {worst}"
    said = f"the ratio at x_o has the mean {means[worst, 0]:.3g} +- {means[worst, 1]:.1g} over the prior{where}, where 1 would be right"
    if distance[worst] <= _OFF:
        return [], [said]
    return [f"{said}: the posterior's shape may be as wrong. Simulate more, give the classifier a larger network, or use NPE"], []
