"""``NPE``: the posterior density learned directly from pairs of parameters and simulations."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils.validation import check_is_fitted
from torch import nn

from sbi_flows._random import RandomState
from sbi_flows._validation import choose
from sbi_flows.bijections.support import parse_support
from sbi_flows.distributions import Distribution, as_prior
from sbi_flows.estimators import ConditionalFlow
from sbi_flows.estimators.files import load_estimator, save_estimator
from sbi_flows.flows import MixedDensity
from sbi_flows.inference.defaults import QUALITIES, default_estimator, settle
from sbi_flows.inference.flow_posterior import FlowPosterior
from sbi_flows.inference.layout import read_observations
from sbi_flows.inference.observations import Observations
from sbi_flows.inference.pairs import exchanged, tells_nothing
from sbi_flows.inference.saved import SavedMethod
from sbi_flows.inference.settings import own_copy
from sbi_flows.inference.simulations import Simulations, in_order, read_names, read_simulations, read_theta, remarks
from sbi_flows.results import FitHistory, Reliability

_KIND = "NPE"


class NPE(SavedMethod):
    """Neural posterior estimation: p(theta | x) by a conditional flow that lives on the prior's support.

    Parameters
    ----------
    prior
        What the parameters were drawn from: anything that :func:`sbi_flows.distributions.as_prior` reads. Its support is that of the
        flow, so no draw ever leaves it and the density is normalised inside; where it is no box, draws outside are rejected.
        Discrete parameters (:class:`sbi_flows.distributions.Choice`) get probabilities, the others a flow given them.
    estimator : ConditionalFlow, optional
        Unfitted; a clone of it is fitted. Its support is taken from the prior. Spline flows by default;
        ``ConditionalFlow(flow="cnf")`` makes it flow-matching posterior estimation, ``n_members`` an ensemble.
    embedding : {"auto", "vector", "set", "series", "spectrum", "image", "token"}, nn.Module or None
        Network that learns summaries of x, trained jointly. "auto" goes by the shape of one simulation: few columns need none, many are a
        spectrum, ``(trials, c)`` a set or a series, ``(channels, h, w)`` an image; see
        :func:`sbi_flows.embeddings.choose_embedding`. A module of yours takes ``(n, ...)`` in the shape of x, standardised, NaN where
        missing, to ``(n, k)``. None passes the columns on. Where "auto" would pass them on too, columns that are exchangeable trials are
        found and used without their order.
    quality : {"default", "high"}
        Of the default estimator, whose length and members a short trial fit settles. "high" takes two to five times as long: more
        members where simulations are very scarce, larger flows where they are not.
    random_state : int, generator or None
        Seeds the fit; None leaves the estimator's own.

    Attributes
    ----------
    estimator_ : ConditionalFlow
        Fitted to theta given the rows that ``observations_`` makes of x.
    history_ : FitHistory
        Of the last fit; its ``reliability`` is part of every posterior's.
    prior_ : Distribution
    observations_ : Observations
        How x became finite, well-scaled numbers.
    theta_names_ : tuple of str
        From the prior, or theta's columns, or ``theta_0, ...``.
    n_simulations_ : int
        Simulations the fit rests on.

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
    observations_: Observations
    theta_names_: tuple[str, ...]
    n_simulations_: int
    _simulations: Simulations | None  # all so far; None after loading
    _settled: bool  # whether the settings of the estimator are our own
    _x_names: list[str] | None

    def __init__(
        self,
        prior: Any,
        estimator: ConditionalFlow | None = None,
        *,
        embedding: str | nn.Module | None = "auto",
        quality: str = "default",
        random_state: RandomState = None,
    ):
        self.prior = prior
        self.estimator = estimator
        self.embedding = embedding
        self.quality = quality
        self.random_state = random_state

    # --- Fitting -----------------------------------------------------------------------------------------------------------

    def fit(self, theta, x, *, from_prior: bool = True) -> NPE:
        """Learn from simulations; called again, add simulations to those before and go on from the weights learned.

        Where the new ones vary in columns that were constant, or miss values that none did, it starts afresh on all and notes it.

        Parameters
        ----------
        theta : array_like or DataFrame (n, d)
            Parameters drawn from the prior. ``(n,)`` will do for one.
        x : array_like or DataFrame (n, ...)
            What the simulator made of each; every simulation has the same shape. NaN marks missing values. A simulation that is NaN
            throughout, or infinite anywhere, has failed: it is left out, counted and reported.
        from_prior : bool
            Whether theta was drawn from the whole prior, which is checked. False for draws of the prior in a part of it, outside of
            which the posterior of interest has no mass (:func:`sbi_flows.inference.draw_truncated`).

        Returns
        -------
        self

        Raises
        ------
        ValueError
            Shapes that do not match, parameters outside the prior, x constant throughout, or no simulation that succeeded.

        Warns
        -----
        UserWarning
            For fewer than 200 simulations, many failed ones, theta that does not follow the prior, x that shows no sign of theta, and
            whatever the estimator finds amiss.
        """
        again = hasattr(self, "history_")
        estimator = self.estimator_.set_params(warm_start=True) if again else self._prepare(theta, x)
        new = read_simulations(theta, in_order(x, self._x_names, "x"), self.prior_, self.theta_names_, from_prior=from_prior)
        outgrown = self.observations_.outgrown_by(new.x, new.theta) if again else ""
        simulations = new if self._simulations is None else self._simulations.followed_by(new)
        if again and not outgrown:
            observations = self.observations_
        else:
            own = None if self.estimator is None else self.estimator.embedding
            observations, network = read_observations(
                simulations.x, self._x_names, self.embedding, own, theta=simulations.theta, from_prior=from_prior
            )
            estimator.set_params(embedding=network, warm_start=False)
        rows, targets = observations.transform(simulations.x), pd.DataFrame(simulations.theta, columns=list(self.theta_names_))
        notes = [f"fitted afresh, since {outgrown}"] if outgrown else []
        if again and self._settled:
            estimator.set_params(max_epochs="auto")  # what was settled was the length for fewer simulations
        elif not again and self.estimator is None and estimator.embedding is None:
            notes.append(settle(estimator, rows, targets, self.quality))
            self._settled = True
        self.estimator_ = estimator.fit(rows, targets)
        self.observations_ = observations
        self._simulations = simulations
        self.n_simulations_ = len(simulations)
        self.history_ = self._with_remarks(self.estimator_.history_, simulations, notes)
        return self

    def _prepare(self, theta: Any, x: Any) -> ConditionalFlow:
        """What the first fit decides: the prior, names, and the estimator with its support and seed."""
        self.prior_ = as_prior(self.prior)
        self.theta_names_ = parameter_names(self.prior_, read_names(theta))
        self._x_names = read_names(x)
        self._simulations, self._settled = None, False
        choose("quality", self.quality, list(QUALITIES))
        if self.estimator is not None and self.quality != "default":
            raise ValueError(f"Expected quality= without estimator=, whose settings stand; got quality={self.quality!r} and both.")
        given = default_estimator() if self.estimator is None else self.estimator
        estimator = own_copy(given, ConditionalFlow, "estimator", self.random_state)
        estimator.target_called = "theta"
        if self.prior_.discrete and isinstance(estimator.flow, str):
            estimator.set_params(flow=MixedDensity(dict(self.prior_.discrete), estimator.flow))
        if estimator.support is not None:
            raise ValueError(f"Expected an estimator without support=, which the prior decides; got support={estimator.support!r}.")
        support = [column.entry for column in parse_support(self.prior_.support, self.prior_.features)]
        return estimator.set_params(support=support)

    def _with_remarks(self, history: FitHistory, simulations: Simulations, own_notes: Sequence[str] = ()) -> FitHistory:
        reasons, notes = remarks(simulations)
        reasons += tells_nothing(self._gains(simulations), history)
        notes = [*self.prior_.notes, *self.observations_.notes, *notes, *own_notes]
        for reason in reasons:
            warnings.warn(reason, UserWarning, stacklevel=3)
        own = history.reliability
        return dataclasses.replace(history, reliability=Reliability.from_reasons([*own.reasons, *reasons], [*own.notes, *notes]))

    def _gains(self, simulations: Simulations) -> np.ndarray:
        """How much more probable held-out parameters are given their own x than given that of k others, ``(n, k)`` nats."""
        rows, others = exchanged(self.estimator_.held_out_)
        theta, x = simulations.theta[rows], self.observations_.transform(simulations.x)
        k = others.shape[1]
        own = self.estimator_.log_prob(x[rows], theta)
        return own[:, None] - self.estimator_.log_prob(x[others.ravel()], theta.repeat(k, axis=0)).reshape(-1, k)

    # --- Use ---------------------------------------------------------------------------------------------------------------

    def posterior(self, x_o) -> FlowPosterior:
        """The posterior given an observation, or given each of a batch.

        Parameters
        ----------
        x_o : array_like
            Of the shape of one simulation, or ``(m, ...)`` for m observations at once.

        Raises
        ------
        ValueError
            If x_o has another shape, is infinite, or misses what no simulation missed.
        """
        check_is_fitted(self, "history_")
        x, single = self.observations_.rows_of(in_order(x_o, self._x_names, "x_o"), "x_o")
        fitted, observations = self.history_.reliability, self.observations_

        def verdict(some: np.ndarray) -> Reliability:
            return Reliability.from_reasons([*fitted.reasons, *observations.reasons(some)], fitted.notes)

        rows = self.observations_.transform(x)
        observed, m = (x[0], None) if single else (x, len(x))
        frozen = copy.copy(self.estimator_)  # a later fit gives the estimator a new flow, and this posterior keeps its own
        return FlowPosterior(
            frozen,
            rows,
            self.prior_,
            self.theta_names_,
            observed,
            verdict(x),
            m,
            rejects=not self.prior_.box,
            verdict_of=lambda i: verdict(x[i : i + 1]),
        )

    def sample(self, x, n_samples: int = 1, random_state: RandomState = None) -> np.ndarray:
        """Posterior draws: ``(n_samples, d)`` for one observation, ``(m, n_samples, d)`` for a batch ``(m, ...)``."""
        return self.posterior(x).sample(n_samples, random_state)

    def log_prob(self, theta, x) -> np.ndarray:
        """Log posterior density of ``theta (n, d)`` given the x of the same row ``(n, ...)``, or one x for all: ``(n,)``."""
        posterior = self.posterior(x)
        theta = read_theta(theta, self.prior_, self.theta_names_)
        if posterior.n_observations is None:
            return posterior.log_prob(theta)
        if len(theta) != posterior.n_observations:
            raise ValueError(
                f"Expected as many rows of theta as of x, or a single x; got {len(theta)} and {posterior.n_observations}. "
                "For every theta under every x use posterior(x).log_prob(theta)."
            )
        return posterior.log_prob(theta[:, None])[:, 0]

    # --- Files -------------------------------------------------------------------------------------------------------------

    def _write(self, path: str | Path, facts: dict[str, Any]) -> None:
        facts = {**self.estimator_.facts(), **facts, "observations": self.observations_.to_data()}
        save_estimator(path, _KIND, self.estimator_.flow_, self.history_, self.estimator_.get_params(deep=False), facts)

    @classmethod
    def _read(cls, path: str | Path, embedding: nn.Module | None) -> tuple[Any, FitHistory, dict, dict]:
        return load_estimator(path, _KIND, embedding)

    def _restore(self, path: str | Path, learned: Any, parameters: dict, facts: dict, embedding: nn.Module | None) -> None:
        self.embedding = "auto" if embedding is None else embedding
        self.estimator_ = ConditionalFlow.from_facts(learned, self.history_, parameters, facts, embedding)
        columns = parse_support(self.prior_.support, self.prior_.features)
        if columns != parse_support(self.estimator_.support, self.estimator_.n_targets_):
            raise ValueError(f"Expected the prior that {path} was fitted with; got one of support {self.prior_.support}.")
        self.observations_, self._settled = Observations.from_data(facts["observations"]), False


def parameter_names(prior: Distribution, columns: list[str] | None) -> tuple[str, ...]:
    """The prior's names, or those of theta's columns, or ``theta_0, ...``."""
    if prior.names is not None:
        return tuple(prior.names)
    if columns is not None and len(columns) == prior.features:
        return tuple(columns)
    return tuple(f"theta_{i}" for i in range(prior.features))
