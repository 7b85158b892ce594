"""From the prior to the posterior by degrees: starting points for chains that sit in every mode the prior's draws have found."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sbi_flows.samplers.kernel import Kernel
from sbi_flows.samplers.random_walk import RandomWalk, RandomWalkState
from sbi_flows.targets import Target, tempered, unconstrained

_ESS = 0.5  # share of the particles that each change of temperature leaves effective
_MOVES = 5  # or two a parameter, if that is more: a random walk needs steps in proportion to the dimension
_MAX_TEMPERATURES = 200


@torch.no_grad()
def anneal(
    target: Target, n: int, generator: torch.Generator, *, n_prior: int | None = None, kernel: Kernel | None = None
) -> Tensor:
    """Sequential Monte Carlo over likelihoods of rising power, from draws of the prior.

    Each temperature is chosen so that half of the particles stay effective; they are then resampled and moved by a few Metropolis steps.
    One temperature suffices where the prior is close to the posterior: that is importance resampling.

    Parameters
    ----------
    target : Target
        With a prior.
    n : int
        Particles.
    generator : torch.Generator
    n_prior : int, optional
        Draws of the prior to choose the first particles from, ``n`` by default. Each costs one evaluation; a mode that none of them is near
        is not found.
    kernel : Kernel, optional
        What moves them; ``RandomWalk()`` by default.

    Returns
    -------
    Tensor (n, d)
        Points nearly distributed as the posterior, in the user's parameters: starts for chains, which make them exact.

    Raises
    ------
    ValueError
        If the target has no prior, or no draw of it has a likelihood above zero.

    Examples
    --------
    >>> from sbi_flows.distributions import BoxUniform
    >>> from sbi_flows.targets import posterior
    >>> target = posterior(lambda x: -0.5 * (x[:, 0] / 0.01) ** 2, BoxUniform([-1.0], [1.0]))
    >>> points = anneal(target, 500, torch.Generator().manual_seed(0))
    >>> bool(abs(points.std() / 0.01 - 1) < 0.2)
    True

    References
    ----------
    Del Moral, Doucet & Jasra 2006, "Sequential Monte Carlo samplers", J. R. Statist. Soc. B 68; Jasra et al. 2011 (temperatures by ESS).
    """
    if target.prior is None:
        raise ValueError("Expected a target with a prior to start from: make it with targets.posterior(log_likelihood, prior).")
    kernel = kernel if kernel is not None else RandomWalk()
    x = target.prior.sample(max(n, n_prior or n), generator).double()
    power, state = 0.0, None
    for step in range(_MAX_TEMPERATURES):
        log_likelihood = _log_likelihood(target, x)
        if step == 0 and not bool((log_likelihood > -math.inf).any()):
            raise ValueError(
                f"Expected a likelihood above zero somewhere; it is zero at all of {len(x)} draws of the prior. "
                "Is the observation one that the model can produce?"
            )
        rise = _rise(log_likelihood, 1 - power, n)
        power = min(1.0, power + rise)
        x = x[_systematic(torch.softmax(rise * log_likelihood, 0), n, generator)]
        x, state = _move(kernel, tempered(target, power), x, state, generator)
        if power >= 1:
            return x
    raise ValueError(
        f"The likelihood is too steep for {n} particles: after {_MAX_TEMPERATURES} temperatures its power is still {power:.2g}. "
        "Use more particles, or look for a likelihood that jumps."
    )


def _log_likelihood(target: Target, x: Tensor) -> Tensor:
    """ln L at points inside the prior; NaN counts as impossible."""
    values = target.log_likelihood(x)
    return torch.where(torch.isnan(values) | (values == math.inf), -math.inf, values)


def _rise(log_likelihood: Tensor, left: float, n: int) -> float:
    """How much further the power may rise so that a share ``_ESS`` of n particles stays effective, by bisection."""
    possible = log_likelihood[log_likelihood > -math.inf]
    # Impossible particles are lost at once, however small the rise.
    enough = _ESS * min(len(possible), n)

    def effective(rise: float) -> float:
        return float(1 / torch.softmax(rise * possible, 0).square().sum())

    if effective(left) >= enough:
        return left
    low, high = 0.0, left
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if effective(middle) >= enough else (low, middle)
    return max(low, 1e-300)


def _systematic(weights: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n rows drawn in proportion to their weights, with the least noise; shuffled."""
    offset = torch.rand((), generator=generator, dtype=weights.dtype)
    rows = torch.searchsorted(weights.cumsum(0), (offset + torch.arange(n, dtype=weights.dtype)) / n).clamp(max=len(weights) - 1)
    return rows[torch.randperm(n, generator=generator)]


def _move(kernel: Kernel, target: Target, x: Tensor, before, generator: torch.Generator):
    """A few steps at one temperature; the random walk's scale and its jumps carry over from one to the next."""
    space = unconstrained(target, x)
    state = kernel.init(space.from_user(x), space)
    if isinstance(state, RandomWalkState):
        state = state._replace(archive=state.position)
        if before is not None:
            state = state._replace(log_scale=before.log_scale)
    n_moves = max(_MOVES, 2 * target.features)
    for step in range(n_moves):
        state, info = kernel.step(state, space, generator)
        state = kernel.adapt(state, info, space, (step + 1) / (n_moves + 1))
    return space.to_user(state.position)[0], state
