"""What NLE and NRE share: simulations in, a log-likelihood (or ratio) of theta learned, posteriors by Markov chains."""

from __future__ import annotations

import dataclasses
import warnings
from abc import abstractmethod
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sbi_flows._random import RandomState
from sbi_flows._validation import as_float
from sbi_flows.distributions import as_prior
from sbi_flows.inference.npe import parameter_names
from sbi_flows.inference.observations import Observations
from sbi_flows.inference.pairs import exchanged, tells_nothing
from sbi_flows.inference.saved import SavedMethod
from sbi_flows.inference.simulations import Simulations, in_order, read_names, read_simulations, read_theta, remarks
from sbi_flows.inference.target_posterior import TargetPosterior
from sbi_flows.results import FitHistory, Reliability
from sbi_flows.targets import posterior as posterior_target

# Pairs of parameters and trials evaluated at once.
_PAIRS = 200_000
# Pairs evaluated to look for modes among draws of the prior, and how few draws there may be for many trials.
_PRIOR_PAIRS, _LEAST_PRIOR = 20_000, 1000


class TargetEstimator(SavedMethod):
    """Base of :class:`NLE` and :class:`NRE`, which document the parameters."""

    observations_: Observations
    estimator_: Any
    _needs_prior_draws = True

    # --- What a method must say ----------------------------------------------------------------------------------------------

    @abstractmethod
    def _begin(self, simulations: Simulations, x_names: list[str] | None) -> None:
        """Before the first fit: set ``observations_`` and the unfitted estimator."""

    @abstractmethod
    def _learn(self, simulations: Simulations) -> tuple[FitHistory, tuple[str, ...], tuple[str, ...]]:
        """Fit, or go on; the history, reasons against the result, and notes."""

    @abstractmethod
    def _rows(self, x: np.ndarray) -> Tensor:
        """Observations ``(n, *event_shape)`` as the network sees them, ``(n, k)`` float64."""

    @abstractmethod
    def _pairs(self, theta: Tensor, rows: Tensor) -> Tensor:
        """The learned log-likelihood (or ratio) of each pair of rows, ``(n,)``; differentiable in theta."""

    # --- Fitting -------------------------------------------------------------------------------------------------------------

    def fit(self, theta, x, *, from_prior: bool = True):
        """Learn from simulations; called again, add simulations to those before and go on from the weights learned.

        Parameters
        ----------
        theta : array_like or DataFrame (n, d)
            Parameters. ``(n,)`` will do for one.
        x : array_like or DataFrame (n, ...)
            What the simulator made of each: *one* trial, where trials are to be combined later. A simulation that is NaN throughout, or
            infinite anywhere, has failed: it is left out, counted and reported.
        from_prior : bool
            Whether theta was drawn from the whole prior, which is checked. False for draws of the prior in a part of it, outside of
            which the posterior of interest has no mass. :class:`NLE` learns from any parameters and does not look.

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
            whatever else spoils the result.
        """
        again = hasattr(self, "history_")
        if not again:
            self.prior_ = as_prior(self.prior)
            if self.prior_.discrete:
                raise ValueError(
                    f"Expected continuous parameters; the prior has {len(self.prior_.discrete)} discrete ones, among which the chains of "
                    f"{type(self).__name__} cannot move. Use NPE, which gives them probabilities."
                )
            self.theta_names_ = parameter_names(self.prior_, read_names(theta))
            self._x_names = read_names(x)
            self._simulations = None
        checked = from_prior and self._needs_prior_draws
        new = read_simulations(theta, in_order(x, self._x_names, "x"), self.prior_, self.theta_names_, from_prior=checked)
        if again:
            # A network that never saw a value missing cannot read such rows; they are counted as failed, and the others serve.
            new = new.only(self.observations_.readable(new.x))
        else:
            self._begin(new, self._x_names)
        simulations = new if self._simulations is None else self._simulations.followed_by(new)
        history, own_reasons, own_notes = self._learn(simulations)
        self._simulations, self.n_simulations_ = simulations, len(simulations)
        reasons, notes = remarks(simulations)
        reasons += tells_nothing(self._gains(simulations), history)
        verdict = history.reliability
        for reason in (*own_reasons, *reasons):
            warnings.warn(reason, UserWarning, stacklevel=2)
        self.history_ = dataclasses.replace(
            history,
            reliability=Reliability.from_reasons(
                [*verdict.reasons, *own_reasons, *reasons], [*verdict.notes, *self.prior_.notes, *own_notes, *notes]
            ),
        )
        return self

    @torch.no_grad()
    def _gains(self, simulations: Simulations) -> np.ndarray:
        """How much larger the learned function of held-out simulations is at their own parameters than at k others, ``(n, k)`` nats."""
        rows, others = exchanged(self.estimator_.held_out_)
        theta, x = torch.from_numpy(simulations.theta), self._rows(simulations.x[rows])
        k = others.shape[1]
        of_others = self._pairs(theta[others.ravel()], x.repeat_interleave(k, dim=0)).view(-1, k)
        return (self._pairs(theta[rows], x)[:, None] - of_others).numpy()

    # --- Use -----------------------------------------------------------------------------------------------------------------

    def posterior(self, x_o, *, trials: bool = False) -> TargetPosterior:
        """The posterior given an observation, or given each of a batch.

        Parameters
        ----------
        x_o : array_like
            Of the shape of one simulation, or ``(m, ...)`` for m observations at once. With ``trials=True`` one observation is
            ``(n_trials, ...)`` and a batch ``(m, n_trials, ...)``; trials that are NaN throughout are absent, so that observations in a
            batch may have different numbers of them.
        trials : bool
            Whether observations consist of independent repetitions at the same parameters. Their log-likelihoods add.

        Raises
        ------
        ValueError
            If x_o has another shape, is infinite, or misses what no simulation missed.
        """
        check_is_fitted(self, "history_")
        observed, single = self._observed(x_o, "x_o", trials)
        present = np.concatenate(observed)
        fitted = self.history_.reliability
        reliability = Reliability.from_reasons([*fitted.reasons, *self.observations_.reasons(present)], fitted.notes)
        targets = [
            posterior_target(partial(self._summed, rows=self._rows(x)), self.prior_, names=self.theta_names_) for x in observed
        ]
        array = as_float(x_o, "x_o").double().cpu().numpy()
        n_prior = max(_LEAST_PRIOR, _PRIOR_PAIRS // max(map(len, observed)))
        count = None if single else len(targets)
        return TargetPosterior(targets, self.prior_, self.theta_names_, array, reliability, count, n_prior=n_prior)

    def sample(self, x, n_samples: int = 1, random_state: RandomState = None, *, trials: bool = False) -> np.ndarray:
        """Posterior draws: ``(n_samples, d)`` for one observation, ``(m, n_samples, d)`` for a batch ``(m, ...)``."""
        return self.posterior(x, trials=trials).sample(n_samples, random_state)

    def log_prob(self, theta, x, *, trials: bool = False) -> np.ndarray:
        """Log posterior density of ``theta (n, d)`` given the x of the same row, or one x: ``(n,)``, up to a constant for each x."""
        theta = read_theta(theta, self.prior_, self.theta_names_)
        log_prior = self.prior_.log_prob(torch.from_numpy(theta)).numpy()
        values = np.full(len(theta), -np.inf)
        inside = np.isfinite(log_prior)
        observed, single = self._observed(x, "x", trials)
        self._check_rows(theta, observed, single)
        some = observed if single else [own for own, ok in zip(observed, inside, strict=True) if ok]
        values[inside] = log_prior[inside] + self._evaluated(theta[inside], some, single)
        return values

    def _learned(self, theta: Any, x: Any, trials: bool) -> np.ndarray:
        """The learned function as a user asks for it: ``(n,)``."""
        observed, single = self._observed(x, "x", trials)
        theta = read_theta(theta, self.prior_, self.theta_names_)
        self._check_rows(theta, observed, single)
        return self._evaluated(theta, observed, single)

    @torch.no_grad()
    def _evaluated(self, theta: np.ndarray, observed: list[np.ndarray], single: bool) -> np.ndarray:
        """The learned function, each row of theta with its own observation, or all with one; summed over trials."""
        points = torch.from_numpy(theta)
        if not len(points):
            return np.zeros(0)
        if single:
            return self._summed(points, self._rows(observed[0])).numpy()
        counts = torch.tensor([len(own) for own in observed])
        owner = torch.arange(len(observed)).repeat_interleave(counts)
        each = self._pairs(points[owner], self._rows(np.concatenate(observed)))
        return torch.zeros(len(points), dtype=torch.float64).index_add_(0, owner, each).numpy()

    def _summed(self, theta: Tensor, rows: Tensor) -> Tensor:
        """Each parameter under all rows: ``(n,)`` sums over the trials ``rows (t, k)``."""
        n, total = len(theta), theta.new_zeros(len(theta))
        for part in rows.split(max(1, _PAIRS // max(n, 1))):
            t = len(part)
            each = self._pairs(theta.repeat_interleave(t, dim=0), part.repeat(n, 1))
            total = total + each.view(n, t).sum(1)
        return total

    def _observed(self, x: Any, name: str, trials: bool) -> tuple[list[np.ndarray], bool]:
        """A list with the trials ``(t, *event_shape)`` of each observation (t = 1 without trials), and whether x was a single one."""
        check_is_fitted(self, "history_")
        x = in_order(x, self._x_names, name)
        if not trials:
            rows, single = self.observations_.rows_of(x, name)
            return [row[None] for row in rows], single
        shape = self.observations_.event_shape
        array = as_float(x, name).double().cpu().numpy()
        if array.ndim == 1 and shape == (1,):
            array = array[:, None]
        extra = array.ndim - len(shape)
        if extra not in (1, 2) or array.shape[extra:] != shape:
            inner = ", ".join(map(str, shape))
            raise ValueError(
                f"Expected {name} of shape (n_trials, {inner}) for the trials of one observation, or (m, n_trials, {inner}) for m of them; "
                f"got {array.shape}."
            )
        sets = array[None] if extra == 1 else array
        observed = []
        for own in sets:
            absent = np.isnan(own.reshape(len(own), -1)).all(axis=1)
            if absent.all():
                raise ValueError(f"Expected at least one trial in every observation of {name}; one has none (all are NaN).")
            observed.append(self.observations_.rows_of(own[~absent], name)[0])
        return observed, extra == 1

    def _check_rows(self, theta: np.ndarray, observed: list[np.ndarray], single: bool) -> None:
        if not single and len(observed) != len(theta):
            raise ValueError(
                f"Expected as many rows of theta as of x, or a single x; got {len(theta)} and {len(observed)}. "
                "For every theta under every x use posterior(x).log_prob(theta)."
            )
