"""Base densities of flows, and priors: each a module with ``sample`` and ``log_prob``.

Bases work in the dtype and on the device of their flow. Priors keep their numbers in float64, accept any float input and
return float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from sbi_flows._random import numpy_generator, rand, randn, seed_from
from sbi_flows.bijections.support import ColumnSupport, parse_support

LOG_2PI = math.log(2 * math.pi)


class Distribution(nn.Module, ABC):
    """A density over ``features`` columns.

    Attributes
    ----------
    features : int
    names : tuple of str or None
        Parameter names, where the columns have any.
    support : list
        One entry a column in the grammar of :func:`sbi_flows.bijections.support.parse_support`.
    """

    def __init__(self, features: int, names: Sequence[str] | None = None, support=None):
        super().__init__()
        if features < 1:
            raise ValueError(f"Expected at least one column; got features={features}.")
        if names is not None and len(names) != features:
            raise ValueError(f"Expected {features} names, one a column; got {len(names)}: {', '.join(names)}.")
        self.features = features
        self.names = None if names is None else tuple(names)
        self._columns = parse_support(support, features, self.names)
        # Carries the dtype and device of densities that have no other number to carry them.
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)

    _anchor: Tensor

    @property
    def support(self) -> list:
        return [_grammar(column) for column in self._columns]

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``(n, d)`` draws."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Normalised natural-log density of ``x (n, d)``, shape ``(n,)``; -inf outside the support."""

    def _check(self, x: Tensor) -> Tensor:
        x = torch.as_tensor(x)
        if x.ndim != 2 or x.shape[1] != self.features:
            hint = "For a single point pass x[None]." if x.ndim == 1 and x.shape[0] == self.features else "Rows are points."
            raise ValueError(f"Expected x of shape (n, {self.features}); got {tuple(x.shape)}. {hint}")
        return x.to(self._anchor)


def _grammar(column: ColumnSupport):
    entry = column.entry
    if isinstance(entry, str):
        return entry
    return ("circular", column.low, column.high) if column.kind == "circular" else (column.low, column.high)


# --- Base densities ---------------------------------------------------------------------------------------------------------


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


# --- Priors -----------------------------------------------------------------------------------------------------------------


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
        low, high = torch.broadcast_tensors(_vector(low, "low"), _vector(high, "high"))
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

    def sample(self, n, generator=None):
        return torch.cat([part.sample(n, generator) for part in self.parts], dim=-1)

    def log_prob(self, x):
        blocks = self._check(x).split(self._widths, dim=-1)
        return torch.stack([part.log_prob(block) for part, block in zip(self.parts, blocks, strict=True)]).sum(0)


def from_scipy(frozen, names: Sequence[str] | None = None) -> Distribution:
    """A prior of frozen ``scipy.stats`` distributions: a list of univariate ones (one a column), or one multivariate.

    Univariate columns have gradients (central differences of ``logpdf``), multivariate ones have none.

    Examples
    --------
    >>> import scipy.stats
    >>> from_scipy([scipy.stats.gamma(2), scipy.stats.norm(0, 3)], names=["rate", "offset"]).support
    [(0.0, inf), 'real']
    """
    frozen = list(frozen) if isinstance(frozen, list | tuple) else [frozen]
    if all(hasattr(column, "support") for column in frozen):
        return _ScipyColumns(frozen, names)
    if len(frozen) != 1 or not hasattr(frozen[0], "logpdf"):
        raise ValueError(f"Expected frozen univariate scipy distributions, or one frozen multivariate; got {frozen!r}.")
    draw = np.atleast_1d(frozen[0].rvs(random_state=np.random.default_rng(0)))

    def sample(n, generator):
        return frozen[0].rvs(size=n, random_state=numpy_generator(generator)).reshape(n, draw.size)

    def log_prob(x):
        return np.asarray(frozen[0].logpdf(x.detach().cpu().numpy())).reshape(len(x))

    return _Pair(sample, log_prob, draw.size, names, None)


def from_torch(distribution: torch.distributions.Distribution, names: Sequence[str] | None = None) -> Distribution:
    """A prior from a ``torch.distributions`` object of event shape ``(d,)``, or of batch shape ``(d,)`` and scalar events.

    Build it from float64 tensors for a float64 prior.

    Examples
    --------
    >>> from_torch(torch.distributions.Gamma(torch.ones(2).double(), torch.ones(2).double())).support
    [(0.0, inf), (0.0, inf)]
    """
    event, batch = tuple(distribution.event_shape), tuple(distribution.batch_shape)
    if len(event) == 0 and len(batch) <= 1:
        distribution = torch.distributions.Independent(distribution if batch else distribution.expand((1,)), 1)
    elif len(event) != 1 or batch not in ((), (1,)):
        raise ValueError(f"Expected event shape (d,), or batch shape (d,) of scalar events; got event {event}, batch {batch}.")
    features = distribution.event_shape[0]
    constraint = distribution.support
    if constraint is None:
        raise ValueError(f"Expected a torch distribution that states its support; {type(distribution).__name__} has none.")

    def sample(n, generator):
        # torch.distributions draw from the global stream; it is seeded from ours inside a fork and put back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_from(generator))
            return distribution.sample((n,)).reshape(n, features)

    anywhere_inside = sample(1, torch.Generator().manual_seed(0))

    def log_prob(x):
        inside = torch.as_tensor(constraint.check(x)).reshape(len(x), -1).all(-1)
        # Points outside are replaced before the density, not masked after it, so that gradients stay finite.
        safe = torch.where(inside[:, None], x, anywhere_inside.to(x))
        return distribution.log_prob(safe).reshape(len(x)).masked_fill(~inside, -math.inf)

    return _Pair(sample, log_prob, features, names, _torch_support(distribution, features))


