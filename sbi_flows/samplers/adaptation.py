"""What gradient kernels learn in warm-up, from all chains together: the length of a step, and the shape of the target."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sbi_flows.targets import wrap_angles

METRICS = ("auto", "dense", "diagonal")
# Shares of the warm-up at which the metric is renewed from the draws since the last time. Windows grow, as the draws get better; what came
# before the first is the way in, and after the last only the step is tuned to the final metric.
_FIRST, *_RENEWALS = 0.05, 0.1, 0.15, 0.25, 0.45, 0.9
_DENSE_DRAWS = 20  # a column: with fewer, a full covariance is noise that costs more than the correlations it finds
_DENSE_COLUMNS = 500  # beyond which "auto" never goes: matrix products would rival the target
_SHRINKAGE = 5  # draws that say there are no correlations
# Dual averaging with the constants of Hoffman & Gelman 2014, section 3.2.1, but for the first, there 0.05: the mean over chains follows the
# step at once, and at that strength the two chase each other around the value sought.
_REGULARISATION, _STABILISATION, _FORGETTING = 0.2, 10.0, 0.75


class Learned(NamedTuple):
    """Step size and metric, and the running sums behind them.

    Attributes
    ----------
    step_size : Tensor ()
        That of the next step.
    log_average, excess, anchor, n_steps : Tensor ()
        Of dual averaging: averaged log step, mean shortfall of acceptance, log step it is drawn to, steps since it began.
    factor : Tensor (d,) or (d, d)
        Square root of the inverse mass.
    n_draws, centre, total, scatter : Tensor (), (d,), (d,), (d, d) or (d,)
        Draws of the present window: how many, about where, their sum and that of their squares about there.
    done : Tensor ()
        Share of the warm-up that was over at the last adaptation.
    """

    step_size: Tensor
    log_average: Tensor
    excess: Tensor
    anchor: Tensor
    n_steps: Tensor
    factor: Tensor
    n_draws: Tensor
    centre: Tensor
    total: Tensor
    scatter: Tensor
    done: Tensor


def begin(x: Tensor, step_size: float, metric: str, circular: Tensor) -> Learned:
    """The metric from the spread of the starting points ``x (n, d)`` where there is any, else one."""
    zero = x.new_zeros(())
    learned = Learned(zero, zero, zero, zero, zero, torch.ones_like(x[0]), zero, x[0], x[0], x[0], zero)
    learned = _observe(_empty(learned, x, metric), x, circular)
    return restart(_empty(_renewed(learned, metric), x, metric), step_size)


def restart(learned: Learned, step_size: float | Tensor) -> Learned:
    """Dual averaging begun anew from a step size."""
    log_step = torch.as_tensor(step_size, dtype=torch.float64, device=learned.factor.device).log()
    zero = torch.zeros_like(log_step)
    # Drawn to where it starts, not to ten times that as in the reference: trials, or the window before, have found the step to a factor of
    # two, and a short window would not come back from ten.
    return learned._replace(step_size=log_step.exp(), log_average=log_step, excess=zero, anchor=log_step, n_steps=zero)


def learn(learned: Learned, x: Tensor, acceptance: Tensor, wanted: float, metric: str, circular: Tensor, done: float) -> Learned:
    """What one more step of all chains teaches, ``done`` of the warm-up being over.

    References
    ----------
    Hoffman & Gelman 2014, "The No-U-Turn Sampler", arXiv:1111.4246, section 3.2 (dual averaging); Carpenter et al. 2017, "Stan", Journal of
    Statistical Software 76 (windows).
    """
    before = float(learned.done)
    learned = _tuned(learned._replace(done=torch.full_like(learned.done, done)), acceptance, wanted)
    learned = _observe(learned, x, circular)
    if before < _FIRST <= done:
        learned = _empty(learned, x, metric)
    if any(before < end <= done for end in _RENEWALS):
        learned = restart(_empty(_renewed(learned, metric), x, metric), learned.log_average.exp())
    return learned._replace(step_size=learned.log_average.exp()) if done >= 1 else learned


def _tuned(learned: Learned, acceptance: Tensor, wanted: float) -> Learned:
    t = learned.n_steps + 1
    weight = 1 / (t + _STABILISATION)
    excess = (1 - weight) * learned.excess + weight * (wanted - acceptance.mean())
    log_step = learned.anchor - t.sqrt() / _REGULARISATION * excess
    gain = t**-_FORGETTING
    return learned._replace(
        step_size=log_step.exp(), log_average=(1 - gain) * learned.log_average + gain * log_step, excess=excess, n_steps=t
    )


def _empty(learned: Learned, x: Tensor, metric: str) -> Learned:
    """A new window of draws, measured from the first of ``x``."""
    d = x.shape[1]
    full = metric == "dense" or (metric == "auto" and d <= _DENSE_COLUMNS)
    return learned._replace(
        n_draws=x.new_zeros(()), centre=x[0].clone(), total=x.new_zeros(d), scatter=x.new_zeros((d, d) if full else d)
    )


def _observe(learned: Learned, x: Tensor, circular: Tensor) -> Learned:
    away = wrap_angles(x - learned.centre, circular)
    scatter = away.T @ away if learned.scatter.ndim == 2 else away.square().sum(0)
    return learned._replace(
        n_draws=learned.n_draws + len(x), total=learned.total + away.sum(0), scatter=learned.scatter + scatter
    )


def _renewed(learned: Learned, metric: str) -> Learned:
    """The metric from the draws of the window; where there are too few, or a column has not moved, as it was."""
    n, d = float(learned.n_draws), len(learned.centre)
    if n < 2:
        return learned
    mean = learned.total / n
    dense = learned.scatter.ndim == 2
    moments = learned.scatter / n - (torch.outer(mean, mean) if dense else mean.square())
    variance = moments.diagonal() if dense else moments
    old = learned.factor.square() if learned.factor.ndim == 1 else learned.factor.square().sum(-1)
    variance = torch.where((variance > 0) & torch.isfinite(variance), variance, old)
    if dense and (metric == "dense" or n >= _DENSE_DRAWS * d):
        covariance = (n * moments + _SHRINKAGE * torch.diag(variance)) / (n + _SHRINKAGE)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if not int(failed) and bool(torch.isfinite(factor).all()):
            return learned._replace(factor=factor.contiguous())  # rows, as a file gives them back: columns round otherwise
    return learned._replace(factor=variance.sqrt())
