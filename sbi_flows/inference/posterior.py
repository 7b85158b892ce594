"""What every posterior can do: draws, densities, the mode, weights by an exact likelihood, parts, tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sbi_flows._random import RandomState
from sbi_flows._validation import as_float, positive
from sbi_flows.distributions import Distribution
from sbi_flows.inference.modes import climb, climb_each
from sbi_flows.inference.simulations import in_order
from sbi_flows.results import Chains, Reliability, WeightedSamples

if TYPE_CHECKING:
    import arviz
    import pandas

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
