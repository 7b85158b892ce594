"""One step of Gaussian marginalisation, with its derivative in closed form: autograd through a Cholesky factor costs several times that."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


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
