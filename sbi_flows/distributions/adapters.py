"""Priors from other libraries' distributions, or from two functions."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_flows._random import numpy_generator, seed_from
from sbi_flows.bijections.support import ColumnSupport, parse_support
from sbi_flows.distributions.base import Distribution, grammar
from sbi_flows.distributions.edges import circular_columns, find_edges, heavy_columns, lies_flat
from sbi_flows.distributions.priors import Choice, Product

# Constraints of torch that allow every real number.
_ANYWHERE = (type(torch.distributions.constraints.real),)
_MOST_VALUES = 1000  # of a discrete column
_FEW = 2  # draws by which the number of columns of a pair is found out


def as_prior(prior: Any, names: Sequence[str] | None = None) -> Distribution:
    """A prior from whatever says what a prior is.

    Parameters
    ----------
    prior
        - a :class:`Distribution`, returned as it is, but one of :func:`from_scipy`, :func:`from_torch`, or :func:`from_pair` without
          ``support`` with what is found out about it as below;
        - a frozen ``scipy.stats`` distribution, or a ``torch.distributions`` object;
        - a list of these, for independent columns that follow each other, or a dict of them by parameter name;
        - two functions ``(sample, log_prob)``, or an object with methods of these names, as for :func:`from_pair`;
          ``sample(n)`` without a generator is taken too, but cannot be seeded.
    names : sequence of str, optional
        Parameter names, where the prior has none of its own.

    Returns
    -------
    Distribution
        Functions do not say where they end. If their density falls to -inf at the same place on every line along a column,
        that end is declared for them (see ``notes``). Columns without ends whose draws have heavy tails, as a Cauchy's have, get the
        support "heavy"; angles, whose density repeats after 2 pi, get [-pi, pi) or [0, 2 pi), wherever their draws are.

    Raises
    ------
    TypeError
        If it is none of these.
    ValueError
        If functions contradict each other: draws where the density is zero, shapes that do not match. If draws lie on a plane, as
        those of a Dirichlet distribution.

    Warns
    -----
    UserWarning
        If the density ends where no box describes it, or its draws seem to end where its density does not.

    Examples
    --------
    >>> import scipy.stats
    >>> as_prior({"rate": scipy.stats.gamma(2), "offset": scipy.stats.norm(0, 3)}).names
    ('rate', 'offset')
    """
    return _examined(prior if isinstance(prior, Distribution) else _read(prior, names))


def _read(prior: Any, names: Sequence[str] | None) -> Distribution:
    """What :func:`as_prior` does, but for what draws tell."""
    if isinstance(prior, type):
        raise TypeError(f"Expected a prior; got the class {prior.__name__}. Make one: {prior.__name__}(...).")
    if _are_numbers(prior):
        raise TypeError("Expected a prior; got numbers. For a uniform one between bounds pass BoxUniform(low=[...], high=[...]).")
    if isinstance(prior, Mapping):
        return as_prior(list(prior.values()), names=list(prior))
    if isinstance(prior, torch.distributions.Distribution):
        return from_torch(prior, names)
    if hasattr(prior, "rvs") and hasattr(prior, "logpmf") and hasattr(prior, "support"):
        return _choice(prior, names)
    if hasattr(prior, "rvs") and hasattr(prior, "logpdf"):
        return from_scipy(prior, names)
    if isinstance(prior, list | tuple) and len(prior) == 2 and all(_is_function(part) for part in prior):
        return _read_pair(prior[0], prior[1], names, None)
    if isinstance(prior, list | tuple) and len(prior) > 0:
        if all(hasattr(column, "support") and hasattr(column, "logpdf") for column in prior):
            return from_scipy(prior, names)
        parts = [as_prior(part) for part in prior]
        if names is None or len(parts) != len(names) or any(part.features > 1 for part in parts):
            return Product(parts)
        return _renamed(Product(parts), names)
    if hasattr(prior, "sample") and hasattr(prior, "log_prob"):
        own_names = getattr(prior, "names", None)
        return _read_pair(prior.sample, prior.log_prob, names or own_names, getattr(prior, "support", None))
    raise TypeError(
        "Expected a prior: one of sbi_flows.distributions, a frozen scipy.stats or a torch.distributions object, a list or dict of "
        f"these (independent columns), or two functions (sample, log_prob); got {type(prior).__name__}."
    )


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
    constraint = _innermost(distribution.support)
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

    support = _torch_support(distribution, features)
    known = isinstance(constraint, _ANYWHERE) or all(entry != "real" for entry in support)
    return _Pair(sample, log_prob, features, names, support, box=known)


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
        See :func:`sbi_flows.bijections.support.parse_support`. By default real, until :func:`as_prior`, which estimators pass
        their prior through, finds ends, heavy tails or angles.
    """
    pair = _Pair(sample, log_prob, features, names, support)
    pair.examined = support is not None
    return pair


