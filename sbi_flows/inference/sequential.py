"""Simulations where they matter: rounds of simulating near one observation's posterior and learning from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch

from sbi_flows._random import RandomState, torch_generator
from sbi_flows._validation import as_float, choose, positive
from sbi_flows.distributions import Distribution, as_prior
from sbi_flows.inference.atomic import go_on_by_atoms
from sbi_flows.inference.npe import NPE
from sbi_flows.inference.posterior import Posterior
from sbi_flows.inference.simulate import simulate, simulate_one
from sbi_flows.results import FitHistory

_DRAWS = 10_000  # of a posterior, to find its region and to compare it with the one before
_PRIOR_DRAWS = 20_000
_WORTH_REJECTING = 0.005  # share of prior draws inside the region from which on they are taken from the prior
_CANDIDATES = 20  # posterior draws for each parameter of a round, where the prior is too wide
_UNCHANGED = 1e-6  # nats: less than any training does that changes weights
_LOWEST = -1e4  # nats: what -inf counts as when two posteriors are compared


class Method(Protocol):
    """What :func:`sequential` needs: ``NPE``, ``NLE`` and ``NRE`` have it."""

    prior: Any
    history_: FitHistory

    def fit(self, theta: Any, x: Any, *, from_prior: bool) -> Any:
        """Add simulations and learn."""
        ...

    def posterior(self, x_o: Any) -> Posterior:
        """What was learned, at an observation."""
        ...

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of its constructor."""
        ...


def sequential(
    method: Method,
    simulator: Callable,
    x_o: Any,
    n_rounds: int = 5,
    n_simulations: int = 1000,
    *,
    proposal: str = "truncated",
    epsilon: float = 1e-3,
    tolerance: float = 0.05,
    n_atoms: int = 10,
    n_jobs: int | None = None,
    vectorized: bool = False,
    cache: str | Path | None = None,
    random_state: RandomState = None,
) -> Posterior:
    """The posterior of one observation from simulations that are made, round by round, where they tell most about it.

    The first round simulates parameters from the prior. With "truncated" proposals each later one draws them from the prior too,
    but cut to where the posterior so far has all of its mass but ``epsilon``: simulations of all rounds then train by the usual loss,
    for any method. With "atomic" (``NPE`` only) they are drawn from the posterior so far, and a contrastive loss corrects for it.

    It ends after ``n_rounds``, or once the posterior has stopped moving: when two rounds in a row moved it by less than ``tolerance``, the
    symmetrised Kullback-Leibler divergence to the one before (mean of both directions, from 10 000 draws of each). A round whose
    training found nothing better than the weights before is fitted afresh, on the simulations of all rounds; where that cannot be
    (atomic proposals, a method that was fitted before), it does not count as standing still, and the verdict is against it if it is the
    last. So it is if the last round still moved the posterior by more than one nat.

    Parameters
    ----------
    method : NPE, NLE or NRE
        Fitted in place: afterwards it holds all simulations. One that is fitted already must have learned from prior draws.
    simulator : callable
        As for :func:`simulate`; called as ``simulator(theta, rng)``.
    x_o : array_like
        One observation.
    n_rounds, n_simulations : int
        Rounds at most, and simulations in each.
    proposal : {"truncated", "atomic"}
    epsilon : float
        Posterior mass that truncation may lose.
    tolerance : float
        In nats.
    n_atoms : int
        Parameters contrasted with each other by the atomic loss.
    n_jobs, vectorized, cache
        As for :func:`simulate`.
    random_state : int, generator or None

    Returns
    -------
    Posterior
        Its notes tell the rounds, the prior volume each drew from, and how far the posterior moved.

    Raises
    ------
    ValueError, TypeError
        For settings out of range, more than one observation, or an atomic loss with anything but an ``NPE`` of one spline or affine flow.

    Examples
    --------
    >>> import numpy as np
    >>> from sbi_flows import NPE, sequential
    >>> from sbi_flows.distributions import BoxUniform
    >>> def simulator(theta, rng):
    ...     return theta + 0.01 * rng.normal(size=2)
    >>> npe = NPE(BoxUniform([-1, -1], [1, 1]), random_state=0)
    >>> posterior = sequential(npe, simulator, [0.2, 0.3], n_rounds=3, n_simulations=500, random_state=0)

    References
    ----------
    Deistler, Goncalves & Macke 2022, "Truncated proposals for scalable and hassle-free simulation-based inference", arXiv:2210.04815;
    Greenberg, Nonnenmacher & Macke 2019, "Automatic posterior transformation for likelihood-free inference", arXiv:1905.07488.
    """
    if isinstance(method, type) or not hasattr(method, "posterior") or not callable(simulator):
        given = (method, simulator, x_o)
        got = ", ".join(f"the class {each.__name__}" if isinstance(each, type) else type(each).__name__ for each in given)
        raise TypeError(f"Expected sequential(NPE(prior), simulator, x_o, ...): a method, a function and an array; got {got}.")
    choose("proposal", proposal, ("truncated", "atomic"))
    positive("n_rounds", n_rounds, integer=True)
    positive("n_simulations", n_simulations, integer=True)
    positive("tolerance", tolerance)
    if not 0 < epsilon < 1:
        raise ValueError(f"Expected epsilon between 0 and 1, the posterior mass that may be lost; got {epsilon!r}.")
    if proposal == "atomic" and not isinstance(method, NPE):
        raise TypeError(f"Expected an NPE for atomic proposals; got {type(method).__name__}. Truncated ones work for every method.")
    prior = as_prior(method.prior)
    generator = torch_generator(random_state)
    _check_observation(x_o, simulator, prior, vectorized)

    renewable = proposal == "truncated" and not hasattr(method, "history_")
    theta_so_far, x_so_far = [], []

    def run(theta: np.ndarray, atoms: int | None) -> Posterior:
        x = simulate(simulator, theta, n_jobs=n_jobs, vectorized=vectorized, cache=cache, random_state=generator)
        theta_so_far.append(theta)
        x_so_far.append(x)
        return _learn(method, theta, x, x_o, prior, atoms)

    posterior = run(prior.sample(n_simulations, generator).double().cpu().numpy(), None)
    rounds = [_Round(n_simulations, 1.0, np.inf)]
    while len(rounds) < n_rounds and not all(each.stood_still(tolerance) for each in rounds[-2:]):
        before = posterior
        if proposal == "atomic":
            theta, volume = before.sample(n_simulations, generator), np.nan
        else:
            theta, volume = draw_truncated(prior, before, n_simulations, epsilon, generator)
        posterior = run(theta, n_atoms if proposal == "atomic" else None)
        moved = _moved(before, posterior, generator)
        stuck, cut_short = abs(moved) < _UNCHANGED, False
        if stuck and renewable:
            _forget(method)
            posterior = _learn(method, np.concatenate(theta_so_far), np.concatenate(x_so_far), x_o, prior, None)
            moved, cut_short = _moved(before, posterior, generator), _ended_at_its_best(method.history_)
        rounds.append(
            _Round(n_simulations, volume, moved, stuck=stuck and not renewable, afresh=stuck and renewable, cut_short=cut_short)
        )
    posterior.remark(*_remarks(rounds, tolerance))
    return posterior


