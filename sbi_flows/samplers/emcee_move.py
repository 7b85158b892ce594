"""A flow as one of emcee's own moves."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from emcee.moves import MHMove

from sbi_flows._random import torch_generator


class FlowMove(MHMove):
    """Independent proposals from a trained density, for ``emcee.EnsembleSampler(..., moves=[(FlowMove(density), 0.3), ...])``.

    Each walker is offered a draw of the density, accepted with probability ``min(1, p(new) q(old) / (p(old) q(new)))``. Modes that the
    density covers are never lost, whichever the walkers started in. Mix it with a local move: alone, walkers stick where the density is
    too low.

    Parameters
    ----------
    density : FlowDensity, Flow or object
        ``sample(n, random_state=...)`` and ``log_prob(x)`` on numpy rows, or ``sample(n, generator=...)`` and ``log_prob(x)`` on tensors,
        in the parameters that emcee samples. It must stay as it is while the chains that count are drawn.

    Raises
    ------
    TypeError
        If the density has not these methods.

    Examples
    --------
    >>> import emcee
    >>> from sbi_flows.distributions import MultivariateNormal
    >>> move = FlowMove(MultivariateNormal([0.0], [[2.0]]))
    >>> sampler = emcee.EnsembleSampler(4, 1, lambda x: -0.5 * float(x @ x), moves=[(move, 0.5), (emcee.moves.StretchMove(), 0.5)])
    >>> sampler.run_mcmc(np.random.default_rng(0).normal(size=(4, 1)), 10).coords.shape
    (4, 1)

    References
    ----------
    Tierney 1994, "Markov chains for exploring posterior distributions", Annals of Statistics 22; Gabrié, Rotskoff & Vanden-Eijnden 2022,
    "Adaptive Monte Carlo augmented with normalizing flows", PNAS 119.
    """

    def __init__(self, density: Any):
        if not (callable(getattr(density, "sample", None)) and callable(getattr(density, "log_prob", None))):
            raise TypeError(f"Expected a density with sample and log_prob, such as a fitted FlowDensity; got a {type(density).__name__}.")
        self.density = density
        self._numpy = "random_state" in inspect.signature(density.sample).parameters
        super().__init__(self._propose)

    def _propose(self, coords: np.ndarray, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        """New positions ``(n, d)`` and ``ln q(old) - ln q(new)``, as emcee wants them."""
        drawn = self._sample(len(coords), int(rng.randint(2**31 - 1)))
        if drawn.shape != coords.shape:
            raise ValueError(f"Expected a density over the {coords.shape[1]} parameters of the walkers; its draws have {drawn.shape[1]}.")
        factor = self._log_prob(coords) - self._log_prob(drawn)
        # A walker where the density is zero could never have been proposed: the ratio is zero, and so it is where it has no value.
        return drawn, np.where(np.isnan(factor), -np.inf, factor)

    def _sample(self, n: int, seed: int) -> np.ndarray:
        if self._numpy:
            return np.asarray(self.density.sample(n, random_state=seed), dtype=np.float64)
        with torch.no_grad():
            return self.density.sample(n, generator=torch_generator(seed)).double().cpu().numpy()

    def _log_prob(self, x: np.ndarray) -> np.ndarray:
        if self._numpy:
            return np.asarray(self.density.log_prob(x), dtype=np.float64)
        with torch.no_grad():
            return self.density.log_prob(torch.from_numpy(np.ascontiguousarray(x))).double().cpu().numpy()
