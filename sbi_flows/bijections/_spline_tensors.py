"""Rational-quadratic splines and their gradient by tensor operations: any device, many elements at a time.

Parameters lead, so each per-bin quantity is one contiguous run. Operations are counted here more than elsewhere: at the batch
sizes of training the time goes into their number, hence the stacked pairs. The notation is that of
:mod:`sbi_flows.bijections._spline_shape`.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sbi_flows.bijections._spline_shape import LN2, MIN_SLOPE, Shape


class Saved(NamedTuple):
    """What the gradient needs of ``n`` elements."""

    fractions: Tensor  # (2 bins, n) softmax of the sizes
    found: Tensor  # (6, n) x, y, raw slope at the left end of the bin, then at the right
    size: Tensor  # (2, n) w, h
    d: Tensor  # (2, n) slopes at the ends of the bin
    ends: Tensor  # (2, n) 1 - xi, xi
    squares: Tensor  # (2, n) their squares
    scalars: Tensor  # (6, n) s, d0 + d1 - 2 s, t, M, 1 / D, r
    passed: Tensor  # (bins - 1, n) one where the bin lies further right, else zero
    bin: Tensor  # (1, n) its index
    inside: Tensor  # (1, n) not in a tail


@cache
def _running_sum(shape: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """``offset (bins + 1, 1)`` and ``matrix (bins + 1, bins)``: the knots are offset + matrix @ fractions, the last one exact."""
    count = torch.arange(shape.bins + 1, dtype=torch.float64)[:, None]
    matrix = shape.scale * (count > torch.arange(shape.bins)).double()
    offset = count * shape.floor - shape.bound
    matrix[-1], offset[-1] = 0, shape.bound
    return offset.to(device, dtype), matrix.to(device, dtype)


@lru_cache(maxsize=8)
def _table(n: int, device: torch.device) -> Tensor:
    """Where the six numbers of the first bin lie, for each of ``n`` elements, ``(6, n)``."""
    # Half as wide integers are twice as fast; 200 n bounds the places in a table of up to 64 bins.
    return torch.arange(6 * n, device=device, dtype=torch.int32 if 200 * n < 2**31 else torch.int64).view(6, n)


def _locate(x: Tensor, params: Tensor, shape: Shape, channel: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``fractions, found, passed`` as :class:`Saved` has them, and the bin ``(n,)``, for ``x (n,)``."""
    bins, n = shape.bins, x.shape[0]
    fractions = torch.softmax(params[shape.n_slopes :].reshape(bins, 2 * n), 0)
    knots = params.new_empty((bins + 1, 3 * n))
    # An out= product is not touched by autocast: knots stay in full precision.
    torch.addmm(*_running_sum(shape, x.dtype, x.device), fractions, out=knots[:, : 2 * n])
    slopes = knots[:, 2 * n :]
    if shape.circular:
        slopes[:bins].copy_(params[:bins])
        slopes[bins].copy_(params[0])
    else:
        slopes[1:bins].copy_(params[: bins - 1])
        slopes[::bins].zero_()
    # Counting in floats: comparing into a float buffer and summing is several times faster than summing booleans.
    passed = torch.le(knots[1:bins, channel * n : (channel + 1) * n], x, out=params.new_empty((bins - 1, n)))
    index = passed.sum(0)
    table = _table(n, x.device)
    at = table + index.to(table.dtype) * (3 * n)
    return fractions, knots.view(-1).index_select(0, at.view(-1)).view(6, n), passed, index.long()


def evaluate(x: Tensor, params: Tensor, shape: Shape, inverse: bool, keep: bool) -> tuple[Tensor, Tensor, Saved]:
    """``x (*s)``, ``params (n_params, *s)`` to value and log slope ``(*s)``, and what :func:`backward` needs, wanted or not."""
    n, whole = x.numel(), x.shape
    x, params = x.reshape(n), params.reshape(shape.n_params, n)
    clipped = x.clamp(-shape.bound, shape.bound)
    inside = x == clipped
    fractions, found, passed, index = _locate(clipped, params, shape, channel=1 if inverse else 0)
    size = found[3:5] - found[:2]
    # The floor acts where the slope hardly depends on its parameter any more; the gradient ignores it, so it can come back.
    d = softplus(found[2::3], beta=LN2).clamp_(min=MIN_SLOPE)
    x0, y0, *_ = found.unbind(0)
    (w, h), (d0, d1) = size.unbind(0), d.unbind(0)
    scalars = x.new_empty((6, n))
    s, u, t, m, inv_d, r = scalars.unbind(0)
    torch.div(h, w, out=s)
    torch.add(d0, d1, out=u).sub_(s, alpha=2)
    ends = x.new_empty((2, n))
    rest, xi = ends.unbind(0)
    if inverse:
        _solve((clipped - y0).div_(h), s, d0, u, out=xi)
    else:
        torch.div(clipped.sub_(x0), w, out=xi)
    torch.sub(1, xi, out=rest)
    torch.mul(rest, xi, out=t)
    squares = ends * ends
    torch.mul(d0, squares[0], out=m).addcmul_(d1, squares[1]).addcmul_(s, t, value=2)
    torch.addcmul(s, u, t, out=inv_d).reciprocal_()
    ratio = s * inv_d
    log_slope = (m * ratio).mul_(ratio).log_()
    torch.mul(s, squares[1], out=r).addcmul_(d0, t).mul_(inv_d)
    if inverse:
        value = torch.addcmul(x0, w, xi)
        log_slope.neg_()
    else:
        value = torch.addcmul(y0, h, r)
    # Beyond the interval the map is the identity: the clipped element sits on an end knot, where the slope is one.
    value = torch.where(inside, value, x)
    saved = Saved(fractions.view(2 * shape.bins, n), found, size, d, ends, squares, scalars, passed, index[None], inside[None])
    return value.view(whole), log_slope.view(whole), saved


