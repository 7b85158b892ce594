"""Are ranks uniform? An exact test by simultaneous bands around the empirical distribution function.

A rank among ``n_draws`` draws is uniform on 0..n_draws when truth and draws have one distribution. The number of ranks below a
threshold is then binomial, and at several thresholds together a path of a multinomial, whose chance to stay between two bands is a sum
over paths. The p-values here are that sum: nothing is simulated and nothing is asymptotic.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

MAX_POINTS = 100
# Relative slack within which two p-values of one discrete distribution are the same number.
TIE = 1e-9
# Rounding of a sum of probabilities.
NO_DIGITS = 1e-11
SMALLEST_P = 1e-300


def thresholds(n_draws: int) -> np.ndarray:
    """Thresholds t of 1..n_draws, at most 100 and evenly spaced: a rank is below t with probability ``t / (n_draws + 1)`` exactly."""
    points = min(n_draws, MAX_POINTS)
    return np.unique(np.rint(np.linspace(0, n_draws + 1, points + 2)[1:-1]).astype(int))


def uniformity_p_value(ranks: np.ndarray, n_draws: int) -> float:
    """Exact p-value that ``ranks (m,)`` are independent and uniform on 0..n_draws.

    The statistic is the smallest pointwise two-sided binomial p-value of the empirical distribution function: it sees departures in the
    tails, where narrow posteriors err, as well as in the middle.

    References
    ----------
    Säilynoja, Bürkner & Vehtari 2022, "Graphical test for discrete uniformity and its applications in goodness-of-fit evaluation and
    multiple sample comparison", Statistics and Computing 32:32, arXiv:2103.10522.
    """
    m = len(ranks)
    points = thresholds(n_draws)
    probability = points / (n_draws + 1)
    below = np.searchsorted(np.sort(ranks), points, side="left")
    binomial = stats.binom(m, probability)
    pointwise = 2 * np.minimum(binomial.cdf(below), binomial.sf(below - 1))
    smallest = float(pointwise.min())
    return 1.0 if smallest >= 1 else leaving_probability(m, probability, smallest)


def uniformity_band(m: int, n_draws: int, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Simultaneous band of the fraction of ``m`` uniform ranks below each threshold.

    Returns
    -------
    probability, low, high : ndarray (k,)
        All fractions together stay within ``low..high`` with at least the given probability.
    """
    probability = thresholds(n_draws) / (n_draws + 1)
    low_log, high_log = np.log((1 - confidence) / len(probability)), np.log(1 - confidence)
    for _ in range(30):
        middle = 0.5 * (low_log + high_log)
        if leaving_probability(m, probability, np.exp(middle)) > 1 - confidence:
            high_log = middle
        else:
            low_log = middle
    low, high = _between(m, probability, np.exp(low_log))
    return probability, low / m, high / m


def leaving_probability(m: int, probability: np.ndarray, level: float) -> float:
    """Chance that some pointwise two-sided p-value of ``m`` uniform ranks is at or below ``level``."""
    low, high = _between(m, probability, level)
    steps = np.diff(probability, prepend=0.0, append=1.0) * m
    # A multinomial path is a Poisson path given its end, so one convolution a threshold follows all paths at once.
    alive, bottom = np.ones(1), 0
    for step, lo, hi in zip(steps[:-1], low, high, strict=True):
        jump = stats.poisson.pmf(np.arange(hi - bottom + 1), step)
        alive = np.convolve(alive, jump)[lo - bottom : hi - bottom + 1]
        bottom = lo
    last = stats.poisson.pmf(m - np.arange(bottom, bottom + len(alive)), steps[-1])
    inside = float(alive @ last) / stats.poisson.pmf(m, m)
    # Bonferroni's bound takes over where the sum has no digits left.
    bound = min(1.0, level * len(probability))
    return bound if 1 - inside < NO_DIGITS else min(1 - inside, bound)


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values adjusted for their number by Holm's method: valid whatever their dependence."""
    p_values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p_values)
    adjusted = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1)).clip(max=1.0)
    result = np.empty_like(adjusted)
    result[order] = adjusted
    return result


def central_coverage(ranks: np.ndarray, n_draws: int, mass: float) -> tuple[float, float]:
    """Fraction of truths inside the central interval that holds ``mass`` of the draws, and the fraction an exact posterior gives."""
    tail = int(np.floor((1 - mass) / 2 * (n_draws + 1)))
    inside = (ranks >= tail) & (ranks <= n_draws - tail)
    return float(inside.mean()), (n_draws + 1 - 2 * tail) / (n_draws + 1)


def distance(ranks: np.ndarray, n_draws: int) -> float:
    """Largest difference between the distribution function of ``ranks (m,)`` and the uniform one: 0 none, 1 most."""
    points = thresholds(n_draws)
    below = np.searchsorted(np.sort(ranks), points, side="left") / len(ranks)
    return float(np.abs(below - points / (n_draws + 1)).max())


def p_text(p_value: float, digits: int = 2) -> str:
    """``=0.012``, or ``<1e-300`` for what float64 cannot tell from zero: no test proves a probability to be zero."""
    return f"={p_value:.{digits}g}" if p_value >= SMALLEST_P else f"<{SMALLEST_P:g}"


def shape_in_words(ranks: np.ndarray, n_draws: int) -> str:
    """What kind of departure from uniformity is largest: shifted (either way), too narrow, too wide."""
    u = (ranks + 0.5) / (n_draws + 1) - 0.5
    shift = np.sqrt(12 * len(u)) * u.mean()
    spread = np.sqrt(180 * len(u)) * (np.mean(u**2) - 1 / 12)
    if abs(shift) >= abs(spread):
        return "draws too low" if shift > 0 else "draws too high"
    return "draws too narrow" if spread > 0 else "draws too wide"


def _between(m: int, probability: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest count at each threshold whose two-sided binomial p-value is above ``level``."""
    half = level / 2 * (1 + TIE)
    low = _first(m, lambda count: stats.binom.cdf(count, m, probability) > half, len(probability))
    high = _first(m, lambda count: stats.binom.sf(count, m, probability) <= half, len(probability))
    return low, high


def _first(m: int, holds: Callable[[np.ndarray], np.ndarray], size: int) -> np.ndarray:
    """The smallest count of 0..m at which a condition that stays true once it is true holds, by bisection, ``(size,)``."""
    below, above = np.full(size, -1), np.full(size, m)
    while (above - below > 1).any():
        middle = (below + above) // 2
        true = holds(middle)
        above, below = np.where(true & (middle > below), middle, above), np.where(true, below, middle)
    return above
