"""What samplers sample: unnormalised log-densities of whole batches, from a function alone or a likelihood and a prior."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sbi_flows.bijections.support import SupportEntry, parse_support
from sbi_flows.distributions import Distribution
from sbi_flows.distributions.base import grammar
from sbi_flows.targets.angles import with_angles
from sbi_flows.targets.evaluation import LogDensity, inside, no_gradient, where_inside


class Target(ABC):
    """An unnormalised log-density over ``features`` columns, evaluated in batches, in float64.

    Make one with :func:`posterior`, :func:`from_log_prob`, :func:`tempered`, :func:`unconstrained` or :func:`pulled_back`.

    Parameters
    ----------
    features : int
    names : sequence of str, optional
        Parameter names; ``x0, x1, ...`` by default.
    support : optional
        See :func:`sbi_flows.bijections.support.parse_support`; real by default.
    prior : Distribution, optional

    Attributes
    ----------
    features : int
    names : tuple of str
    support : list
        One entry a column in the support grammar.
    prior : Distribution or None
    same_parameters : bool
        Whether :meth:`recorded` changes nothing, so that densities of points are densities of what results show.

    Examples
    --------
    >>> from sbi_flows.targets import from_log_prob
    >>> target = from_log_prob(lambda x: -0.5 * x.square().sum(1), 2, names=["a", "b"], support=[(0, torch.inf), "real"])
    >>> target.log_prob(torch.tensor([[1.0, 1.0], [-1.0, 1.0]]))
    tensor([-1., -inf], dtype=torch.float64)
    """

    same_parameters = True

    def __init__(
        self, features: int, names: Sequence[str] | None = None, support: Any = None, prior: Distribution | None = None
    ):
        if names is not None and len(names) != features:
            raise ValueError(f"Expected {features} names, one a column; got {len(names)}: {', '.join(names)}.")
        self.features = features
        self.names = tuple(f"x{i}" for i in range(features)) if names is None else tuple(map(str, names))
        self.prior = prior
        self._columns = parse_support(support, features, self.names)

    @property
    def support(self) -> list[SupportEntry]:
        return [grammar(column) for column in self._columns]

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Natural log of the density up to a constant, ``(n,)`` for ``x (n, d)``; -inf outside the support.

        NaN and +inf mean that it could not be computed: every sampler counts such points as density zero, says how many there were, and
        calls the result NOT RELIABLE where they are more than a few (:mod:`sbi_flows.samplers.unseen`). Only all of the points that a
        sampler looks at first are an error.
        """

    def log_likelihood(self, x: Tensor) -> Tensor:
        """ln L ``(n,)`` of ``x (n, d)`` inside the support, for targets that have a prior."""
        raise TypeError("This target has no likelihood of its own: make it with posterior(log_likelihood, prior).")

    def log_prob_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``log_prob`` ``(n,)`` and its gradient ``(n, d)``, zero where the density is."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            value = self.log_prob(x)
            if not value.requires_grad:
                raise ValueError(no_gradient("log_prob"))
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), torch.where(torch.isfinite(value)[:, None], gradient, 0.0)

    @property
    def user(self) -> Target:
        """The target in the user's own parameters, from which this one was mapped: here itself."""
        return self

    def to_user(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The point in the user's own parameters ``(n, d)`` and ``ln |det|`` of that map ``(n,)``: here x itself and zeros."""
        return x, x.new_zeros(len(x))

    def from_user(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`to_user`."""
        return x

    def recorded(self, x: Tensor) -> Tensor:
        """What results show of points ``x (n, d)``: the points; of a unit cube (:func:`from_dynesty`), the parameters they stand for."""
        return x

    @property
    def notes(self) -> tuple[str, ...]:
        """What the verdict on a run should say of the target, such as points at which a numpy function raised."""
        return ()

    def _checked(self, x: Tensor) -> Tensor:
        x = torch.as_tensor(x)
        if x.ndim != 2 or x.shape[1] != self.features:
            hint = "For a single point pass x[None]." if x.ndim == 1 and len(x) == self.features else "Rows are points."
            raise ValueError(f"Expected x of shape (n, {self.features}); got {tuple(x.shape)}. {hint}")
        return x.double()


class LogProbTarget(Target):
    """A log-density given as a function; made by :func:`from_log_prob`."""

    def __init__(self, log_prob: LogDensity, features: int, names: Sequence[str] | None, support: Any):
        super().__init__(features, names, support)
        self._density = log_prob

    def log_prob(self, x):
        x = self._checked(x)
        return where_inside(self._density, x, inside(x, self._columns), "log_prob")

    @property
    def notes(self):
        return tuple(getattr(self._density, "notes", ()))


class PosteriorTarget(Target):
    """ln L + ln prior; made by :func:`posterior`."""

    prior: Distribution

    def __init__(self, log_likelihood: LogDensity, prior: Distribution, names: Sequence[str] | None, support: Any = None):
        names = names or prior.names
        super().__init__(prior.features, names, prior.support if support is None else with_angles(prior, support, names), prior)
        self._likelihood = log_likelihood

    def log_likelihood(self, x):
        return where_inside(self._likelihood, self._checked(x), None, "log_likelihood")

    def log_prob(self, x):
        x = self._checked(x)
        log_prior = self.prior.log_prob(x)
        return log_prior + where_inside(self._likelihood, x, torch.isfinite(log_prior), "log_likelihood")

    @property
    def notes(self):
        return tuple(getattr(self._likelihood, "notes", ()))


# --- Ways to make a target ----------------------------------------------------------------------------------------------------


def posterior(
    log_likelihood: LogDensity, prior: Distribution, *, names: Sequence[str] | None = None, support: Any = None
) -> Target:
    """The posterior of a likelihood and a prior.

    Parameters
    ----------
    log_likelihood : callable
        ``(n, d)`` float64 tensor to ``(n,)``: ln L, evaluated only where the prior has density. For numpy functions see
        :func:`from_numpy`.
    prior : Distribution
    names : sequence of str, optional
        Those of the prior by default.
    support : optional
        The prior's by default. "circular" makes an angle of a column whose prior has two ends, which are then one point; other entries
        must be the prior's own.

    Raises
    ------
    TypeError
        If the likelihood is no function, or the prior none of ours.
    ValueError
        If the support is not that of the prior.

    Examples
    --------
    >>> from sbi_flows.distributions import BoxUniform
    >>> phase = BoxUniform([0.0, -1.0], [2 * math.pi, 1.0])
    >>> posterior(lambda x: 3 * torch.cos(x[:, 0]), phase, support=["circular", (-1, 1)]).support[0]
    ('circular', 0.0, 6.283185307179586)
    >>> target = posterior(lambda x: -0.5 * x.square().sum(-1), BoxUniform([-5.0], [5.0], names=["mu"]))
    >>> target.log_prob(torch.tensor([[0.0], [6.0]], dtype=torch.float64))
    tensor([-2.3026,    -inf], dtype=torch.float64)
    """
    if not callable(log_likelihood):
        raise TypeError(f"Expected log_likelihood to be a function of a tensor (n, d); got a {type(log_likelihood).__name__}.")
    if not isinstance(prior, Distribution):
        raise TypeError(
            f"Expected a prior of sbi_flows.distributions; got a {type(prior).__name__}. "
            "Convert others with from_scipy, from_torch or from_pair."
        )
    return PosteriorTarget(log_likelihood, prior, names, support)


def from_log_prob(
    log_prob: LogDensity, features: int, *, names: Sequence[str] | None = None, support: Any = None
) -> Target:
    """A target from a log-density alone.

    Parameters
    ----------
    log_prob : callable
        ``(n, d)`` float64 tensor to ``(n,)``, up to a constant; evaluated only inside the support.
    features : int
    names, support : optional
        As in :class:`Target`.

    Examples
    --------
    >>> from_log_prob(lambda x: torch.cos(x[:, 0]), 1, support="circular").support
    [('circular', -3.141592653589793, 3.141592653589793)]
    """
    if not callable(log_prob):
        raise TypeError(f"Expected log_prob to be a function of a tensor (n, d); got a {type(log_prob).__name__}.")
    return LogProbTarget(log_prob, features, names, support)


def as_target(target: Any) -> Target:
    """The target itself; ``TypeError`` that says how to make one of anything else."""
    if isinstance(target, Target):
        return target
    kind = "function" if callable(target) and hasattr(target, "__name__") else type(target).__name__
    raise TypeError(
        f"Expected target to be a Target; got a {kind}. Make one with targets.from_log_prob(function, features), or with "
        "targets.posterior(log_likelihood, prior)."
    )
