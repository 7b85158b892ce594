"""Targets on the unit cube: what nested samplers sample, from their own pair of functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_flows.distributions import BoxUniform, MultivariateNormal, Product
from sbi_flows.distributions.base import Distribution
from sbi_flows.targets.base import PosteriorTarget, Target
from sbi_flows.targets.evaluation import LogDensity
from sbi_flows.targets.numpy_functions import from_numpy


class UnitCubeTarget(PosteriorTarget):
    """A likelihood over the unit cube, on which the prior is uniform; made by :func:`from_dynesty`.

    Its points lie in the cube; :meth:`recorded` turns them into the parameters they stand for.
    """

    same_parameters = False

    def __init__(self, transform: LogDensity, log_likelihood: LogDensity, features: int, names, periodic: Sequence[int]):
        prior = BoxUniform(np.zeros(features), np.ones(features), names=names)
        super().__init__(log_likelihood, prior, names)
        self.transform = transform
        wrong = [j for j in periodic if not 0 <= j < features]
        if wrong:
            raise ValueError(f"Expected periodic to hold columns 0 to {features - 1}; got {', '.join(map(str, wrong))}.")
        support: list[Any] = [("circular", 0.0, 1.0) if j in periodic else (0.0, 1.0) for j in range(features)]
        Target.__init__(self, features, self.names, support, prior)

    def log_likelihood(self, x):
        return super().log_likelihood(self._inside(x))

    def log_prob(self, x):
        return super().log_prob(self._inside(x))

    def recorded(self, x):
        return self.transform(self._inside(x))

    def _inside(self, x: Tensor) -> Tensor:
        """Angles brought to their place in the cube, where alone a prior transform has a value."""
        x = self._checked(x)
        circular = torch.tensor([column.kind == "circular" for column in self._columns])
        return torch.where(circular, x - torch.floor(x), x) if bool(circular.any()) else x


def from_dynesty(
    prior_transform: Callable,
    loglikelihood: Callable,
    features: int,
    *,
    names: Sequence[str] | None = None,
    periodic: Sequence[int] = (),
    logl_args: Sequence[Any] = (),
    ptform_args: Sequence[Any] = (),
    vectorized: bool = False,
    n_jobs: int | None = None,
) -> UnitCubeTarget:
    """A target from the two functions of dynesty, nautilus and other nested samplers.

    It is sampled in the unit cube, where its prior is uniform, so starting points are draws of ``target.prior``. Draws are reported in
    the user's parameters; the density of these is not known, so ``Chains.log_posterior`` is None, and ``log_likelihood`` is there.

    Parameters
    ----------
    prior_transform : callable
        ``(d,)`` in the unit cube to ``(d,)`` parameters.
    loglikelihood : callable
        Parameters ``(d,)`` to ln L. Where it raises, the point is rejected and counted (:func:`from_numpy`).
    features : int
    names : sequence of str, optional
        Of the parameters.
    periodic : sequence of int
        Columns whose two ends are one point, as dynesty's argument of this name.
    logl_args, ptform_args : sequence
        Further arguments of the two functions.
    vectorized : bool
        Whether both take many rows at once, as nautilus has it with ``vectorized=True``.
    n_jobs : int, optional
        Processes that share the rows of a batch.

    Examples
    --------
    >>> target = from_dynesty(lambda u: 10 * u - 5, lambda theta: -0.5 * theta @ theta, 2)
    >>> u = torch.full((1, 2), 0.5, dtype=torch.float64)
    >>> target.log_prob(u).item(), target.recorded(u).tolist()
    (0.0, [[0.0, 0.0]])

    References
    ----------
    Skilling 2006, "Nested sampling for general Bayesian computation", Bayesian Analysis 1; Speagle 2020, arXiv:1904.02180 (dynesty).
    """
    # A copy each: transforms of nested samplers often write into the point they are given.
    def transform(u: np.ndarray) -> np.ndarray:
        theta = np.asarray(prior_transform(u.copy(), *ptform_args), dtype=np.float64)
        if theta.shape != u.shape:
            raise ValueError(f"Expected prior_transform(u) of shape {u.shape}, as u; got {theta.shape}.")
        return theta

    def likelihood(u: np.ndarray):
        return loglikelihood(transform(u), *logl_args)

    def recorded(u: Tensor) -> Tensor:
        rows = u.detach().cpu().numpy()
        return torch.from_numpy(transform(rows) if vectorized else np.array([transform(row) for row in rows]).reshape(rows.shape))

    return UnitCubeTarget(recorded, from_numpy(likelihood, vectorized=vectorized, n_jobs=n_jobs), features, names, tuple(periodic))


def cube_transform(prior: Distribution) -> LogDensity:
    """The map ``(n, d)`` from the unit cube under which uniform points follow a prior: boxes, normals, scipy columns, products.

    Raises
    ------
    TypeError
        For other priors, which give no quantiles.
    """
    if isinstance(prior, Product):
        return _side_by_side([(part.features, cube_transform(part)) for part in prior.parts])
    if isinstance(prior, BoxUniform):
        return lambda u: torch.lerp(prior.low, prior.high, u)
    if isinstance(prior, MultivariateNormal):
        # Ends of the cube stay finite, as double precision's last steps from them would be.
        return lambda u: prior.mean + torch.special.ndtri(u.clamp(1e-300, 1 - 2**-53)) @ prior.cholesky.T
    columns = getattr(prior, "_frozen", None)
    if columns is not None:
        return lambda u: torch.stack([torch.as_tensor(c.ppf(u[:, j].numpy())) for j, c in enumerate(columns)], dim=-1)
    raise TypeError(
        f"Expected a prior with quantiles: BoxUniform, MultivariateNormal, univariate scipy distributions, or a Product of these; got "
        f"{type(prior).__name__}. Give a transform of the unit cube yourself: targets.from_dynesty(prior_transform, loglikelihood, d)."
    )


def _side_by_side(parts: Sequence[tuple[int, LogDensity]]) -> LogDensity:
    widths = [width for width, _ in parts]

    def transform(u: Tensor) -> Tensor:
        return torch.cat([part(block) for (_, part), block in zip(parts, u.split(widths, dim=-1), strict=True)], dim=-1)

    return transform