def _check_observation(x_o: Any, simulator: Callable, prior: Distribution, vectorized: bool) -> None:
    """Compare x_o with one simulation before many are made; a simulation that fails is left to :func:`simulate` to tell of."""
    observed = np.atleast_1d(as_float(x_o, "x_o").double().cpu().numpy())
    if np.isinf(observed).any() or np.isnan(observed).all():
        raise ValueError(f"Expected finite x_o (NaN where some of it is missing); got {observed}.")
    theta = prior.sample(1, torch_generator(0)).double().cpu().numpy()[0]
    like = simulate_one(simulator, theta, vectorized=vectorized, seed=0)
    if like is None or observed.shape == like.shape:
        return
    if observed.ndim == like.ndim + 1 and observed.shape[1:] == like.shape:
        raise ValueError(f"Expected a single observation; got {len(observed)}. An amortised fit needs no rounds: fit and batch.")
    fewer_trials = observed.ndim == like.ndim and observed.shape[1:] == like.shape[1:] and len(observed) < len(like) and like.ndim > 1
    if not fewer_trials:
        raise ValueError(
            f"Expected x_o of shape {like.shape} like one simulation; got {observed.shape}. Summarise it as the simulator does."
        )


@dataclass(frozen=True)
class _Round:
    """Simulations, the share of the prior they were drawn from, the nats by which they moved the posterior, and how training went.

    ``stuck``: nothing better was found than the weights before; ``afresh``: so it was fitted again from the start; ``cut_short``: that fit
    was still improving when its epochs ended.
    """

    n: int
    volume: float
    moved: float
    stuck: bool = False
    afresh: bool = False
    cut_short: bool = False

    def stood_still(self, tolerance: float) -> bool:
        return self.moved < tolerance and not self.stuck

    def __str__(self) -> str:
        moved = "" if np.isinf(self.moved) else f", posterior moved by {self.moved:.2g} nats"
        moved += ", fitted afresh as the weights before could not be improved on" if self.afresh else ""
        moved += " (its last epoch was its best: more max_epochs may make it better)" if self.cut_short else ""
        least = 1 / _PRIOR_DRAWS
        volume = f"less than {least:.0e}" if self.volume < least else f"{self.volume:.2g}"
        where = "the posterior" if np.isnan(self.volume) else f"{volume} of the prior"
        return f"{self.n} simulations from {where}{moved}"


