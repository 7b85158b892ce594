"""What a verdict says of what was not seen: points at which a target has no value, and modes too narrow for the prior's draws.

One rule for every sampler. A log-density or log-likelihood of NaN or +inf, and a numpy function that raises, count as density zero: a
kernel rejects the proposal, an importance sample gives it no weight. They are counted where the posterior is. As the density there is not
known, neither is what was left out; :data:`MUCH` of them spoils the result. A log-density of -inf says that there is nothing, and is no
such point.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sbi_flows._random import torch_generator
from sbi_flows.bijections.support import parse_support
from sbi_flows.bijections.unconstrain import LARGEST_QUANTILE
from sbi_flows.targets import Target, circular_columns
from sbi_flows.targets.mapped import UnconstrainedTarget

_MISSED = 3.0  # mass, times their number, that so many independent draws miss one time in twenty: -ln .05
_LEAST_ACCEPTANCE = 0.1  # assumed, where nothing else was accepted either
_CLOSE = 1 / 3  # of the spread there could be, below which starts are close together
_PRIOR_DRAWS, _PRIOR_SEED = 1000, 0  # any seed: the draws set a scale
_FAR = (30.0, 300.0)  # distances between quartiles at which the density is looked at
_CHAINS_TOLD = "without a variance, and chains come there so seldom that neither R-hat nor effective sizes tell what is missing"
_HAIR = 0.26  # from the last value on the real line: of an end at zero all beyond 9, where a reference distribution has 1e-19
_MANY = 1e-3  # share of the draws so near an end
# Share of the moves that would go where there is no value, were they accepted as others are. Far-out holes that bold proposals meet
# (mass 3e-5) came to .005; a disk of 4 % of a normal in its bulk to .004 by a random walk, which learns to take small steps, and to .023 by
# proposals of a flow: some miss of a few per cent passes as a note.
MUCH = 0.006


def reach(n_prior: int) -> str:
    """How small a part of the prior a mode may lie in that none of so many draws of it has met."""
    return (
        f"modes were looked for near {n_prior} draws of the prior: one in less than {_MISSED / n_prior:.1g} of it may be missed, however "
        "large its mass"
    )


def reach_of_starts(start: Tensor, draws: Tensor, space: Target) -> list[str]:
    """A note where all chains started close together, compared with where they could go.

    That is the spread of the prior; without one, of an interval or a circle; where there is nothing but the real line, six times the spread
    of the draws within a chain: starts that are meant to find modes go well beyond it. The median column decides.

    Parameters
    ----------
    start, draws : Tensor (n_chains, d), (n_chains, n_draws, d)
        On the real line of ``space``, as :func:`sbi_flows.targets.unconstrained` makes it.
    space : Target
    """
    user, angles = space.user, circular_columns(space)
    if user.prior is not None:
        room = _spread(space.from_user(user.prior.sample(_PRIOR_DRAWS, torch_generator(_PRIOR_SEED)).double()), angles)
        compared = "{:.0%} of the prior's"
    else:
        ends = np.array([entry[-2:] if isinstance(entry, tuple) else (-np.inf, np.inf) for entry in user.support], dtype=float)
        bounded = torch.from_numpy(np.isfinite(ends).all(axis=1))
        # An interval's map to the real line makes one of the spread of a uniform distribution.
        room = torch.where(bounded, 1.0, 6 * draws.var(1, correction=0).mean(0).sqrt())
        compared = "{:.0%} of what its ends allow" if bool(bounded.all()) else "{:.0%} of six times that of a chain's draws"
    share = float((_spread(start, angles) / room.clamp(min=1e-300)).median())
    if share >= _CLOSE:
        return []
    who = f"all {len(start)} chains started" if len(start) > 1 else "the one chain started"
    return [
        f"{who} close together (spread in the median parameter: {compared.format(share)}): modes elsewhere are not looked for. Start "
        "from draws of the prior, or use FlowSampler or smc, which begin there"
    ]


def at_the_ends(positions: Tensor, space: Target) -> list[str]:
    """A reason for each column of which many draws lie where the map from its support to the real line ends.

    Beyond, no number is told from the end itself: a density with mass there, or with an infinite integral, was cut off.

    Parameters
    ----------
    positions : Tensor (..., d)
        On the real line of ``space``, as :func:`sbi_flows.targets.unconstrained` makes it.
    space : Target
    """
    if not isinstance(space, UnconstrainedTarget) or space.user is not space.target:
        return []
    user, far = space.user, torch.full((1, space.features), LARGEST_QUANTILE, dtype=torch.float64)
    # There and back, as an end that is not zero is rounded to well before the map's own.
    low, high = space.from_user(space.to_user(torch.cat([-far, far]))[0])
    rows = positions.reshape(-1, user.features)
    shares = ((rows < low + _HAIR) | (rows > high - _HAIR)).double().mean(0)
    kinds = [column.kind for column in parse_support(user.support, user.features)]
    return [
        f"{float(shares[j]):.1%} of the draws of {user.names[j]} lie at the end of its range as far as numbers reach: the density may not "
        "be integrable there, or has mass beyond"
        for j, kind in enumerate(kinds)
        if kind not in ("real", "circular") and shares[j] > _MANY
    ]


def heavy_tails(positions: Tensor, space: Target, told: str = _CHAINS_TOLD, matters: float = 5e-3) -> tuple[list[str], int]:
    """A reason for each column along which the density has a tail without a variance that matters: local kernels cross it too slowly.
    And the evaluations that took.

    Random walks and trajectories are not geometrically ergodic there (Jarner & Tweedie 2003, "Necessary conditions for geometric and
    polynomial ergodicity of random-walk-type Markov chains", Bernoulli 9): chains that have not been far out agree with each other, and
    their draws look lighter-tailed than they should. The density itself is asked, at points on axes through the median.

    Parameters
    ----------
    positions : Tensor (n_chains, n_draws, d)
        On the real line of ``space``.
    space : Target
    told : str
        What is wrong with such a tail.
    matters : float
        Mass beyond the first place that is looked at.
    """
    rows = positions.flatten(0, 1)
    low, centre, high = torch.from_numpy(np.quantile(rows.numpy(), [0.25, 0.5, 0.75], axis=0))
    columns = (~circular_columns(space)).nonzero()[:, 0].tolist()
    step = torch.diag(high - low)[columns]
    far, further = (r * torch.cat([step, -step]) + centre for r in _FAR)
    with torch.no_grad():
        at, here, there = space.log_prob(torch.cat([centre[None], far, further])).split([1, len(far), len(far)])
    slope = (there - here) / math.log(_FAR[1] / _FAR[0])
    # Mass beyond, if the slices were of equal width: of a Cauchy distribution 3 %, of Student's t with three degrees of freedom 4e-5.
    heavy = (slope > -3.0) & (here - at + math.log(_FAR[0]) > math.log(matters))
    names = space.user.names
    reasons = [
        f"along {names[j]} the density falls off like a power, {told}. Sample a function of it that grows more slowly, or use smc"
        for i, j in enumerate(columns)
        if bool(heavy[i] | heavy[i + len(columns)])
    ]
    return reasons, 2 * len(far) + 1


def _spread(rows: Tensor, angles: Tensor) -> Tensor:
    """Standard deviations ``(d,)``; of an angle, what is one where it is uniform and half the variance where it is narrow, rooted."""
    resultant = torch.stack([rows.cos().mean(0), rows.sin().mean(0)]).norm(dim=0)
    return torch.where(angles, (1 - resultant).clamp(min=0).sqrt(), rows.std(0, correction=0))


def told(n_no_value: int, n: int, where: str = "proposals", acceptance: float = 1.0) -> tuple[list[str], list[str]]:
    """Reasons against a result and notes on it.

    Parameters
    ----------
    n_no_value, n : int
        Points without a value, and all there were.
    where : str
        What the points are.
    acceptance : float
        Mean acceptance of proposals that have a value: bold ones go far out, where a hole does not matter.
    """
    if not n_no_value:
        return [], []
    share = n_no_value / max(n, n_no_value)
    fact = f"the density was NaN or +inf, or could not be computed, at {n_no_value} of {n} {where} ({share:.1%}), which counted as zero"
    if share * max(acceptance, _LEAST_ACCEPTANCE) <= MUCH:
        return [], [f"{fact}: the target has holes there"]
    return [f"{fact}: what lies there is missing. Mend the model there, or return -inf where it rules the parameters out"], []
