"""Whether parameters follow the prior, and whether x tells anything of them: what a fit to the wrong pairs does not show by itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from sbi_flows._random import numpy_generator, torch_generator
from sbi_flows.distributions import Distribution
from sbi_flows.results import FitHistory

_DRAWS = 20_000
_FALSE_ALARM = 1e-6  # of all columns together
_FEW_HELD_OUT = 10
_MOST_HELD_OUT = 1000
_CLIP = 10.0  # nats: a single simulation proves no more
_PASSED_BY_CHANCE = 0.01
_OTHER_PAIRS, _MOST_OTHERS = 2000, 20


def off_prior(theta: np.ndarray, prior: Distribution, names: Sequence[str]) -> list[str]:
    """Reasons against ``theta (n, d)`` as draws of the prior.

    Each column is compared with 20 000 draws by the Kolmogorov-Smirnov distance. Draws of the prior give a reason once in 10^6 times; of
    1000 a column is noticed when its distribution function is off by 0.09 somewhere, of 10 000 by 0.04. How columns depend on each
    other is not looked at.

    Examples
    --------
    >>> from sbi_flows.distributions import BoxUniform
    >>> prior = BoxUniform([0.0], [1.0])
    >>> off_prior(np.linspace(0, 1, 500)[:, None], prior, ["a"])
    []
    >>> off_prior(np.linspace(0, 0.5, 500)[:, None], prior, ["a"])[0][:42]
    'theta does not follow the prior: of a 100%'
    """
    draws = prior.sample(_DRAWS, torch_generator(0)).double().cpu().numpy()
    worst, told = 1.0, ""
    for name, given, drawn in zip(names, theta.T, draws.T, strict=True):
        found = stats.ks_2samp(given, drawn, method="asymp")
        if found.pvalue * len(names) < min(_FALSE_ALARM, worst):
            worst, place = found.pvalue * len(names), found.statistic_location
            shares = [(column <= place).mean() for column in (given, drawn)]
            told = f"of {name} {shares[0]:.0%} lie at or below {place:.3g}, where the prior has {shares[1]:.0%}"
    if not told:
        return []
    return [
        f"theta does not follow the prior: {told}. What is learned is then the posterior of another prior: simulate draws of the prior, or "
        "give the one that was used; if theta was drawn from part of the prior on purpose, as draw_truncated does, pass from_prior=False"
    ]


def tells_nothing(gains: np.ndarray, history: FitHistory) -> list[str]:
    """Reasons from held-out pairs, by how much more probable each is than with the x (or theta) of others, ``(n, k)`` nats.

    Where x and theta have nothing to do with each other the mean is zero for any weights that did not see the pairs. Those that
    were kept did see them: they are of the epoch that did best on them. So the bound of the t-test allows for as many looks as there were
    epochs and members, and unrelated pairs pass with a probability of about 1 % at most. Information passes if its mean is
    about four standard errors or more: for a gain of half a nat that scatters by one, that takes 70 held-out simulations; with fewer than
    10 nothing is said. Gains count as at most 10 nats, so that no single pair decides.

    Parameters
    ----------
    gains : ndarray (n, k)
        Each held-out pair against k others.
    history : FitHistory
        Of the fit.
    """
    gains = np.nan_to_num(np.clip(gains, -_CLIP, _CLIP), nan=0.0).mean(axis=1)
    n = len(gains)
    if n < _FEW_HELD_OUT:
        return []
    mean, error = gains.mean(), gains.std(ddof=1) / np.sqrt(n)
    looks = 1 + history.validation_loss.size
    if mean > stats.t.isf(_PASSED_BY_CHANCE / looks, n - 1) * error:
        return []
    return [
        f"x tells nothing of theta that shows on {n} held-out simulations: theirs are hardly more probable together than those of "
        f"different ones (by {mean:.2g} +- {error:.2g} nats). Do the rows of theta and x belong together, does the simulator use theta? "
        "If so, simulate more"
    ]


def exchanged(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Up to 1000 of the row numbers, ``(n,)``, and for each of them k others, ``(n, k)``: 2000 pairs or so, at most 20 for each."""
    some = numpy_generator(0).permutation(rows)[:_MOST_HELD_OUT]
    k = min(_MOST_OTHERS, max(1, _OTHER_PAIRS // max(len(some), 1)), max(len(some) - 1, 1))
    return some, np.stack([np.roll(some, shift) for shift in range(1, k + 1)], axis=1)
