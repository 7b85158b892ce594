"""What a posterior says of the parameters: means with standard deviations, and the smallest chi-squared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import optimize

from sbi_flows.physics.cosmology.target import BAOTarget
from sbi_flows.results import Chains, WeightedSamples


@dataclass(frozen=True)
class BestFit:
    """The smallest chi-squared that was found, within the prior.

    Attributes
    ----------
    chi2 : float
    parameters : dict of str to float
    n_data : int
        How many distances chi-squared is a sum over.
    """

    chi2: float
    parameters: Mapping[str, float]
    n_data: int


@dataclass(frozen=True)
class Moments:
    """Posterior means and standard deviations ``(d,)``, in the order of the model's names."""

    mean: np.ndarray
    std: np.ndarray


def best_fit(target: BAOTarget, starts: Sequence[np.ndarray]) -> BestFit:
    """The smallest chi-squared that a bounded quasi-Newton search finds from any of the starts ``(d,)``.

    References
    ----------
    Byrd, Lu, Nocedal & Zhu 1995, "A limited memory algorithm for bound constrained optimization", SIAM J. Sci. Comput. 16.
    """
    low, high = target.prior.low.double(), target.prior.high.double()

    def chi2(u: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.tensor(u, requires_grad=True)
        value = target.chi2((low + point * (high - low))[None])[0]
        (gradient,) = torch.autograd.grad(value, point)
        return value.item(), gradient.numpy()

    unit = [((torch.as_tensor(start) - low) / (high - low)).clamp(0, 1).numpy() for start in starts]
    options = {"ftol": 1e-14, "gtol": 1e-9, "maxiter": 1000}
    ends = [optimize.minimize(chi2, u, jac=True, method="L-BFGS-B", bounds=[(0, 1)] * len(u), options=options) for u in unit]
    best = min(ends, key=lambda end: end.fun)
    theta = low.numpy() + best.x * (high - low).numpy()
    return BestFit(float(best.fun), dict(zip(target.names, theta.tolist(), strict=True)), len(target.data.values))


def likeliest(draws: Chains) -> np.ndarray:
    """The draw ``(d,)`` of the largest posterior density, which under a flat prior has the smallest chi-squared."""
    if draws.log_posterior is None:
        raise ValueError("Expected draws that know their log-posterior.")
    return draws.samples.reshape(-1, draws.features)[int(np.nanargmax(draws.log_posterior))]


def moments(draws: Chains) -> Moments:
    """Weighted means and standard deviations over all draws."""
    frame = draws.to_dataframe()
    rows = frame[list(draws.names)].to_numpy()
    weights = None if draws.weights is None else frame["weight"].to_numpy()
    mean = np.average(rows, axis=0, weights=weights)
    return Moments(mean, np.sqrt(np.average((rows - mean) ** 2, axis=0, weights=weights)))


def as_draws(draws: Chains | WeightedSamples, target: BAOTarget) -> Chains:
    """Draws of any route as one kind, with ln posterior and the ends of the prior."""
    if isinstance(draws, Chains):
        return replace(draws, bounds=target.model.prior_ends)
    with torch.no_grad():
        log_posterior = target.log_prob(torch.as_tensor(draws.samples).double()).numpy()
    return Chains(
        draws.samples[None],
        target.names,
        log_posterior[None],
        reliability=draws.reliability,
        info=draws.info,
        weights=draws.weights[None],
        independent=True,
        bounds=target.model.prior_ends,
    )
