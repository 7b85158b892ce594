"""Each column transformed by itself: what makes marginals normal before any coupling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sbi_flows.bijections._spline_shape import MIN_SLOPE
from sbi_flows.bijections.base import Bijection, Columnwise, Transformer, merge_rows
from sbi_flows.bijections.spline import Spline

_BEYOND = 10  # draws beyond the outermost knots, at least
_LARGEST_SLOPE = 100.0


class Elementwise(Bijection):
    """Every column transformed with parameters of its own, which depend on nothing.

    Parameters
    ----------
    transformer : Transformer or sequence of Transformer
        One for all columns, or one a column.
    features : int

    Examples
    --------
    >>> import torch
    >>> from sbi_flows.bijections.spline import Spline
    >>> z, log_det = Elementwise(Spline(bins=8), 4).forward_and_log_det(torch.zeros(10, 4))
    """

    stackable = True

    def __init__(self, transformer: Transformer | Sequence[Transformer], features: int):
        super().__init__()
        self._columnwise = Columnwise(transformer, range(features))
        self.params = nn.Parameter(torch.zeros(self._columnwise.n_params))

    def forward_and_log_det(self, x, context=None):
        return self._apply_transformers("forward", x)

    def inverse_and_log_det(self, z, context=None):
        return self._apply_transformers("inverse", z)

    def _apply_transformers(self, method, x):
        xt = x.mT
        params = self.params[..., None].expand(*self.params.shape, xt.shape[-1])
        blocks, log_det = self._columnwise.apply(method, xt, params)
        return merge_rows(blocks).mT, log_det

    @torch.no_grad()
    def fit_quantiles(self, x: Tensor) -> Elementwise:
        """Set the splines so that they carry the quantiles of ``x (n, d)`` to those of a normal; angles keep the identity."""
        blocks = self._columnwise.blocks
        for (transformer, rows), own in zip(blocks, self.params.split(self._columnwise.sizes), strict=True):
            if isinstance(transformer, Spline):
                own.copy_(_by_quantiles(x[:, rows.columns].double(), transformer).flatten())
        return self


def _by_quantiles(x: Tensor, spline: Spline) -> Tensor:
    """Parameters ``(n_params, d)`` of splines from the quantiles of ``x (n, d)`` to the normal's."""
    shape, n = spline.shape, len(x)
    farthest = math.sqrt(2) * float(torch.special.erfinv(torch.tensor(1 - 2 * min(_BEYOND / n, 0.1), dtype=torch.float64)))
    # Knots and half-way points between them: slopes at the knots are those of the nearest halves.
    halves = torch.linspace(-farthest, farthest, 2 * shape.bins - 3, dtype=torch.float64)[:, None]
    quantiles = torch.quantile(x, torch.special.ndtr(halves[:, 0]), dim=0)
    ends = torch.full_like(quantiles[:1], shape.bound)
    at = torch.cat([-ends, quantiles[::2].clamp(-shape.bound, shape.bound), ends])
    to = torch.cat([-ends, halves[::2].expand(-1, x.shape[1]), ends])
    fractions = ((torch.stack([at, to]).diff(dim=1) - shape.floor) / shape.scale).clamp(min=1e-5)
    fractions = fractions / fractions.sum(1, keepdim=True)
    steep = (halves.diff(dim=0) / quantiles.diff(dim=0).clamp(min=1e-12)).log()
    inner = 0.5 * (steep[1:-1:2] + steep[2::2])
    slopes = torch.cat([steep[:1], inner, steep[-1:]]).exp().clamp(2 * MIN_SLOPE, _LARGEST_SLOPE)
    raw = torch.log2(torch.expm1(slopes * math.log(2)))
    return torch.cat([raw, fractions.log().transpose(0, 1).flatten(0, 1)])