def from_pair(
    sample: Callable, log_prob: Callable, features: int, *, names: Sequence[str] | None = None, support=None
) -> Distribution:
    """A prior from two functions.

    Parameters
    ----------
    sample : callable
        ``sample(n, generator) -> (n, d)``, tensor or array; ``generator`` is a ``torch.Generator`` or None.
    log_prob : callable
        ``log_prob(x) -> (n,)`` for a float64 tensor ``x (n, d)``: normalised, differentiable if gradients are wanted. It is only
        believed inside the support.
    features : int
    names : sequence of str, optional
    support : optional
        See :func:`sbi_flows.bijections.support.parse_support`; real by default.
    """
    return _Pair(sample, log_prob, features, names, support)


class _Pair(Distribution):
    def __init__(self, sample, log_prob, features, names, support):
        super().__init__(features, names, support)
        self.double()
        self._draw, self._density = sample, log_prob

    def sample(self, n, generator=None):
        draws = torch.as_tensor(self._draw(n, generator)).to(self._anchor)
        if tuple(draws.shape) != (n, self.features):
            raise ValueError(f"Expected sample({n}, generator) of shape ({n}, {self.features}); got {tuple(draws.shape)}.")
        return draws

    def log_prob(self, x):
        x = self._check(x)
        values = torch.as_tensor(self._density(x)).to(self._anchor)
        if tuple(values.shape) != (len(x),):
            raise ValueError(f"Expected log_prob(x) of shape ({len(x)},) for {len(x)} points; got {tuple(values.shape)}.")
        return values.masked_fill(_outside(x, self._columns), -math.inf)


class _ScipyColumns(Distribution):
    def __init__(self, frozen, names):
        ends = [tuple(map(float, column.support())) for column in frozen]
        super().__init__(len(frozen), names, ends)
        self.double()
        self._frozen = frozen

    def sample(self, n, generator=None):
        rng = numpy_generator(generator)
        columns = [np.asarray(column.rvs(size=n, random_state=rng), dtype=np.float64) for column in self._frozen]
        return torch.as_tensor(np.stack(columns, axis=-1)).to(self._anchor)

    def log_prob(self, x):
        x = self._check(x)
        return torch.stack([_ScipyLogPdf.apply(x[:, i], column) for i, column in enumerate(self._frozen)]).sum(0)


class _ScipyLogPdf(torch.autograd.Function):
    """``logpdf`` of one column; the derivative by central differences, good to about 1e-8 relative."""

    @staticmethod
    def forward(ctx, x, frozen):
        points = x.detach().cpu().numpy()
        ctx.frozen = frozen
        ctx.save_for_backward(x)
        return torch.as_tensor(frozen.logpdf(points)).to(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        points = x.detach().cpu().numpy().astype(np.float64)
        low, high = ctx.frozen.support()
        step = 6e-6 * np.maximum(np.abs(points), ctx.frozen.std() if np.isfinite(ctx.frozen.std()) else 1.0)
        right, left = np.minimum(points + step, high), np.maximum(points - step, low)
        with np.errstate(invalid="ignore", divide="ignore"):
            slope = (ctx.frozen.logpdf(right) - ctx.frozen.logpdf(left)) / (right - left)
        # Outside the support, or where an end has density zero, there is no slope to give.
        return grad * torch.as_tensor(np.where(np.isfinite(slope), slope, 0.0)).to(grad), None


def _outside(x: Tensor, columns: Sequence[ColumnSupport]) -> Tensor:
    """Rows of ``x`` outside a bounded column, (n,) bool; circular columns wrap and have no outside."""
    ends = [(c.low, c.high) if c.kind != "circular" else (-math.inf, math.inf) for c in columns]
    low, high = torch.tensor(ends, dtype=x.dtype, device=x.device).unbind(-1)
    return ((x < low) | (x > high)).any(-1)


def _torch_support(distribution, features: int) -> list:
    """The support of a torch distribution in our grammar; "real" where its constraint has no ends of its own."""
    constraint = distribution.support
    while isinstance(constraint, torch.distributions.constraints.independent):
        constraint = constraint.base_constraint

    def ends(name):
        value = getattr(constraint, name, None)
        return [None] * features if value is None else torch.as_tensor(value).broadcast_to((features,)).tolist()

    pairs = zip(ends("lower_bound"), ends("upper_bound"), strict=True)
    return [_grammar(parse_support((low, high), 1)[0]) if (low, high) != (None, None) else "real" for low, high in pairs]


def _vector(values, what: str) -> Tensor:
    array = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if array.ndim != 1:
        raise ValueError(f"Expected {what} of shape (d,); got {array.shape}.")
    return torch.as_tensor(array)
