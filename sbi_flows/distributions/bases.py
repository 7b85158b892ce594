"""Base densities of flows, in the dtype and on the device of their flow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from sbi_flows._random import rand, randn
from sbi_flows.distributions.base import LOG_2PI, Distribution


class StandardNormal(Distribution):
    """Independent normals of zero mean and unit variance.

    Examples
    --------
    >>> StandardNormal(2).log_prob(torch.zeros(1, 2))
    tensor([-1.8379])
    """

    def sample(self, n, generator=None):
        return randn((n, self.features), generator, dtype=self._anchor.dtype, device=self._anchor.device)

    def log_prob(self, x):
        return -0.5 * (x.square().sum(-1) + self.features * LOG_2PI)


class StudentT(Distribution):
    """Independent Student t of ``df`` degrees of freedom, scaled to have the quartiles of a standard normal nearly.

    A base with power-law tails: a flow whose tails are linear keeps them.

    Parameters
    ----------
    features : int
    df : float
        Degrees of freedom, positive; it is fixed, not trained.

    References
    ----------
    Jaini, Kobyzev, Yu & Brubaker 2020, "Tails of Lipschitz triangular flows", ICML, arXiv:1907.04481.
    """

    def __init__(self, features: int, df: float = 4.0):
        super().__init__(features)
        if not df > 0:
            raise ValueError(f"Expected df > 0 degrees of freedom; got {df}.")
        self.df = float(df)

    def sample(self, n, generator=None):
        # Bailey 1994's polar form needs only uniforms, so the generator decides every draw on every device:
        # t = sqrt(df (u^(-2/df) - 1)) cos(2 pi v).
        uniforms = rand((2, n, self.features), generator, dtype=torch.float64, device=self._anchor.device)
        u, v = 1 - uniforms[0], uniforms[1]
        radius = torch.sqrt(self.df * torch.expm1(-2 / self.df * torch.log(u)))
        return (radius * torch.cos(2 * math.pi * v)).to(self._anchor.dtype)

    def log_prob(self, x):
        df = self.df
        log_norm = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
        return self.features * log_norm - 0.5 * (df + 1) * torch.log1p(x.square() / df).sum(-1)


class NormalMixture(Distribution):
    """A trainable mixture of normals with diagonal covariances: a base for separated modes.

    Parameters
    ----------
    features, components : int
    spread : float
        Standard deviation of the initial means, in units of the (standardised) data.
    generator : torch.Generator, optional
        Draws the initial means.

    References
    ----------
    Izmailov, Kirichenko, Finzi & Wilson 2020, "Semi-supervised learning with normalizing flows", arXiv:1912.13025.
    """

    logits: nn.Parameter
    means: nn.Parameter
    log_scales: nn.Parameter

    def __init__(self, features: int, components: int = 4, spread: float = 1.0, generator: torch.Generator | None = None):
        super().__init__(features)
        if components < 1:
            raise ValueError(f"Expected at least one component; got {components}.")
        self.logits = nn.Parameter(torch.zeros(components))
        means = randn((components, features), generator, dtype=torch.get_default_dtype(), device="cpu")
        self.means = nn.Parameter(spread * means)
        self.log_scales = nn.Parameter(torch.zeros(components, features))

    @torch.no_grad()
    def fit(
        self, z: Tensor, weights: Tensor | None = None, generator: torch.Generator | None = None, n_steps: int = 40
    ) -> NormalMixture:
        """Start from data: expectation maximisation on rows ``z (n, d)`` from k-means++ centres.

        Dempster, Laird & Rubin 1977; Arthur & Vassilvitskii 2007.
        """
        z = z.double()
        w = torch.full((len(z),), 1.0 / len(z), dtype=z.dtype, device=z.device) if weights is None else (weights / weights.sum()).to(z)
        means = _spread_out_rows(z, w, len(self.logits), generator)
        spread = (w @ (z - w @ z).square()).sqrt()
        scales = (spread / len(means) ** (1 / self.features)).expand_as(means)
        floor = 1e-6 * spread.square()  # a component may not collapse on one row
        log_shares = torch.full_like(means[:, 0], -math.log(len(means)))
        for _ in range(n_steps):
            distance = ((z[:, None] - means) / scales).square().sum(-1)
            log_each = log_shares - 0.5 * distance - scales.log().sum(-1)
            responsibility = torch.softmax(log_each, dim=1) * w[:, None]
            share = responsibility.sum(0).clamp(min=1e-12)
            means = (responsibility.T @ z) / share[:, None]
            second = (responsibility.T @ z.square()) / share[:, None]
            scales = torch.maximum(second - means.square(), floor).sqrt()
            log_shares = share.log()
        self.logits.copy_(log_shares)
        self.means.copy_(means)
        self.log_scales.copy_(scales.log())
        return self

    def sample(self, n, generator=None):
        weights = torch.softmax(self.logits.detach(), 0)
        uniform = rand((n,), generator, dtype=weights.dtype, device=weights.device)
        which = torch.searchsorted(weights.cumsum(0), uniform).clamp(max=len(weights) - 1)
        noise = randn((n, self.features), generator, dtype=weights.dtype, device=weights.device)
        return self.means[which].detach() + noise * torch.exp(self.log_scales[which].detach())

    def log_prob(self, x):
        z = (x[:, None] - self.means) * torch.exp(-self.log_scales)
        log_each = -0.5 * (z.square().sum(-1) + self.features * LOG_2PI) - self.log_scales.sum(-1)
        return torch.logsumexp(log_each + torch.log_softmax(self.logits, 0), dim=-1)


def _spread_out_rows(z: Tensor, weights: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
    """``k`` rows of ``z``, each drawn in proportion to its squared distance from those already taken."""
    chosen = z[torch.multinomial(weights, 1, generator=generator)]
    for _ in range(k - 1):
        distance = torch.cdist(z, chosen).square().amin(dim=1)
        chosen = torch.cat([chosen, z[torch.multinomial(distance * weights + 1e-300, 1, generator=generator)]])
    return chosen


class Torus(Distribution):
    """Uniform on the torus: each column an angle on [-pi, pi)."""

    def __init__(self, features: int):
        super().__init__(features, support="circular")

    def sample(self, n, generator=None):
        uniform = rand((n, self.features), generator, dtype=self._anchor.dtype, device=self._anchor.device)
        return (2 * uniform - 1) * math.pi

    def log_prob(self, x):
        return (0.0 * x).sum(-1) - self.features * LOG_2PI


class Columns(Distribution):
    """Independent densities on given columns: ``parts[i]`` models the columns ``columns[i]``."""

    def __init__(self, parts: Sequence[Distribution], columns: Sequence[Sequence[int]]):
        features = sum(part.features for part in parts)
        if sorted(i for block in columns for i in block) != list(range(features)):
            raise ValueError(f"Expected the blocks of columns to cover 0..{features - 1} once; got {list(columns)}.")
        entries = dict(zip((i for block in columns for i in block), (s for p in parts for s in p.support), strict=True))
        super().__init__(features, support=[entries[i] for i in range(features)])
        self.parts = cast(Sequence[Distribution], nn.ModuleList(parts))
        self.columns = [list(block) for block in columns]
        self._order = [i for block in self.columns for i in block]

    def sample(self, n, generator=None):
        joined = torch.cat([part.sample(n, generator) for part in self.parts], dim=-1)
        return joined[:, np.argsort(self._order).tolist()]

    def log_prob(self, x):
        return sum(part.log_prob(x[:, block]) for part, block in zip(self.parts, self.columns, strict=True))