def _ended_at_its_best(history: FitHistory) -> bool:
    return bool((history.best_epoch == len(history.validation_loss) - 1).all())


def _forget(method: Any) -> None:
    """Make it unfitted again, with the arguments it was made with."""
    fresh = type(method)(**method.get_params(deep=False))
    vars(method).clear()
    vars(method).update(vars(fresh))


def _learn(method: Any, theta: np.ndarray, x: np.ndarray, x_o: Any, prior: Distribution, n_atoms: int | None) -> Posterior:
    named: Any = theta if prior.names is None else pd.DataFrame(theta, columns=list(prior.names))
    if n_atoms is None:
        return method.fit(named, x, from_prior=False).posterior(x_o)
    return go_on_by_atoms(method, named, x, n_atoms).posterior(x_o)


def draw_truncated(
    prior: Distribution, posterior: Posterior, n: int, epsilon: float, generator: torch.Generator
) -> tuple[np.ndarray, float]:
    """Draws of the prior inside the region of highest posterior density that holds all but ``epsilon`` of the posterior.

    By rejection where the region holds enough of the prior; else posterior draws are picked, without repeats, with weights prior over
    posterior, which tends to the same distribution as there are more to pick from (20 for each one).

    Returns
    -------
    theta : ndarray (n, d)
    volume : float
        Prior mass of the region.
    """
    own = posterior.sample(_DRAWS, generator)
    log_own = posterior.log_prob(own)
    level = np.quantile(log_own, epsilon)

    def draw_prior(size: int) -> np.ndarray:
        theta = prior.sample(size, generator).double().cpu().numpy()
        return theta[posterior.log_prob(theta) >= level]

    kept = draw_prior(_PRIOR_DRAWS)
    volume = len(kept) / _PRIOR_DRAWS
    if volume >= _WORTH_REJECTING:
        parts = [kept]
        while sum(map(len, parts)) < n:
            parts.append(draw_prior(_PRIOR_DRAWS))
        return np.concatenate(parts)[:n], volume
    candidates = np.concatenate([own, posterior.sample(max(_CANDIDATES * n - len(own), 1), generator)])
    log_own = posterior.log_prob(candidates)
    candidates, log_own = candidates[log_own >= level], log_own[log_own >= level]
    log_weights = prior.log_prob(torch.from_numpy(candidates)).double().cpu().numpy() - log_own
    # Weighted picking without repeats: the largest of the log-weights plus Gumbel noise.
    gumbel = -torch.log(-torch.log(torch.rand(len(candidates), generator=generator, dtype=torch.float64))).numpy()
    return candidates[np.argsort(log_weights + gumbel)[-n:]], volume


def _moved(before: Posterior, after: Posterior, generator: torch.Generator) -> float:
    """Symmetrised Kullback-Leibler divergence in nats; unknown normalisations cancel in it."""
    differences = []
    for draws in (before.sample(_DRAWS, generator), after.sample(_DRAWS, generator)):
        differences.append(np.mean(np.maximum(after.log_prob(draws), _LOWEST) - np.maximum(before.log_prob(draws), _LOWEST)))
    return float(0.5 * (differences[1] - differences[0]))


def _remarks(rounds: list[_Round], tolerance: float) -> tuple[list[str], list[str]]:
    """Reasons against the posterior, and notes."""
    last = rounds[-1]
    notes = [f"round {i}: {text}" for i, text in enumerate(rounds, 1)]
    reasons = []
    if last.stuck:
        reasons.append(
            "training in the last round found nothing better than the weights before, so that it tells nothing about whether the posterior "
            "has settled. Fit a new estimator on all simulations, or use truncated proposals with an unfitted one, which do"
        )
    if len(rounds) > 1 and last.moved >= tolerance:
        notes.append(f"ended by n_rounds; the posterior still moves by more than {tolerance} nats a round")
    if len(rounds) > 1 and last.moved > 1:
        reasons.append(
            f"the last round still moved the posterior by {last.moved:.2g} nats: it has not settled. Allow more rounds or simulations"
        )
    return reasons, notes