def _solve(zeta: Tensor, s: Tensor, d0: Tensor, u: Tensor, out: Tensor) -> None:
    """Root in [0, 1] of ``a xi^2 + b xi - s zeta``, by the form of the quadratic formula that does not cancel."""
    b = torch.addcmul(d0, zeta, u, value=-1)
    a = s - b
    c = zeta.mul_(s)
    root = (b * b).addcmul_(a, c, value=4).clamp_(min=0).sqrt_()
    # q = (b + sign(b) root) / 2 with sign(0) = 1: then xi = c / q for b >= 0 and -q / a else.
    q = root.copysign_(b).add_(b).div_(2)
    torch.where(b >= 0, c.div_(q), q.div_(a).neg_(), out=out).clamp_(0, 1)


def _gradient(gz: Tensor, gl: Tensor, saved: Saved, shape: Shape) -> tuple[Tensor, Tensor]:
    """Gradients with respect to x ``(n,)`` and the parameters ``(n_params, n)`` of the *forward* map.

    ``gz, gl (n,)`` are the weights on its value and on its log slope.
    """
    bins, n = shape.bins, len(gz)
    fractions, found, size, d, ends, squares, scalars, passed, index, inside = saved
    (w, h), (rest, xi), (s, u, t, m, inv_d, r) = size.unbind(0), ends.unbind(0), scalars.unbind(0)
    gr = (gz * h).mul_(inv_d)
    gm = gl / m
    half_gd = gl * inv_d
    e = (gr * r).add_(half_gd, alpha=2)
    c = e * t

    slopes = (gm * squares).sub_(c)
    slopes[0].addcmul_(gr, t)
    slopes.mul_(found[2::3].mul(LN2).sigmoid_())

    g_s = (gr * squares[1]).sub_(e).add_(c.addcmul_(gm, t).addcdiv_(gl, s), alpha=2)
    turn = d * ends
    g_xi = (gm * s).addcmul_(half_gd, u, value=-1).mul_(rest - xi).addcmul_(gm, turn[1].sub_(turn[0]))
    g_x = (s * m).mul_(inv_d).mul_(gr).add_(g_xi, alpha=2).div_(w)

    # Weights on the left end of the bin, then on its size: the left end is the sum of the sizes before it.
    weights = gl.new_empty((2, 2 * n))
    left, width = weights.unbind(0)
    g_s.div_(w)
    torch.neg(g_x, out=left[:n])
    left[n:].copy_(gz)
    torch.mul(g_s, s, out=width[:n]).addcmul_(g_x, xi).neg_()
    torch.addcmul(g_s, gz, r, out=width[n:])
    # Through the softmax: subtract the mean weight under the fractions.
    before = (found[:2] + shape.bound).sub_(index, alpha=shape.floor).view(-1)
    minus_mean = before.mul_(left).addcmul_((size - shape.floor).view(-1), width).neg_()
    width = torch.add(minus_mean, width, alpha=shape.scale)

    # The last row written by the scatter is the first of the sizes, or (on the line) the fixed slope at the right end; the first
    # row is the fixed slope at the left end. All are overwritten or dropped.
    pad = 0 if shape.circular else 1
    grads = gl.new_empty((pad + shape.n_params, n))
    grads[: bins + 1].zero_()
    grads.scatter_(0, torch.cat([index, index + 1]), slopes)
    if shape.circular:
        grads[0].add_(grads[bins])
    sizes = grads[bins:].view(bins, 2, n)
    minus_mean, left = minus_mean.view(2, n), left.view(2, n)
    torch.addcmul(minus_mean, passed.view(bins - 1, 1, n), left, value=shape.scale, out=sizes[:-1])
    sizes[-1].copy_(minus_mean)
    sizes.scatter_(0, index.expand(1, 2, n), width.view(1, 2, n))
    sizes.mul_(fractions.view(bins, 2, n))
    return torch.where(inside[0], g_x, gz), grads[pad:]


def backward(grad_value: Tensor, grad_log: Tensor | None, saved: Saved, shape: Shape, inverse: bool) -> tuple[Tensor, Tensor]:
    """Gradients with respect to x ``(*s)`` and the parameters ``(n_params, *s)``, given those of value and log slope."""
    whole = grad_value.shape
    gz = grad_value.reshape(-1)
    gl = torch.zeros_like(gz) if grad_log is None else grad_log.reshape(-1)
    if inverse:
        # x(z, p) solves z = f(x, p): dx = (dz - f_p dp) / f', and the log slope is -ln f' at that x.
        s, _, _, m, inv_d, _ = saved.scalars.unbind(0)
        gl = -gl
        if grad_log is not None:  # else nothing comes through it, and a pass is saved
            gz = gz + _gradient(torch.zeros_like(gz), gl, saved, shape)[0]
        gz = gz / torch.where(saved.inside[0], m * (s * inv_d).square(), 1.0)
        return gz.view(whole), _gradient(-gz, gl, saved, shape)[1].view(shape.n_params, *whole)
    g_x, grads = _gradient(gz, gl, saved, shape)
    return g_x.view(whole), grads.view(shape.n_params, *whole)
