"""From a normal to a target through the densities between them, on real columns of order one, every evaluation counted."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sbi_flows._validation import as_float, positive
from sbi_flows.distributions.base import LOG_2PI
from sbi_flows.targets import Target, circular_columns, unconstrained

_PRIOR_DRAWS = 1000  # they only have to say where the prior is, and how wide
_IMPOSSIBLE = -1e3  # nats, in training alone, for a path that ends where the target is zero or has no value
_FEWEST = 2  # rows of a start from which a spread can be taken


class NormalPath(Target):
    """A target in coordinates in which paths begin at a standard normal.

    Parameters
    ----------
    target : Target
        Without angles.
    start : array_like (n, d), optional
        Rows about as wide as the target or wider, in the user's parameters; the normal has their mean and spread on the real line.
    scale : float, optional
        In place of ``start``, for targets on real columns: the normal has zero mean and this standard deviation.
    generator : torch.Generator
        Draws the prior, which serves where neither is given.

    Attributes
    ----------
    target : Target
        As the user gave it.
    n_evaluations, n_gradients, n_invalid : int
        Rows at which the log-density was evaluated, and of them those with gradient, and those where it was NaN or +inf.

    Raises
    ------
    ValueError
        If the target has angles, or nothing says where to begin.
    """

    def __init__(self, target: Target, start: Any, scale: float | None, generator: torch.Generator):
        if not isinstance(target, Target):
            raise TypeError(
                f"Expected target to be a Target; got a {type(target).__name__}. Make one with targets.from_log_prob(function, d) or "
                "targets.posterior(log_likelihood, prior)."
            )
        if bool(circular_columns(target).any()):
            raise ValueError("Expected a target without angles, as paths begin at a normal; use smc or run_chains for circular columns.")
        super().__init__(target.features, target.names)
        self.target = target
        rows = self._first_rows(start, scale, generator)
        self._space = unconstrained(target, rows)
        y = self._space.from_user(rows)
        self._centre, self._width = y.mean(0), y.std(0, correction=0).clamp(min=1e-12)
        self.n_evaluations = self.n_gradients = self.n_invalid = 0

    def _first_rows(self, start: Any, scale: float | None, generator: torch.Generator) -> Tensor:
        d, target = self.features, self.target
        if start is not None:
            rows = as_float(start, "start").double()
            if rows.ndim != 2 or rows.shape[1] != d or len(rows) < _FEWEST:
                raise ValueError(f"Expected start of shape (n, {d}) with at least {_FEWEST} rows; got {tuple(rows.shape)}.")
            return rows
        if scale is not None:
            positive("scale", scale)
            if any(entry != "real" for entry in target.support):
                raise ValueError("Expected scale only for targets on real columns; give start=, rows inside the support.")
            return torch.stack([torch.full((d,), s * float(scale), dtype=torch.float64) for s in (-1, 1)])
        if target.prior is None:
            raise ValueError(
                "Expected to be told where paths should begin, as this target has no prior: pass start=, rows about as wide as the "
                "target or wider, or scale=, a standard deviation about zero."
            )
        return target.prior.sample(_PRIOR_DRAWS, generator).double()

    # --- Densities -----------------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor) -> Tensor:
        """``(n,)``: the target's, Jacobian included; -inf where it was NaN or +inf."""
        value = self._space.log_prob(self._centre + self._width * x) + self._width.log().sum()
        invalid = torch.isnan(value) | (value == math.inf)
        self.n_evaluations += len(x)
        self.n_gradients += len(x) if x.requires_grad and torch.is_grad_enabled() else 0
        self.n_invalid += int(invalid.sum())
        return torch.where(invalid, -math.inf, value)

    def value_and_score(self, x: Tensor, attached: bool = False) -> tuple[Tensor, Tensor]:
        """Log-density ``(n,)`` and its gradient ``(n, d)``, zero where it has none; with ``attached`` both may be differentiated again."""
        value, gradient = self._differentiated(x, attached)
        return value, torch.where(torch.isfinite(gradient).all(-1, keepdim=True), gradient, 0.0)

    def _differentiated(self, x: Tensor, attached: bool) -> tuple[Tensor, Tensor]:
        if not attached:
            return self.log_prob_and_grad(x)
        x = x if x.requires_grad else x.detach().requires_grad_()
        with torch.enable_grad():
            value = self.log_prob(x)
            (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        return value, gradient

    def to_user(self, x: Tensor) -> tuple[Tensor, Tensor]:
        theta, log_det = self._space.to_user(self._centre + self._width * x)
        return theta, log_det + self._width.log().sum()

    def from_user(self, x: Tensor) -> Tensor:
        return (self._space.from_user(x) - self._centre) / self._width

    def recorded(self, x: Tensor) -> Tensor:
        return self.target.recorded(x)

    @property
    def notes(self):
        return self.target.notes


class Between(Target):
    """The normal to the power ``1 - power`` times the target to the ``power``.

    Parameters
    ----------
    path : NormalPath
    power : Tensor ()
        In [0, 1].
    """

    def __init__(self, path: NormalPath, power: Tensor):
        super().__init__(path.features, path.names)
        self.path, self.power = path, power

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.lerp(log_normal(x), self.path.log_prob(x), self.power)

    def score(self, x: Tensor, attached: bool) -> Tensor:
        """Gradient ``(n, d)`` of the log-density; with ``attached`` it may be differentiated again."""
        return torch.lerp(-x, self.path.value_and_score(x, attached)[1], self.power)


def log_normal(x: Tensor) -> Tensor:
    """Standard normal log-density ``(n,)`` of ``x (n, d)``."""
    return -0.5 * (x.square().sum(-1) + x.shape[-1] * LOG_2PI)


def trainable(log_weights: Tensor) -> Tensor:
    """Log path weights ``(n,)`` with those of impossible paths at a constant: a loss can go on without them."""
    return torch.where(torch.isfinite(log_weights), log_weights, _IMPOSSIBLE)


def has_second_derivatives(path: NormalPath, x: Tensor) -> bool:
    """Whether the gradient of the target's density may be differentiated again, tried at rows ``x (n, d)``."""
    x = x.detach().requires_grad_()
    try:
        _, gradient = path.value_and_score(x, attached=True)
        if not gradient.requires_grad:
            return False
        torch.autograd.grad(gradient.sum(), x)
    except RuntimeError:  # torch's own answer, and NotImplementedError of maps with first derivatives only
        return False
    return True
