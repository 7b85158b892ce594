"""The way from the prior to the posterior: the likelihood to a power that rises, evaluations counted, and the steps of that rise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sbi_flows.samplers.unseen import told
from sbi_flows.targets import Target, as_target
from sbi_flows.targets.evaluation import where_inside

# Dividing a tempered log-density by its power gives back ln L to a part in 1e16 / power; below this it is evaluated again.
_LEAST_POWER = 1e-9


class TemperedPath(Target):
    """``ln prior + power ln L`` with a power that may be changed. NaN and +inf of the likelihood count as impossible, and are counted.

    Parameters
    ----------
    target : Target
        With a prior.

    Attributes
    ----------
    power : float
    start : Distribution
        The prior.
    n_evaluations, n_invalid : int
        Rows at which the likelihood was evaluated, and at which it had no value.
    n_last, n_last_invalid : int
        The same, of rows at which it was asked for at power 1: proposals for the posterior itself.

    Raises
    ------
    ValueError
        If the target has no prior.
    """

    def __init__(self, target: Target):
        target = as_target(target)
        if target.prior is None:
            raise ValueError("Expected a target with a prior to start from: make it with targets.posterior(log_likelihood, prior).")
        super().__init__(target.features, target.names, target.support, target.prior)
        self.start, self._target = target.prior, target
        self.power = 1.0
        self.n_evaluations = self.n_invalid = self.n_last = self.n_last_invalid = 0

    def log_prior(self, x: Tensor) -> Tensor:
        """``(n,)``."""
        return self.start.log_prob(x).double()

    def log_likelihood(self, x: Tensor) -> Tensor:
        """ln L ``(n,)`` of rows inside the prior."""
        return self.log_likelihood_with_holes(x, torch.full((len(x),), self.power == 1))

    def log_likelihood_with_holes(self, x: Tensor, last: Tensor) -> Tensor:
        """The same, where the rows ``last (n,)`` are proposals for the posterior."""
        values = self._target.log_likelihood(x)
        invalid = torch.isnan(values) | (values == math.inf)
        self.n_evaluations += len(x)
        self.n_invalid += int(invalid.sum())
        self.n_last += int(last.sum())
        self.n_last_invalid += int((invalid & last).sum())
        return torch.where(invalid, -math.inf, values)

    def told(self, acceptance: float = 1.0) -> tuple[list[str], list[str]]:
        """Reasons and notes on points without a value: those at power 1 decide, as others are far from the posterior."""
        reasons, notes = told(self.n_last_invalid, self.n_last, "proposals for the posterior", acceptance)
        if self.n_invalid > self.n_last_invalid:
            where = f"at {self.n_invalid} of {self.n_evaluations} points in all"
            notes.append(f"the likelihood was NaN or +inf, or could not be computed, {where}")
        return reasons, notes

    def log_prob(self, x: Tensor) -> Tensor:
        log_prior, log_likelihood = self.evaluate(x)
        return log_prior + self.power * log_likelihood

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """ln prior and ln L, ``(n,)`` each; outside the prior, where the likelihood is not evaluated, both are -inf."""
        x = self._checked(x)
        log_prior = self.log_prior(x)
        return log_prior, where_inside(self.log_likelihood, x, torch.isfinite(log_prior), "log_likelihood")

    def recovered(self, x: Tensor, log_prob: Tensor) -> Tensor:
        """ln L ``(n,)`` at rows whose tempered density is known, without evaluating it where that can be helped."""
        if self.power < _LEAST_POWER:
            return self.log_likelihood(x)
        return (log_prob - self.log_prior(x)) / self.power

    def first_draws(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws of the prior ``(n, d)`` and their ln L ``(n,)``; ``ValueError`` if it is zero at all of them."""
        x = self.start.sample(n, generator).double()
        log_likelihood = self.log_likelihood_with_holes(x, torch.zeros(n, dtype=torch.bool))
        if not bool((log_likelihood > -math.inf).any()):
            holes = f" ({self.n_invalid} times it was NaN or +inf)" if self.n_invalid else ""
            raise ValueError(
                f"Expected a likelihood above zero somewhere; it is zero at all of {n} draws of the prior{holes}. "
                "Is the observation one that the model can produce?"
            )
        return x, log_likelihood


def rise(log_likelihood: Tensor, left: float, ess: float) -> float:
    """How much further the power may rise so that particles stay worth ``ess``, by bisection."""
    possible = log_likelihood[log_likelihood > -math.inf]
    # Impossible particles are lost at once, however small the rise.
    enough = min(ess, 0.5 * len(possible))

    def effective(step: float) -> float:
        return float(1 / torch.softmax(step * possible, 0).square().sum())

    if effective(left) >= enough:
        return left
    low, high = 0.0, left
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if effective(middle) >= enough else (low, middle)
    return max(low, 1e-300)


def systematic(weights: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n rows drawn in proportion to their weights, with the least noise; shuffled."""
    offset = torch.rand((), generator=generator, dtype=weights.dtype)
    edges = weights.cumsum(0) / weights.sum()
    rows = torch.searchsorted(edges, (offset + torch.arange(n, dtype=weights.dtype)) / n).clamp(max=len(weights) - 1)
    return rows[torch.randperm(n, generator=generator)]
