"""What every posterior can do, and the posterior of a conditional density at given observations."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sbi_flows._random import RandomState, torch_generator
from sbi_flows._validation import as_float, positive
from sbi_flows.distributions import Distribution
from sbi_flows.estimators import ConditionalFlow
from sbi_flows.inference.modes import climb, climb_each
from sbi_flows.inference.simulations import in_order
from sbi_flows.results import Chains, Reliability, WeightedSamples

if TYPE_CHECKING:
    import arviz
    import pandas

# Draws that measure how many lie inside a prior that is no box: few for all observations, many for those of which one did not.
_FIRST_DRAWS, _ACCEPTANCE_DRAWS = 1000, 10_000
_DRAWS_AT_ONCE = 1_000_000
_LEAKY = 0.5
_ROUNDS = 20


class Posterior(ABC):
    """The distribution of parameters given one observation, or given each of several.

    Subclasses say how it is sampled and evaluated; everything else follows from that.

    Parameters
    ----------
    prior : Distribution
    names : sequence of str
        One a parameter.
    x_o : ndarray (...) or (m, ...)
        The observation as it was given, or m of them.
    reliability : Reliability

    Attributes
    ----------
    prior, names, x_o, reliability
        As given.
    features : int
        Number of parameters, d.
    n_observations : int or None
        m for a batch; None for a single observation, whose results have no leading axis.

    Examples
    --------
    >>> from sbi_flows import ConditionalFlow, NPE
    >>> from sbi_flows.distributions import BoxUniform
    >>> theta = np.random.default_rng(0).uniform(-1, 1, size=(500, 1))
    >>> x = theta + 0.1 * np.random.default_rng(1).normal(size=theta.shape)
    >>> npe = NPE(BoxUniform([-1.0], [1.0]), ConditionalFlow(layers=1, max_epochs=3), random_state=0).fit(theta, x)
    >>> posterior = npe.posterior([0.3])
    >>> posterior.sample(100).shape, posterior.log_prob([[0.3]]).shape
    ((100, 1), (1,))
    """

    def __init__(
        self,
        prior: Distribution,
        names: Sequence[str],
        x_o: np.ndarray,
        reliability: Reliability,
        n_observations: int | None = None,
    ):
        self.prior = prior
        self.names = tuple(names)
        self.x_o = x_o
        self.reliability = reliability
        self.n_observations = n_observations
        self.features = len(self.names)

    @abstractmethod
    def sample(self, n_samples: int = 1, random_state: RandomState = None) -> np.ndarray:
        """``(n_samples, d)`` draws, all inside the prior's support; ``(m, n_samples, d)`` for a batch."""

    @abstractmethod
    def log_density(self, theta: Tensor) -> Tensor:
        """Natural log of the density at float64 rows ``(n, d)``, differentiable: ``(n,)``. Single observations only.

        Where the posterior is known up to a constant it may be unnormalised; :meth:`log_prob` says so then.
        """

    @torch.no_grad()
    def log_prob(self, theta: Any) -> np.ndarray:
        """Natural log of the posterior density at ``theta (n, d)``, ``(n,)``; -inf outside the prior's support."""
        return self.log_density(self._rows(theta)).double().cpu().numpy()

    def map(self, random_state: RandomState = None, *, n_draws: int = 1000, n_starts: int = 20) -> np.ndarray:
        """The parameters of highest posterior density, ``(d,)``.

        Gradient ascent in unconstrained space from the best of some draws, all at once. The density is per unit volume of the parameters
        themselves, whatever space the search is in. Where it rises to an edge of the support the result lies next to that edge. Of discrete
        parameters the values that occur most often among the draws are tried, up to ten combinations.

        Parameters
        ----------
        random_state : int, generator or None
        n_draws, n_starts : int
            Draws to choose starts from, and how many of the best to start from.
        """
        self._refuse_batch("map")
        draws = torch.from_numpy(self.sample(positive("n_draws", n_draws, integer=True), random_state))
        positive("n_starts", n_starts, integer=True)
        if self.prior.discrete:
            return climb_each(self.log_density, draws, self.prior.support, n_starts, list(self.prior.discrete)).numpy()
        return climb(self.log_density, draws, self.prior.support, n_starts).numpy()

    def reweight(
        self, log_likelihood: Callable[[np.ndarray], np.ndarray], n_samples: int = 10_000, random_state: RandomState = None
    ) -> WeightedSamples:
        """Draws with importance weights that correct them to the exact posterior, where the likelihood can be evaluated.

        Parameters
        ----------
        log_likelihood : callable
            From float64 parameters ``(n, d)`` to ln p(x_o | theta), ``(n,)``, in nats; normalised over x if ``log_z`` is wanted.
        n_samples : int
        random_state : int, generator or None

        Returns
        -------
        WeightedSamples
            With ``ess``, ``pareto_k``, ``log_z`` and a verdict in ``reliability``, of which this posterior's is part.

        Raises
        ------
        ValueError
            If log_likelihood gives another shape, NaN or +inf, or no draw any weight.

        References
        ----------
        Dax et al. 2023, "Neural importance sampling for rapid and reliable gravitational-wave inference", arXiv:2210.05686.
        """
        self._refuse_batch("reweight")
        theta = self.sample(n_samples, random_state)
        values = np.asarray(log_likelihood(theta), dtype=np.float64)
        if values.shape != (n_samples,):
            raise ValueError(
                f"Expected log_likelihood(theta) of shape ({n_samples},) for theta {theta.shape}; got {values.shape}. "
                "It is called with rows of parameters: loop over them inside if it takes one at a time."
            )
        if np.isnan(values).any() or (values == np.inf).any():
            raise ValueError(
                f"Expected log_likelihood below +inf and not NaN; got {int((~(values < np.inf)).sum())} such values, the first at "
                f"theta = {theta[~(values < np.inf)][0]}. Return -inf where the data are impossible."
            )
        log_prior = self.prior.log_prob(torch.from_numpy(theta)).double().cpu().numpy()
        return WeightedSamples(theta, values + log_prior - self.log_prob(theta), self.names, self.reliability)

    def marginal(self, names: str | Sequence[str]) -> Posterior:
        """The posterior of some parameters, whatever the others are.

        Its draws are columns of this one's. Its density is not known in closed form: a flow is fitted to 5000 draws when first asked for.
        """
        from sbi_flows.inference.parts import MarginalPosterior, columns_of  # they are posteriors, so they need this module first

        return MarginalPosterior(self, columns_of(names, self))

    def conditional(self, fixed: Mapping[str, float], random_state: RandomState = None) -> Posterior:
        """The posterior of the other parameters with some held fixed: ``posterior.conditional({"gamma": 13 / 3})``.

        A small flow is fitted to draws (seconds) and corrected by importance weights; see ``reliability`` of what comes back.

        Raises
        ------
        ValueError
            For unknown names, when no parameter is left free, or where the posterior has no density at the fixed values.
        """
        from sbi_flows.inference.parts import ConditionalPosterior, columns_of

        self._refuse_batch("conditional")
        if not isinstance(fixed, Mapping):
            raise TypeError(f'Expected a mapping of name to value such as {{"{self.names[0]}": 1.0}}; got {fixed!r}.')
        if len(columns_of(list(fixed), self)) == self.features:
            raise ValueError("Expected at least one free parameter; all are held fixed. Use log_prob for the density at a point.")
        return ConditionalPosterior(self, fixed, random_state)

    def to_dataframe(self, n_samples: int = 10_000, random_state: RandomState = None) -> pandas.DataFrame:
        """``n_samples`` draws, one column a parameter."""
        import pandas as pd

        self._refuse_batch("to_dataframe")
        return pd.DataFrame(self.sample(n_samples, random_state), columns=list(self.names))

    def to_arviz(self, n_samples: int = 10_000, random_state: RandomState = None) -> arviz.InferenceData:
        """ArviZ object of ``n_samples`` draws as one chain, with ``lp`` in ``sample_stats``: InferenceData, or a DataTree from ArviZ 1."""
        self._refuse_batch("to_arviz")
        theta = self.sample(n_samples, random_state)
        return Chains(theta[None], self.names, log_posterior=self.log_prob(theta)[None]).to_arviz()

    def __repr__(self) -> str:
        what = f"{self.features} parameters" + ("" if self.n_observations is None else f", {self.n_observations} observations")
        return f"{type(self).__name__}({what}: {', '.join(self.names)})   {self.reliability}"

    def remark(self, reasons: Sequence[str], notes: Sequence[str]) -> None:
        """Add to the verdict what was found out about how the posterior was made."""
        own = self.reliability
        self.reliability = Reliability.from_reasons([*own.reasons, *reasons], [*own.notes, *notes])

    def _rows(self, theta: Any) -> Tensor:
        theta = as_float(in_order(theta, self.names, "theta"), "theta").double().cpu()
        if theta.ndim != 2 or theta.shape[1] != self.features:
            hint = "For a single parameter vector pass theta[None]." if theta.shape == (self.features,) else "Rows are points."
            raise ValueError(f"Expected theta of shape (n, {self.features}); got {tuple(theta.shape)}. {hint}")
        return theta

    def _place(self, index: Any) -> int:
        """The number of an observation of a batch, counted from the end where negative."""
        if self.n_observations is None:
            raise TypeError("Expected a batch of observations to pick from; this posterior holds a single one.")
        if not isinstance(index, int | np.integer):
            raise TypeError(f"Expected the number of one observation; got {index!r}. For several ask for posterior(x_o[:5]).")
        if not -self.n_observations <= index < self.n_observations:
            raise IndexError(f"Expected the number of an observation below {self.n_observations}; got {index}.")
        return int(index) % self.n_observations

    def _refuse_batch(self, method: str) -> None:
        if self.n_observations is not None:
            raise ValueError(
                f"Expected a single observation for {method}(); this posterior holds {self.n_observations}. "
                f"Pick one: posterior[0].{method}(...)."
            )