class _Pair(Distribution):
    examined = False  # whether _examined has seen it, or need not

    def __init__(self, sample, log_prob, features, names, support, *, box=False):
        super().__init__(features, names, support)
        self.double()
        self.box = box
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
    examined = False

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


def _innermost(constraint):
    """The constraint of a single element."""
    while isinstance(constraint, torch.distributions.constraints.independent):
        constraint = constraint.base_constraint
    return constraint


def _torch_support(distribution, features: int) -> list:
    """The support of a torch distribution in our grammar; "real" where its constraint has no ends of its own."""
    constraint = _innermost(distribution.support)

    def ends(name):
        value = getattr(constraint, name, None)
        return [None] * features if value is None else torch.as_tensor(value).broadcast_to((features,)).tolist()

    pairs = zip(ends("lower_bound"), ends("upper_bound"), strict=True)
    return [grammar(parse_support((low, high), 1)[0]) if (low, high) != (None, None) else "real" for low, high in pairs]


def _choice(frozen: Any, names: Sequence[str] | None) -> Choice:
    """A frozen discrete ``scipy.stats`` distribution of finitely many values."""
    low, high = map(float, frozen.support())
    if not high - low < _MOST_VALUES:
        raise ValueError(
            f"Expected a discrete prior of at most {_MOST_VALUES} values; this one goes from {low:g} to {high:g}. Truncate it: "
            "distributions.Choice(values, probabilities)."
        )
    values = np.arange(low, high + 1)
    probabilities = frozen.pmf(values)
    return Choice(values[probabilities > 0], probabilities[probabilities > 0], names=names)


def _are_numbers(given: Any) -> bool:
    """Numbers, arrays, or lists of these: bounds perhaps, but no distributions."""
    if isinstance(given, list | tuple):
        return bool(given) and all(_are_numbers(each) for each in given)
    return isinstance(given, Number | np.ndarray | Tensor)


def _is_function(part: Any) -> bool:
    """A bare function, as against a distribution (some of which can be called too)."""
    return callable(part) and not hasattr(part, "rvs") and not hasattr(part, "log_prob")


def _read_pair(sample: Callable, log_prob: Callable, names: Sequence[str] | None, support: Any) -> Distribution:
    """A pair whose number of columns is found out by drawing."""
    seeded = len(inspect.signature(sample).parameters) > 1

    def draw(n, generator):
        drawn = torch.as_tensor(sample(n, generator) if seeded else sample(n))
        return drawn[:, None] if drawn.shape == (n,) else drawn

    shape = tuple(draw(_FEW, torch.Generator().manual_seed(0)).shape)
    if len(shape) != 2 or shape[0] != _FEW:
        raise ValueError(f"Expected the prior's sample({_FEW}) of shape ({_FEW}, d), one draw a row; got {shape}.")
    prior = _Pair(draw, log_prob, shape[1], names, support)
    if not seeded:
        prior.notes = ("the prior's sample(n) takes no generator, so its draws cannot be repeated by random_state",)
    return prior


def _examined(prior: Distribution) -> Distribution:
    """The same prior with what its draws and density show of its support; warnings where that cannot be declared."""
    if isinstance(prior, Product):
        parts = [_examined(part) for part in prior.parts]
        if all(new is old for new, old in zip(parts, prior.parts, strict=True)):
            return prior
        return Product(parts) if prior.names is None else _renamed(Product(parts), prior.names)
    if not isinstance(prior, _Pair | _ScipyColumns) or prior.examined:
        return prior
    if isinstance(prior, _Pair) and lies_flat(prior):
        raise ValueError(
            f"Expected a prior with a density over its {prior.features} columns; its draws lie on a plane, as those of a Dirichlet "
            "distribution, which sum to one. Leave out a column that follows from the others, with from_pair; a Dirichlet is also a list "
            "of independent Beta distributions, by breaking sticks."
        )
    found = copy.copy(prior)  # the user's own stays as it is
    found.examined = True
    _declare(found, circular_columns(found), "a density that repeats")
    if isinstance(found, _Pair) and not found.box:
        edges = find_edges(found)
        for message in edges.warnings:
            warnings.warn(message, UserWarning, stacklevel=3)
        found._columns = parse_support(edges.support, found.features)
        found.notes = (*found.notes, *edges.notes)
    _declare(found, dict.fromkeys(heavy_columns(found), ColumnSupport("heavy")), "heavy tails")
    return found


def _declare(prior: Distribution, columns: Mapping[int, ColumnSupport], what: str) -> None:
    """Give a prior the support of some of its columns, with a note that it has ``what`` in them."""
    if not columns:
        return
    prior._columns = tuple(columns.get(j, column) for j, column in enumerate(prior._columns))
    labels = ", ".join(f"column {j}" if prior.names is None else repr(prior.names[j]) for j in columns)
    prior.notes = (*prior.notes, f"the prior has {what} in {labels}, which flows are told")


def _renamed(prior: Distribution, names: Sequence[str]) -> Distribution:
    prior.names = tuple(names)
    return prior
