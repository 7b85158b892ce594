"""One step of Gaussian marginalisation with its derivative in closed form, and rows in blocks that fit the cache, gradients too.

Autograd through a Cholesky factor costs several times the closed form; to keep a whole batch's factors for it, more than that.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sbi_flows._threads import each_on_a_thread


def gram_and_log_det(matrix: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """``Z' C^-1 Z`` ``(..., m, m)`` and ``ln |C|`` ``(...)`` for positive definite ``C (..., k, k)`` and ``Z (..., k, m)``.

    Where rounding has made C indefinite, its eigenvalues are raised to what rounding leaves of them.
    """
    return _GramAndLogDet.apply(matrix, columns)


class _GramAndLogDet(torch.autograd.Function):
    @staticmethod
    def forward(ctx, matrix, columns):
        factor = _cholesky(matrix)
        half = torch.linalg.solve_triangular(factor, columns, upper=False)
        ctx.save_for_backward(factor, half)
        ctx.columns_shape = columns.shape
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return half.mT @ half, log_det

    @staticmethod
    @once_differentiable
    def backward(ctx, gram_bar, log_det_bar):
        factor, half = ctx.saved_tensors
        solved = torch.linalg.solve_triangular(factor.mT, half, upper=True)
        symmetric = gram_bar + gram_bar.mT
        matrix_bar = columns_bar = None
        if ctx.needs_input_grad[0]:
            # d ln|C| = tr C^-1 dC and d(Z'C^-1Z) = -Z'C^-1 dC C^-1 Z.
            matrix_bar = torch.cholesky_inverse(factor) * log_det_bar[..., None, None] - 0.5 * solved @ symmetric @ solved.mT
        if ctx.needs_input_grad[1]:
            columns_bar = (solved @ symmetric).sum_to_size(ctx.columns_shape)
        return matrix_bar, columns_bar


def joined_integral(between: Tensor, within: Tensor, vector: Tensor) -> Tensor:
    """``v' A^-1 v / 2 - ln |A| / 2`` ``(n,)``, where A = between + within has a block a coefficient and a block a pulsar.

    Parameters
    ----------
    between : Tensor (n, k, p, p)
        Zero but where coefficients are the same.
    within : Tensor (n, p, k, k)
        Zero but where pulsars are the same.
    vector : Tensor (n, p, k)
    """
    return _JoinedIntegral.apply(between, within, vector)


class _JoinedIntegral(torch.autograd.Function):
    @staticmethod
    def forward(ctx, between, within, vector):
        n, p, k = vector.shape
        whole = vector.new_zeros(n, p, k, p, k)
        _between(whole).copy_(between.permute(0, 2, 3, 1))
        _within(whole).add_(within.permute(0, 2, 3, 1))
        factor = _cholesky(whole.reshape(n, p * k, p * k))
        half = torch.linalg.solve_triangular(factor, vector.reshape(n, p * k, 1), upper=False)
        ctx.save_for_backward(factor, half)
        ctx.shape = n, p, k
        return 0.5 * half.square().sum((1, 2)) - factor.diagonal(dim1=1, dim2=2).log().sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, bar):
        factor, half = ctx.saved_tensors
        n, p, k = ctx.shape
        # d value = s'dv - tr (A^-1 + s s') dA / 2 with s = A^-1 v, of which only the two kinds of blocks are asked for.
        inverse = torch.cholesky_inverse(factor).reshape(n, p, k, p, k)
        solved = torch.linalg.solve_triangular(factor.mT, half, upper=True).reshape(n, p, k)
        scale = -0.5 * bar[:, None, None, None]
        by_coefficient = solved.mT
        between_bar = scale * (_between(inverse).permute(0, 3, 1, 2) + _outer(by_coefficient))
        within_bar = scale * (_within(inverse).permute(0, 3, 1, 2) + _outer(solved))
        return between_bar, within_bar, bar[:, None, None] * solved


def _between(whole: Tensor) -> Tensor:
    """The view ``(n, p, p, k)`` of ``(n, p, k, p, k)`` where coefficients are the same."""
    return whole.diagonal(dim1=2, dim2=4)


def _within(whole: Tensor) -> Tensor:
    """The view ``(n, k, k, p)`` of ``(n, p, k, p, k)`` where pulsars are the same."""
    return whole.diagonal(dim1=1, dim2=3)


def _outer(rows: Tensor) -> Tensor:
    return rows[..., :, None] * rows[..., None, :]


def _cholesky(matrix: Tensor) -> Tensor:
    # Transposed, the same matrix lies in memory as LAPACK wants it.
    factor, info = torch.linalg.cholesky_ex(matrix.mT)
    bad = info > 0
    if bool(bad.any()):
        values, vectors = torch.linalg.eigh(matrix[bad])
        floor = values[..., -1:] * torch.finfo(matrix.dtype).eps * matrix.shape[-1]
        raised = torch.maximum(values, 10 * floor)
        factor = factor.clone()
        factor[bad] = torch.linalg.cholesky((vectors * raised[..., None, :]) @ vectors.mT)
    return factor


def by_blocks(function: Callable[[Tensor, Tensor], Tensor], theta: Tensor, data: Tensor, block: int) -> Tensor:
    """``function(theta, data)`` ``(n,)``, ``block`` rows at a time, blocks on as many threads as torch has.

    Where a gradient is wanted it is taken at once, block by block, so it is there once: no second derivatives.

    Parameters
    ----------
    function : callable
        Of ``theta (b, d)`` and ``data (b, ...)`` or ``(1, ...)``; one number a row, which depends on that row alone.
    theta : Tensor (n, d)
    data : Tensor (n, ...) or (1, ...)
    block : int
    """
    if theta.requires_grad and torch.is_grad_enabled():
        return _ByBlocks.apply(function, theta, data, block)
    values = each_on_a_thread(lambda piece: function(*piece), _pieces(theta, data, block), block)
    return torch.cat(values) if values else theta.new_zeros(0)


def _pieces(theta: Tensor, data: Tensor, block: int) -> list[tuple[Tensor, Tensor]]:
    """An even number of pieces of at most ``block`` rows, as equal as they can be: two threads end together."""
    pairs = max(1, -(-len(theta) // (2 * block)))
    even = max(1, -(-len(theta) // (2 * pairs)))
    return list(zip(theta.split(even), data.split(even) if len(data) > 1 else repeat(data), strict=False))


class _ByBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, theta, data, block):
        def both(piece):
            rows = piece[0].detach().requires_grad_()
            with torch.enable_grad():
                values = function(rows, piece[1])
                (gradient,) = torch.autograd.grad(values.sum(), rows)
            return values.detach(), gradient

        found = each_on_a_thread(both, _pieces(theta, data, block), block)
        ctx.save_for_backward(torch.cat([gradient for _, gradient in found]) if found else torch.zeros_like(theta))
        return torch.cat([values for values, _ in found]) if found else theta.new_zeros(0)

    @staticmethod
    @once_differentiable
    def backward(ctx, values_bar):
        (gradient,) = ctx.saved_tensors
        return None, gradient * values_bar[:, None], None, None
