"""From the prior to the posterior by degrees: starting points for chains that sit in every mode the prior's draws have found."""

from __future__ import annotations

import torch
from torch import Tensor

from sbi_flows.samplers.kernel import Kernel
from sbi_flows.samplers.random_walk import RandomWalk
from sbi_flows.samplers.tempered_path import TemperedPath
from sbi_flows.samplers.waste_free import ascend
from sbi_flows.targets import Target

_MOVES = 5  # or two a parameter, if that is more: a random walk needs steps in proportion to the dimension


def anneal(
    target: Target, n: int, generator: torch.Generator, *, n_prior: int | None = None, kernel: Kernel | None = None
) -> Tensor:
    """Sequential Monte Carlo over likelihoods of rising power, from draws of the prior.

    The points of :func:`sbi_flows.samplers.smc` without a flow, after a fixed number of moves at each temperature. One temperature
    suffices where the prior is close to the posterior: that is importance resampling.

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
    moves = max(_MOVES, 2 * target.features)
    kernel = kernel if kernel is not None else RandomWalk()
    path, n_first = TemperedPath(target), max(n, n_prior or n)
    ascent = ascend(path, n, n_first, kernel, generator, ess=0.5 * n, least_moves=moves, most_moves=moves)
    return ascent.particles.x[-n:]
