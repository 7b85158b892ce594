"""Linear bijections: a trainable LU product, permutations, and the whitening set from data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sbi_flows.bijections.base import Bijection, Boundary, Rows, merge_rows
from sbi_flows.bijections.regression import ridge
from sbi_flows.nn import affine

# A whitened direction is never stretched by more than this over its column's own scale: duplicated columns must not explode.
MIN_RELATIVE_SCALE = 1e-6
# Regression on more context columns than this would cost seconds before the first step.
MOST_REGRESSORS = 512


class LULinear(Bijection):
    """``z = L U x + b``, with unit lower-triangular L and upper-triangular U of positive diagonal; starts as the identity.

    Parameters
    ----------
    features : int
    columns : sequence of int, optional
        The columns mixed; the others (angles, say) pass unchanged. All by default.

    References
    ----------
    Oliva et al. 2018, "Transformation autoregressive networks", arXiv:1801.09819; Durkan et al. 2019, arXiv:1906.04032.
    """

    stackable = True
    lower_mask: Tensor
    upper_mask: Tensor

    def __init__(self, features: int, columns: Sequence[int] | None = None):
        super().__init__()
        chosen = list(range(features)) if columns is None else sorted(columns)
        if not chosen:
            raise ValueError("Expected at least one column to mix; got none.")
        self._mixed = Rows(chosen)
        self._passed = Rows([c for c in range(features) if c not in chosen])
        d = len(chosen)
        # One matrix holds L below and U above the diagonal; the diagonal is its own vector, as a logarithm.
        self.entries = nn.Parameter(torch.zeros(d, d))
        self.log_diagonal = nn.Parameter(torch.zeros(d))
        self.bias = nn.Parameter(torch.zeros(d, 1))
        self.register_buffer("lower_mask", torch.ones(d, d).tril(-1), persistent=False)
        self.register_buffer("upper_mask", torch.ones(d, d).triu(1), persistent=False)
        self.register_buffer("identity", torch.eye(d), persistent=False)

    identity: Tensor

    @torch.no_grad()
    def fit_whitening(self, x: Tensor) -> LULinear:
        """Set it to give the mixed columns of rows ``x (n, d)`` mean zero and unit covariance; training goes on from there."""
        rows = self._mixed.take(x.mT).mT.double()
        mean, root = moments(rows, None, correlated=True)
        whitening = torch.linalg.solve_triangular(root, torch.eye(len(root), dtype=root.dtype, device=root.device), upper=False)
        diagonal = whitening.diagonal()
        self.entries.copy_((whitening / diagonal).tril(-1))
        self.log_diagonal.copy_(diagonal.log())
        self.bias.copy_(-(whitening @ mean)[:, None])
        return self

    def _factors(self) -> tuple[Tensor, Tensor]:
        lower = torch.addcmul(self.identity, self.entries, self.lower_mask)
        upper = torch.addcmul(self.identity * torch.exp(self.log_diagonal)[..., None, :], self.entries, self.upper_mask)
        return lower, upper

    def forward_and_log_det(self, x, context=None):
        lower, upper = self._factors()
        xt = x.mT
        mixed = affine(self.bias, lower @ upper, self._mixed.take(xt))
        return self._merge(mixed, xt).mT, self.log_diagonal.sum(-1, keepdim=True).expand(x.shape[:-1])

    def inverse_and_log_det(self, z, context=None):
        return self._solved(*self._factors(), z)

    def _solved(self, lower: Tensor, upper: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        zt = z.mT
        y = torch.linalg.solve_triangular(lower, self._mixed.take(zt) - self.bias, upper=False, unitriangular=True)
        mixed = torch.linalg.solve_triangular(upper, y, upper=True)
        return self._merge(mixed, zt).mT, -self.log_diagonal.sum().expand(z.shape[0])

    def forward_with_score(self, x, score, context=None):
        lower, upper = (factor.detach() for factor in self._factors())
        s = torch.linalg.solve_triangular(upper.mT, self._mixed.take(score.mT), upper=False)
        s = torch.linalg.solve_triangular(lower.mT, s, upper=True, unitriangular=True)
        return *self.forward_and_log_det(x), self._merge(s, score.mT).mT

    def inverse_with_score(self, z, score, context=None):
        lower, upper = self._factors()
        s = (lower.detach() @ upper.detach()).mT @ self._mixed.take(score.mT)
        return *self._solved(lower, upper, z), self._merge(s, score.mT).mT

    def _merge(self, mixed: Tensor, whole: Tensor) -> Tensor:
        if not len(self._passed):
            return mixed
        return merge_rows([(self._mixed, mixed), (self._passed, self._passed.take(whole))])


class Permutation(Bijection):
    """Columns in another order: column i of z is column ``order[i]`` of x."""

    stackable = True

    def __init__(self, order: Sequence[int]):
        super().__init__()
        self.order = list(order)
        if sorted(self.order) != list(range(len(self.order))):
            raise ValueError(f"Expected a permutation of 0..{len(self.order) - 1}; got {self.order}.")
        self._forward = Rows(self.order)
        self._inverse = Rows(sorted(range(len(self.order)), key=lambda i: self.order[i]))

    def forward_and_log_det(self, x, context=None):
        return self._forward.take(x.mT).mT, x.new_zeros(x.shape[:-1])

    def inverse_and_log_det(self, z, context=None):
        return self._inverse.take(z.mT).mT, z.new_zeros(z.shape[0])


class Whiten(Boundary):
    """``z = W (x - mean - slope @ context)``, W lower triangular; buffers set by :meth:`fit`, the identity until then.

    The slope is that of a ridge regression, so what is left for training is the part that is not linear in the context: where
    the truth is a linear Gaussian model, nothing.

    Parameters
    ----------
    features : int
    columns : sequence of int, optional
        The columns whitened; the others pass unchanged. All by default.
    method : str
        "whiten" (unit covariance), "standard" (unit variances only), "isotropic" (one scale for all columns and no shift, so that
        symmetries stay; without context) or "none".
    context : int
        Columns of the context.
    """

    mean: Tensor
    slope: Tensor
    context_ends: Tensor
    matrix: Tensor
    inverse_matrix: Tensor
    log_det: Tensor

    def __init__(self, features: int, columns: Sequence[int] | None = None, method: str = "whiten", context: int = 0):
        super().__init__()
        if method not in ("whiten", "standard", "isotropic", "none"):
            raise ValueError(f"Expected scaling 'whiten', 'standard', 'isotropic' or 'none'; got {method!r}.")
        self.method = method
        self._columns = list(range(features)) if columns is None else list(columns)
        self.register_buffer("mean", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("matrix", torch.eye(features, dtype=torch.float64))
        self.register_buffer("inverse_matrix", torch.eye(features, dtype=torch.float64))
        self.register_buffer("log_det", torch.zeros((), dtype=torch.float64))
        self._context = context
        if context:
            self.register_buffer("slope", torch.zeros(features, context, dtype=torch.float64))
            self.register_buffer("context_ends", torch.zeros(2, context, 1, dtype=torch.float64))

    def fit(self, x: Tensor, weights: Tensor | None = None, context: Tensor | None = None) -> None:
        """Set slope, mean and matrix from rows ``x (n, d)`` with weights ``(n,)`` and standardised ``context (n, c)``.

        A constant column keeps scale one. A column that is (nearly) a linear combination of those before it is stretched as if
        its unexplained part were ``MIN_RELATIVE_SCALE`` of its standard deviation. With fewer than two
        rows a column the columns are scaled one by one. One range beyond the rows' context on either side the regression ends and
        stays constant. There is none on more than ``MOST_REGRESSORS`` context columns.
        """
        if self.method == "none" or not self._columns:
            return
        d = len(self.mean)
        mean = torch.zeros(d, dtype=torch.float64, device=x.device)
        root = torch.eye(d, dtype=torch.float64, device=x.device)
        some = x[:, self._columns].double()
        if self._context and context is not None and context.shape[1] <= MOST_REGRESSORS:
            context = context.double()
            self.slope[self._columns] = ridge(some, context, weights)
            low, high = context.amin(0), context.amax(0)
            self.context_ends.copy_(torch.stack([2 * low - high, 2 * high - low])[..., None])
            some = some - self._explained(context).mT[:, self._columns]
        if self.method == "isotropic":
            own_mean, own_root = isotropic_moments(some, weights)
        else:
            own_mean, own_root = moments(some, weights, correlated=self.method == "whiten")
        index = torch.tensor(self._columns, device=x.device)
        mean[index] = own_mean
        root[index[:, None], index] = own_root
        self.mean.copy_(mean)
        self.inverse_matrix.copy_(root)
        eye = torch.eye(d, dtype=torch.float64, device=x.device)
        self.matrix.copy_(torch.linalg.solve_triangular(root, eye, upper=False))
        self.log_det.copy_(-torch.log(root.diagonal()).sum())

    def forward_and_log_det(self, x, context=None):
        return (self.matrix @ ((x.double() - self.mean).mT - self._explained(context))).mT, self.log_det.expand(x.shape[0])

    def inverse_and_log_det(self, z, context=None):
        x = (self.inverse_matrix @ z.double().mT + self._explained(context)).mT + self.mean
        return x, -self.log_det.expand(z.shape[0])

    def forward_with_score(self, x, score, context=None):
        return *self.forward_and_log_det(x, context), (self.inverse_matrix.mT @ score.double().mT).mT

    def inverse_with_score(self, z, score, context=None):
        return *self.inverse_and_log_det(z, context), (self.matrix.mT @ score.double().mT).mT

    def _explained(self, context: Tensor | None) -> Tensor:
        """What the regression predicts, ``(d, n)`` or ``(d, 1)``; zeros without a context."""
        if context is None or not self._context:
            return torch.zeros_like(self.mean)[:, None]
        low, high = self.context_ends
        return self.slope @ torch.minimum(torch.maximum(context.double().mT, low), high)


def isotropic_moments(x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Zeros ``(d,)`` and the root of the mean square of all columns times the unit matrix."""
    w = torch.full((len(x),), 1.0 / len(x), dtype=x.dtype, device=x.device) if weights is None else weights.to(x) / weights.to(x).sum()
    scale = (w @ x.square()).mean().sqrt()
    eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return torch.zeros_like(x[0]), torch.where(scale > 0, scale, 1.0) * eye


