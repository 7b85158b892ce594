"""Rational-quadratic splines and their gradient as loops over elements, compiled by numba: a CPU, few elements at a time.

A batch of training or a column of an autoregressive inverse has too few elements to pay for a hundred tensor operations. Here the
whole spline is one call. Everything between reading and writing is float64. The notation is that of
:mod:`sbi_flows.bijections._spline_shape`, the interface that of :mod:`sbi_flows.bijections._spline_tensors`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from sbi_flows.bijections._spline_shape import LN2, MIN_SLOPE, Shape

_LOG2E = 1 / LN2
_BLOCK = 64  # elements whose gradient is spread over the bins together, so that the compiler can use vector instructions


class Saved(NamedTuple):
    """What the gradient needs of ``n`` elements."""

    fractions: Tensor  # (2 bins, n) softmax of the sizes
    numbers: Tensor  # (5, n) xi, d0, d1 and the derivatives of both slopes, float64
    bin: Tensor  # (1, n) its index, -1 in a tail


def evaluate(x: Tensor, params: Tensor, shape: Shape, inverse: bool, keep: bool) -> tuple[Tensor, Tensor, Saved]:
    """``x (*s)``, ``params (n_params, *s)`` to value and log slope ``(*s)``, and what :func:`backward` needs if ``keep``."""
    n, whole, bins = x.numel(), x.shape, shape.bins
    x = x.detach().reshape(n).contiguous()
    params = params.detach().reshape(shape.n_params, n).contiguous()
    fractions = torch.softmax(params[shape.n_slopes :].view(bins, 2 * n), 0)
    value, log_slope = torch.empty_like(x), torch.empty_like(x)
    kept = n if keep else 0
    saved = Saved(
        fractions.view(2 * bins, n),
        torch.empty((5, kept), dtype=torch.float64),
        torch.empty((1, kept), dtype=torch.int32),
    )
    _evaluate(
        x.numpy(), fractions.numpy().reshape(bins, 2, n), params[: shape.n_slopes].numpy(), *_constants(shape), inverse, keep,
        value.numpy(), log_slope.numpy(), saved.numbers.numpy(), saved.bin.numpy()[0],
    )  # fmt: skip
    return value.view(whole), log_slope.view(whole), saved


def backward(grad_value: Tensor, grad_log: Tensor | None, saved: Saved, shape: Shape, inverse: bool) -> tuple[Tensor, Tensor]:
    """Gradients with respect to x ``(*s)`` and the parameters ``(n_params, *s)``, given those of value and log slope."""
    n, whole, bins = grad_value.numel(), grad_value.shape, shape.bins
    grad_log = torch.zeros_like(grad_value) if grad_log is None else grad_log
    g_x, g_params = grad_value.new_empty(n), grad_value.new_empty((shape.n_params, n))
    _gradient(
        grad_value.reshape(n).contiguous().numpy(), grad_log.reshape(n).contiguous().numpy(),
        saved.fractions.numpy().reshape(bins, 2, n), saved.numbers.numpy(), saved.bin.numpy()[0], *_constants(shape), inverse,
        g_x.numpy(), g_params[: shape.n_slopes].numpy(), g_params[shape.n_slopes :].numpy().reshape(bins, 2, n),
    )  # fmt: skip
    return g_x.view(whole), g_params.view(shape.n_params, *whole)


def _constants(shape: Shape) -> tuple[float, float, float, bool]:
    return shape.bound, shape.floor, shape.scale, shape.circular


def _compiled(function):
    """Compiled at the first call, and kept on disk for the next process where there is a place to write."""
    try:
        return njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # numba found neither a writable folder beside this file nor one of the user's own
        return njit(nogil=True, error_model="numpy")(function)


@_compiled
def _slope(raw):
    """A slope and its derivative by the raw parameter; that of the floor is left out, so that the slope can come back."""
    if raw > 60.0:
        return float(raw), 1.0
    power = math.exp(raw * LN2)
    return max(math.log(1.0 + power) * _LOG2E, MIN_SLOPE), power / (1.0 + power)


@_compiled
def _ends(slopes, i, k, bins, circular):
    """Slopes ``d0, d1`` at the ends of bin k, then their derivatives by their own raw parameters."""
    if circular:
        d0, g0 = _slope(slopes[k, i])
        d1, g1 = _slope(slopes[0 if k == bins - 1 else k + 1, i])
    else:
        d0, g0 = (1.0, 0.0) if k == 0 else _slope(slopes[k - 1, i])
        d1, g1 = (1.0, 0.0) if k == bins - 1 else _slope(slopes[k, i])
    return d0, d1, g0, g1


@_compiled
def _root(zeta, s, d0, u):
    """Root in [0, 1] of ``a xi^2 + b xi - s zeta``, by the form of the quadratic formula that does not cancel."""
    b = d0 - zeta * u
    a = s - b
    c = zeta * s
    q = 0.5 * (b + math.copysign(math.sqrt(max(b * b + 4.0 * a * c, 0.0)), b))
    xi = c / q if b >= 0.0 else -q / a
    return min(max(xi, 0.0), 1.0)


@_compiled
def _evaluate(x, fractions, slopes, bound, floor, scale, circular, inverse, keep, value, log_slope, numbers, index):
    bins = fractions.shape[0]
    own = 1 if inverse else 0
    for i in range(x.shape[0]):
        v = float(x[i])
        if not (v >= -bound and v <= bound):
            value[i] = v
            log_slope[i] = v if math.isnan(v) else 0.0
            if keep:
                index[i] = -1
                numbers[:, i] = 0.0
            continue
        k, left, size = 0, -bound, floor + scale * fractions[0, own, i]
        while k < bins - 1 and v >= left + size:
            left += size
            k += 1
            size = floor + scale * fractions[k, own, i]
        other = -bound
        for b in range(k):
            other += floor + scale * fractions[b, 1 - own, i]
        other_size = floor + scale * fractions[k, 1 - own, i]
        if k == bins - 1:
            size, other_size = bound - left, bound - other
        w, h = (other_size, size) if inverse else (size, other_size)
        d0, d1, g0, g1 = _ends(slopes, i, k, bins, circular)
        s = h / w
        u = d0 + d1 - 2.0 * s
        xi = _root((v - left) / h, s, d0, u) if inverse else (v - left) / w
        rest = 1.0 - xi
        t = xi * rest
        m = d0 * rest * rest + d1 * xi * xi + 2.0 * s * t
        inv_d = 1.0 / (s + u * t)
        ratio = s * inv_d
        log = math.log(m * ratio * ratio)
        if inverse:
            value[i], log_slope[i] = other + w * xi, -log
        else:
            value[i], log_slope[i] = other + h * (s * xi * xi + d0 * t) * inv_d, log
        if keep:
            index[i] = k
            numbers[0, i], numbers[1, i], numbers[2, i], numbers[3, i], numbers[4, i] = xi, d0, d1, g0, g1


@_compiled
def _gradient(gz_all, gl_all, fractions, numbers, index, bound, floor, scale, circular, inverse, g_x, g_slopes, g_sizes):
    bins, n = fractions.shape[0], gz_all.shape[0]
    # For widths and heights: the weight on a fraction before the bin, in it, and after it.
    weights = np.empty((2, 3, _BLOCK), fractions.dtype)
    g_slopes[:] = 0.0
    for start in range(0, n, _BLOCK):
        size = min(_BLOCK, n - start)
        for j in range(size):
            i = start + j
            k = index[i]
            gz, gl = float(gz_all[i]), float(gl_all[i])
            if k < 0:
                g_x[i] = gz
                weights[:, :, j] = 0.0
                continue
            before_w, before_h = 0.0, 0.0
            for b in range(k):
                before_w += fractions[b, 0, i]
                before_h += fractions[b, 1, i]
            fw, fh = fractions[k, 0, i], fractions[k, 1, i]
            w, h = floor + scale * fw, floor + scale * fh
            if k == bins - 1:
                w, h = 2.0 * bound - k * floor - scale * before_w, 2.0 * bound - k * floor - scale * before_h
            xi, d0, d1 = numbers[0, i], numbers[1, i], numbers[2, i]
            rest, s = 1.0 - xi, h / w
            t, turn, u = xi * rest, rest - xi, d0 + d1 - 2.0 * s
            inv_d = 1.0 / (s + u * t)
            m = d0 * rest * rest + d1 * xi * xi + 2.0 * s * t
            m_xi = 2.0 * (d1 * xi + s * turn - d0 * rest)
            r = (s * xi * xi + d0 * t) * inv_d
            if inverse:
                # x(z, p) solves z = f(x, p): dx = (dz - f_p dp) / f', and the log slope is -ln f' at that x.
                gl = -gl
                g_x[i] = (gz + gl * (m_xi / m - 2.0 * inv_d * u * turn) / w) / (m * (s * inv_d) ** 2)
                gz = -g_x[i]
            gm, gr = gl / m, gz * h * inv_d
            e = gr * r + 2.0 * gl * inv_d
            left = -((2.0 * s * xi + d0 * turn) * gr - e * u * turn + gm * m_xi) / w
            if not inverse:
                g_x[i] = -left
            _add_slopes(
                g_slopes, i, k, bins, circular,
                (t * gr - e * t + gm * rest * rest) * numbers[3, i], (gm * xi * xi - e * t) * numbers[4, i],
            )  # fmt: skip
            g_s = xi * xi * gr - e * (1.0 - 2.0 * t) + 2.0 * (t * gm + gl / s)
            g_w, g_h = left * xi - g_s * s / w, gz * r + g_s / w
            # Through the softmax: subtract the mean weight under the fractions.
            mean_w, mean_h = left * before_w + g_w * fw, gz * before_h + g_h * fh
            weights[0, 0, j], weights[0, 1, j], weights[0, 2, j] = left - mean_w, g_w - mean_w, -mean_w
            weights[1, 0, j], weights[1, 1, j], weights[1, 2, j] = gz - mean_h, g_h - mean_h, -mean_h
        for b in range(bins):
            for c in range(2):
                for j in range(size):
                    k = index[start + j]
                    weight = weights[c, 0, j] if b < k else (weights[c, 1, j] if b == k else weights[c, 2, j])
                    g_sizes[b, c, start + j] = scale * fractions[b, c, start + j] * weight


@_compiled
def _add_slopes(g_slopes, i, k, bins, circular, left, right):
    """Add to the raw slopes at both ends of bin k; on the line the outermost two are fixed."""
    if circular:
        g_slopes[k, i] += left
        g_slopes[0 if k == bins - 1 else k + 1, i] += right
    else:
        if k > 0:
            g_slopes[k - 1, i] += left
        if k < bins - 1:
            g_slopes[k, i] += right