class FlowPosterior(Posterior):
    """Posterior of a fitted conditional density, amortised over observations; :meth:`NPE.posterior` makes it.

    Parameters
    ----------
    estimator : ConditionalFlow
        Fitted to p(theta | condition), with the support of the prior.
    condition : ndarray (m, c)
        The observations as the estimator sees them.
    prior, names, x_o, reliability, n_observations
        As for :class:`Posterior`.
    rejects : bool
        Whether the flow can reach where the prior's density is zero, because that is no box: draws there are rejected, and the density is
        divided by the share of draws that are not. That is measured for each observation on 10 000 draws when first needed, or on 1000
        where all of those lie inside.
    verdict_of : callable, optional
        From the number of an observation of a batch to its own verdict; by default each has that of the batch.
    """

    def __init__(
        self,
        estimator: ConditionalFlow,
        condition: np.ndarray,
        prior: Distribution,
        names: Sequence[str],
        x_o: np.ndarray,
        reliability: Reliability,
        n_observations: int | None = None,
        *,
        rejects: bool = False,
        verdict_of: Callable[[int], Reliability] | None = None,
    ):
        super().__init__(prior, names, x_o, reliability, n_observations)
        self._unmeasured = rejects
        self._estimator = estimator
        self._condition = condition
        self._rejects = rejects
        self._verdict_of = verdict_of

    @property
    def reliability(self) -> Reliability:
        """The verdict, with the share of draws inside the prior's support where that is no box, which is measured when first asked for."""
        if self._unmeasured:
            self.reliability = self._with_acceptance(self._verdict)
        return self._verdict

    @reliability.setter
    def reliability(self, verdict: Reliability) -> None:
        self._verdict = verdict
        self._unmeasured = False

    @cached_property
    def acceptance(self) -> np.ndarray:
        """Share of the flow's draws that lie inside the prior's support, ``(m,)``; ones where that is a box."""
        share = np.ones(len(self._condition))
        if self._rejects:
            share = self._share_inside(self._condition, _FIRST_DRAWS)
            leaks = share < 1
            share[leaks] = self._share_inside(self._condition[leaks], _ACCEPTANCE_DRAWS)
        return share

    def _share_inside(self, condition: np.ndarray, n_draws: int) -> np.ndarray:
        """Of ``n_draws`` given each row of ``condition (m, c)``, the share inside the prior's support, ``(m,)``."""
        shares = [np.ones(0)]
        size = max(1, _DRAWS_AT_ONCE // n_draws)
        for start in range(0, len(condition), size):
            draws = self._estimator.sample(condition[start : start + size], n_draws, random_state=0)
            shares.append(inside(self.prior, draws.reshape(-1, self.features)).reshape(len(draws), -1).mean(axis=1))
        return np.concatenate(shares)

    def _with_acceptance(self, verdict: Reliability) -> Reliability:
        lowest = self.acceptance.min()
        error = np.sqrt(lowest * (1 - lowest) / _ACCEPTANCE_DRAWS)
        text = f"{lowest:.3g} +- {error:.1g} of the flow's draws lie inside the prior's support, which is no box; the others are rejected"
        if lowest == 1:
            text = f"all of {_FIRST_DRAWS} draws of the flow lie inside the prior's support, which is no box; others would be rejected"
        if len(self.acceptance) > 1:
            text += f" (for observation {self.acceptance.argmin()}, where they are fewest)"
        if lowest < _LEAKY:
            advice = f"only {text}: fit with more simulations, or in parameters in which the support is a box"
            return Reliability.from_reasons([*verdict.reasons, advice], verdict.notes)
        return Reliability.from_reasons(verdict.reasons, [*verdict.notes, text])

    def sample(self, n_samples: int = 1, random_state: RandomState = None) -> np.ndarray:
        """``(n_samples, d)`` draws, all inside the prior's support; ``(m, n_samples, d)`` for a batch, from one batched call."""
        positive("n_samples", n_samples, integer=True)
        if self._rejects:
            draws = self._sample_inside(n_samples, torch_generator(random_state))
        else:
            draws = self._estimator.sample(self._condition, n_samples, random_state)
        return draws if self.n_observations is not None else draws[0]

    def _sample_inside(self, n: int, generator: torch.Generator) -> np.ndarray:
        """``(m, n, d)`` draws, each observation's rejected and drawn again until all lie inside the prior."""
        kept: list[list[np.ndarray]] = [[] for _ in self._condition]
        missing = np.full(len(self._condition), n)
        # The share inside as the draws so far tell it, counted from one draw that was, so that it is never zero.
        good, drawn = np.ones(len(missing)), np.ones(len(missing))
        for _ in range(_ROUNDS):
            short = np.flatnonzero(missing > 0)
            if not len(short):
                break
            size = int(np.ceil(1.1 * (missing[short] * drawn[short] / good[short]).clip(max=100 * missing[short]).max())) + 10
            draws = self._estimator.sample(self._condition[short], size, generator)
            accepted = inside(self.prior, draws.reshape(-1, self.features)).reshape(len(short), size)
            good[short] += accepted.sum(axis=1)
            drawn[short] += size
            for i, own, ok in zip(short, draws, accepted, strict=True):
                kept[i].append(own[ok][: missing[i]])
                missing[i] -= len(kept[i][-1])
        if missing.any():
            raise RuntimeError(
                f"Expected posterior draws inside the prior's support; for observation {int(missing.argmax())} fewer than one in 1000 "
                "of the flow's are. Is x_o like any simulation? See reliability; fit with more simulations, or declare the prior's support."
            )
        return np.stack([np.concatenate(own) for own in kept])

    def log_prob(self, theta: Any) -> np.ndarray:
        """Natural log of the normalised posterior density; -inf outside the prior's support.

        Parameters
        ----------
        theta : array_like (n, d)
            The same points for all of a batch; ``(m, n, d)`` gives each observation points of its own.

        Returns
        -------
        ndarray (n,)
            ``(m, n)`` for a batch.
        """
        if self.n_observations is None:
            points = self._rows(theta).numpy()
            return self._normalised(points[None], np.broadcast_to(self._condition, (len(points), self._condition.shape[1])))[0]
        theta = as_float(in_order(theta, self.names, "theta"), "theta").double().cpu().numpy()
        m = self.n_observations
        if theta.ndim == 2:
            theta = np.broadcast_to(theta, (m, *theta.shape))
        if theta.ndim != 3 or (theta.shape[0], theta.shape[2]) != (m, self.features):
            raise ValueError(f"Expected theta of shape (n, {self.features}) or ({m}, n, {self.features}); got {theta.shape}.")
        return self._normalised(theta, np.repeat(self._condition, theta.shape[1], axis=0))

    def _normalised(self, theta: np.ndarray, condition: np.ndarray) -> np.ndarray:
        """Log density at ``theta (m, n, d)`` given ``condition (m * n, c)``, ``(m, n)``."""
        points = theta.reshape(-1, self.features)
        values = self._estimator.log_prob(condition, points).reshape(theta.shape[:2])
        if not self._rejects:
            return values
        good = inside(self.prior, points).reshape(values.shape)
        with np.errstate(divide="ignore"):
            return np.where(good, values - np.log(self.acceptance)[:, None], -np.inf)

    def map(self, random_state: RandomState = None, *, n_draws: int = 1000, n_starts: int = 20) -> np.ndarray:
        """The parameters of highest density, ``(d,)``, as :meth:`Posterior.map`; ``(m, d)`` for a batch, one by one."""
        if self.n_observations is None:
            return super().map(random_state, n_draws=n_draws, n_starts=n_starts)
        generator = torch_generator(random_state)
        return np.stack([self[i].map(generator, n_draws=n_draws, n_starts=n_starts) for i in range(self.n_observations)])

    def log_density(self, theta: Tensor) -> Tensor:
        """As :meth:`Posterior.log_density`."""
        self._refuse_batch("log_density")
        flow = self._estimator.flow_
        given = torch.from_numpy(self._condition).to(next(flow.parameters()).device)
        values = flow.log_prob(theta.to(given.device), given).to(theta)
        if not self._rejects:
            return values
        good = torch.from_numpy(inside(self.prior, theta.detach().cpu().numpy())).to(values.device)
        return torch.where(good, values - math.log(max(float(self.acceptance[0]), 1e-300)), -math.inf)

    def __len__(self) -> int:
        return 1 if self.n_observations is None else self.n_observations

    def __getitem__(self, index: int) -> FlowPosterior:
        """The posterior of one observation of a batch."""
        i = self._place(index)
        verdict = self.reliability if self._verdict_of is None else self._verdict_of(i)
        return FlowPosterior(
            self._estimator, self._condition[i : i + 1], self.prior, self.names, self.x_o[i], verdict, rejects=self._rejects
        )


def inside(prior: Distribution, theta: np.ndarray) -> np.ndarray:
    """Which rows of ``theta (n, d)`` have prior density, ``(n,)`` bool."""
    return np.isfinite(prior.log_prob(torch.from_numpy(theta)).cpu().numpy())
