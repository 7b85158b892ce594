"""Priors: numbers kept in float64, any float input accepted, float64 returned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from sbi_flows._random import rand, randn
from sbi_flows.distributions.base import LOG_2PI, Distribution


class BoxUniform(Distribution):
    """Uniform between ``low`` and ``high``.

    Parameters
    ----------
    low, high : array-like (d,)
        The ends, ``low < high``; a float makes one column.
    names : sequence of str, optional

    Examples
    --------
    >>> prior = BoxUniform([-18, 0], [-11, 7], names=["log10_A", "gamma"])
    >>> prior.log_prob(torch.tensor([[-14.0, 3.0]])).item()
    -3.8918...
    """

    low: Tensor
    high: Tensor

    def __init__(self, low, high, names: Sequence[str] | None = None):
        low, high = _vector(low, "low"), _vector(high, "high")
        if len(low) != len(high) and min(len(low), len(high)) != 1:
            raise ValueError(
                f"Expected as many ends in low as in high; got {len(low)} and {len(high)}: low={low.tolist()}, high={high.tolist()}."
            )
        low, high = torch.broadcast_tensors(low, high)
        if not bool((low < high).all()) or not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
            raise ValueError(f"Expected finite low < high in every column; got low={low.tolist()}, high={high.tolist()}.")
        super().__init__(len(low), names, support=list(zip(low.tolist(), high.tolist(), strict=True)))
        self.double()
        self.register_buffer("low", low.clone())
        self.register_buffer("high", high.clone())

    def sample(self, n, generator=None):
        uniform = rand((n, self.features), generator, dtype=self.low.dtype, device=self.low.device)
        return torch.lerp(self.low, self.high, uniform)

    def log_prob(self, x):
        x = self._check(x)
        outside = ((x < self.low) | (x > self.high)).any(-1)
        # Zero times the clipped position keeps NaN inputs NaN and gives gradients (of zero) to whoever asks for them.
        inside = (0.0 * x.clamp(self.low, self.high)).sum(-1) - torch.log(self.high - self.low).sum()
        return inside.masked_fill(outside, -math.inf)


class MultivariateNormal(Distribution):
    """Normal of the given mean and covariance.

    Parameters
    ----------
    mean : array-like (d,)
    cov : array-like (d, d)
        Symmetric positive definite.
    names : sequence of str, optional

    Examples
    --------
    >>> MultivariateNormal([0.0], [[4.0]]).log_prob(torch.zeros(1, 1)).item()
    -1.6120...
    >>> MultivariateNormal([0.0], [[4.0]], ["a"])
    MultivariateNormal(a: 0 +- 2)
    """

    mean: Tensor
    cholesky: Tensor

    def __init__(self, mean, cov, names: Sequence[str] | None = None):
        mean = _vector(mean, "mean")
        cov = torch.as_tensor(np.asarray(cov, dtype=np.float64))
        if cov.shape != (len(mean), len(mean)):
            raise ValueError(f"Expected cov of shape ({len(mean)}, {len(mean)}) to match the mean; got {tuple(cov.shape)}.")
        if not torch.allclose(cov, cov.T, rtol=1e-10, atol=0):
            raise ValueError("Expected a symmetric cov; got one that is not. Pass (cov + cov.T) / 2 if it is rounding.")
        cholesky, info = torch.linalg.cholesky_ex(cov)
        if info != 0:
            raise ValueError(f"Expected a positive definite cov; its smallest eigenvalue is {torch.linalg.eigvalsh(cov)[0]:.3g}.")
        super().__init__(len(mean), names)
        self.double()
        self.register_buffer("mean", mean)
        self.register_buffer("cholesky", cholesky)

    def sample(self, n, generator=None):
        return self.mean + randn((n, self.features), generator, dtype=self.mean.dtype, device=self.mean.device) @ self.cholesky.T

    def log_prob(self, x):
        z = torch.linalg.solve_triangular(self.cholesky, (self._check(x) - self.mean).T, upper=False)
        return -0.5 * (z.square().sum(0) + self.features * LOG_2PI) - torch.log(self.cholesky.diagonal()).sum()

    def _told(self, j):
        return f"{float(self.mean[j]):.4g} +- {float(self.cholesky[j].norm()):.3g}"


class Choice(Distribution):
    """A discrete column: one of some values.

    Parameters
    ----------
    values : array-like (k,) or int
        Different numbers; an int stands for 0, 1, ..., k - 1.
    probabilities : array-like (k,), optional
        Positive; equal by default, scaled to sum to one.
    names : sequence of str, optional
        One name.

    Examples
    --------
    >>> prior = Product([Choice([1, 2, 4], names=["n_sources"]), BoxUniform(0.0, 1.0, names=["amplitude"])])
    >>> prior.log_prob(torch.tensor([[4.0, 0.5], [3.0, 0.5]])).tolist()
    [-1.0986122886681098, -inf]
    """

    values: Tensor
    probabilities: Tensor
    box = False

    def __init__(self, values, probabilities=None, names: Sequence[str] | None = None):
        values = _vector(range(values) if isinstance(values, int) else values, "values")
        weights = torch.ones_like(values) if probabilities is None else _vector(probabilities, "probabilities")
        if len(values) < 2 or len(values.unique()) < len(values) or not bool(torch.isfinite(values).all()):
            raise ValueError(f"Expected at least two different finite values; got {values.tolist()}.")
        if weights.shape != values.shape or not bool((weights > 0).all()) or not bool(torch.isfinite(weights).all()):
            raise ValueError(f"Expected {len(values)} positive probabilities, one a value; got {weights.tolist()}.")
        super().__init__(1, names)
        self.double()
        order = torch.argsort(values)
        self.register_buffer("values", values[order].clone())
        self.register_buffer("probabilities", (weights / weights.sum())[order].clone())
        self.discrete = {0: tuple(self.values.tolist())}

    def sample(self, n, generator=None):
        u = rand((n, 1), generator, dtype=self.values.dtype, device=self.values.device)
        picked = (u >= self.probabilities.cumsum(0)).sum(1, keepdim=True)
        return self.values[picked.clamp(max=len(self.values) - 1)]

    def log_prob(self, x):
        chosen = (self._check(x) == self.values).to(self.values)
        # Zero times x keeps NaN inputs NaN.
        return torch.log((chosen * self.probabilities).sum(-1)) + 0.0 * x.to(self.values)[:, 0]


class Product(Distribution):
    """Independent priors side by side; their columns follow each other in the order given.

    Examples
    --------
    >>> Product([BoxUniform(0.0, 1.0, names=["a"]), MultivariateNormal([0.0], [[1.0]], names=["b"])]).names
    ('a', 'b')
    """

    def __init__(self, parts: Sequence[Distribution]):
        if not parts:
            raise ValueError("Expected at least one prior to multiply; got none.")
        named = [part.names for part in parts]
        names = [name for part in named if part is not None for name in part] if all(part is not None for part in named) else None
        if names is not None and len(set(names)) != len(names):
            raise ValueError(f"Expected different names in the parts of a product; got {', '.join(names)}.")
        super().__init__(sum(part.features for part in parts), names, [entry for part in parts for entry in part.support])
        self.double()
        self.parts = cast(Sequence[Distribution], nn.ModuleList(parts))
        self._widths = [part.features for part in parts]
        self.box = all(part.box for part in parts)
        starts = accumulate((part.features for part in parts), initial=0)
        self.discrete = {start + j: values for start, part in zip(starts, parts, strict=False) for j, values in part.discrete.items()}
        self.notes = tuple(note for part in parts for note in part.notes)

    def sample(self, n, generator=None):
        return torch.cat([part.sample(n, generator) for part in self.parts], dim=-1)

    def log_prob(self, x):
        blocks = self._check(x).split(self._widths, dim=-1)
        return torch.stack([part.log_prob(block) for part, block in zip(self.parts, blocks, strict=True)]).sum(0)


def _vector(values, what: str) -> Tensor:
    array = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if array.ndim != 1:
        raise ValueError(f"Expected {what} of shape (d,); got {array.shape}.")
    return torch.as_tensor(array)