def moments(x: Tensor, weights: Tensor | None, correlated: bool) -> tuple[Tensor, Tensor]:
    """Mean ``(d,)`` and a lower-triangular root of the covariance ``(d, d)`` of float64 rows, with floored pivots."""
    n, d = x.shape
    w = torch.full((n,), 1.0 / n, dtype=x.dtype, device=x.device) if weights is None else weights.to(x) / weights.to(x).sum()
    mean = w @ x
    centred = x - mean
    scale = (w @ centred.square()).sqrt()
    # Rounding alone gives a constant column a variance.
    constant = scale <= 1e-13 * x.abs().amax(0)
    scale = torch.where(constant, 1.0, scale)
    effective = 1 / w.square().sum()
    if not correlated or effective < 2 * d:
        return mean, torch.diag(scale)
    unit = centred / scale
    correlation = (unit * w[:, None]).T @ unit
    correlation.diagonal().copy_(torch.ones_like(scale))
    return mean, scale[:, None] * _floored_cholesky(correlation)


def _floored_cholesky(correlation: Tensor) -> Tensor:
    """Cholesky factor of a correlation matrix whose pivots are kept above ``MIN_RELATIVE_SCALE``."""
    factor, info = torch.linalg.cholesky_ex(correlation)
    if int(info) == 0 and float(factor.diagonal().min()) > MIN_RELATIVE_SCALE:
        return factor
    d = len(correlation)
    factor = torch.zeros_like(correlation)
    for j in range(d):
        rest = correlation[j:, j] - factor[j:, :j] @ factor[j, :j]
        pivot = rest[0].clamp(min=MIN_RELATIVE_SCALE**2).sqrt()
        factor[j, j] = pivot
        # Below a floored pivot the exact ratio is rounding divided by the floor: such a column explains nothing.
        explained = rest[1:] / pivot
        factor[j + 1 :, j] = torch.where(rest[0] > MIN_RELATIVE_SCALE**2, explained, torch.zeros_like(explained))
    return factor
