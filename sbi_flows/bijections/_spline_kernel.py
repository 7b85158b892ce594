"""Rational-quadratic splines with a hand-written backward pass, for any shape of elements.

One autograd node replaces about a hundred. Parameters lead, so each per-bin quantity is a contiguous run; what backward needs is
nine numbers an element besides the softmax of the bin sizes.

With bin left end ``(x0, y0)``, sizes ``w, h``, slopes ``d0, d1`` at its ends, ``s = h / w``,
``xi = (x - x0) / w``, ``t = xi (1 - xi)``::

    D = s + (d0 + d1 - 2 s) t             r = (s xi^2 + d0 t) / D             z = y0 + h r
    M = d1 xi^2 + 2 s t + d0 (1 - xi)^2   ln dz/dx = ln(M (s / D)^2)

References
----------
Durkan, Bekasov, Murray & Papamakarios 2019, "Neural spline flows", arXiv:1906.04032. Gregory & Delbourgo 1982.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# |ln slope| at the knots is softly bounded by this: e^8 leaves room for slopes of 1e+-3.
MAX_LOG_SLOPE = 8.0


class Shape(NamedTuple):
    """The constants of a spline: number of bins, half-width of its interval, smallest bin as a fraction of the interval."""

    bins: int
    bound: float
    min_size: float
    circular: bool

    @property
    def n_params(self) -> int:
        """Slopes at the knots (the two ends are fixed, or one and the same), then a width and a height a bin."""
        return 3 * self.bins - (0 if self.circular else 1)


def spline(x: Tensor, params: Tensor, shape: Shape, inverse: bool) -> tuple[Tensor, Tensor]:
    """``x (*s)`` and ``params (n_params, *s)`` to the value and its log derivative, of the inverse map if ``inverse``."""
    value, log_slope = _Spline.apply(x, params, shape, inverse)[:2]
    return value, log_slope


def _locate(x: Tensor, params: Tensor, shape: Shape, channel: int) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax of bin sizes ``(bins, 2, *s)``, ends of each element's bin ``(2, 3, *s)`` as x, y, raw slope, bin ``(*s)``."""
    bins, bound = shape.bins, shape.bound
    raw_slopes, raw_sizes = params[: params.shape[0] - 2 * bins], params[params.shape[0] - 2 * bins :]
    fractions = torch.softmax(raw_sizes.unflatten(0, (bins, 2)), 0)
    knots = params.new_empty((bins + 1, 3, *x.shape))
    ends = knots[:, :2]
    ends[0] = -bound
    scale = 2 * bound * (1 - bins * shape.min_size)
    for k in range(bins - 1):
        torch.add(ends[k], fractions[k], alpha=scale, out=ends[k + 1])
    ramp = torch.arange(1, bins, device=x.device, dtype=x.dtype) * (2 * bound * shape.min_size)
    ends[1:bins] += ramp.reshape(-1, *[1] * (x.ndim + 1))
    ends[bins] = bound
    if shape.circular:
        knots[:bins, 2] = raw_slopes
        knots[bins, 2] = raw_slopes[0]
    else:
        knots[1:bins, 2] = raw_slopes
        knots[0, 2] = knots[bins, 2] = 0
    index = (knots[1:bins, channel] <= x).sum(0)
    n = x.numel()
    at = index.reshape(-1) * (3 * n) + torch.arange(n, device=x.device)
    at = at + (torch.arange(6, device=x.device) * n)[:, None]
    found = knots.reshape(-1).index_select(0, at.reshape(-1)).reshape(2, 3, *x.shape)
    return fractions, found, index


def _bin(found: Tensor) -> tuple[Tensor, ...]:
    """``w, h, s, d0, d1`` and the soft bound's divisor ``(2, *s)`` from the ends of each element's bin."""
    w, h = found[1, :2] - found[0, :2]
    divisor = found[:, 2].abs().mul_(1 / MAX_LOG_SLOPE).add_(1)
    d0, d1 = torch.exp(found[:, 2] / divisor)
    return w, h, h / w, d0, d1, divisor


def _evaluate(x, params, shape: Shape, inverse: bool):
    clipped = x.clamp(-shape.bound, shape.bound)
    inside = x == clipped
    fractions, found, index = _locate(clipped, params, shape, channel=1 if inverse else 0)
    w, h, s, d0, d1, _ = _bin(found)
    u = d0 + d1 - 2 * s
    if inverse:
        zeta = (clipped - found[0, 1]) / h
        xi = _solve(zeta, s, d0, u).clamp_(0, 1)
    else:
        xi = ((clipped - found[0, 0]) / w).clamp_(0, 1)
    rest = 1 - xi
    t = xi * rest
    xi2 = xi * xi
    denominator = torch.addcmul(s, u, t)
    numerator = d1 * xi2 + 2 * s * t + d0 * rest * rest
    log_slope = torch.log(numerator * (s / denominator).square_())
    value = torch.addcmul(found[0, 0], w, xi) if inverse else found[0, 1] + h * (s * xi2 + d0 * t) / denominator
    # Beyond the interval the map is the identity: the clipped element sits on an end knot of slope one.
    value = torch.where(inside, value, x)
    log_slope = torch.where(inside, -log_slope if inverse else log_slope, 0.0)
    return value, log_slope, fractions, found, index, xi, inside


def _solve(zeta, s, d0, u):
    """Root in [0, 1] of ``a xi^2 + b xi + c``, by the form of the quadratic formula that does not cancel."""
    b = d0 - zeta * u
    a = s - b
    c = -s * zeta
    root = torch.sqrt((b * b - 4 * a * c).clamp_(min=0))
    positive = b >= 0
    q = -0.5 * (b + torch.where(positive, root, -root))
    # q = 0 only where c = 0 too (zeta = 0 in a bin of zero slope, which the slope bound excludes).
    return torch.where(positive, c, q) / torch.where(positive, q, a)


def _gradient(grad_value, grad_log, fractions, found, index, xi, inside, shape: Shape):
    """Gradients with respect to x and the parameters of the *forward* map at ``xi``, for weights on its value and log slope."""
    bins, bound = shape.bins, shape.bound
    w, h, s, d0, d1, divisor = _bin(found)
    gz, gl = grad_value * inside, grad_log * inside
    rest = 1 - xi
    t = xi * rest
    xi2, rest2 = xi * xi, rest * rest
    u = d0 + d1 - 2 * s
    inv_d = 1 / torch.addcmul(s, u, t)
    m = d1 * xi2 + 2 * s * t + d0 * rest2
    r = (s * xi2 + d0 * t) * inv_d
    centre = rest - xi
    gr = gz * h * inv_d  # weight on D times the derivatives of r
    gm = gl / m
    gd = 2 * gl * inv_d
    g_xi = gr * s * m * inv_d + 2 * gm * (d1 * xi + s * centre - d0 * rest) - gd * u * centre
    one_minus_2t = 1 - 2 * t
    g_s = gr * (xi2 - r * one_minus_2t) + 2 * (gm * t + gl / s) - gd * one_minus_2t
    g_t = gd * t
    slopes = torch.stack([gr * t * (1 - r) + gm * rest2 - g_t, gm * xi2 - gr * t * r - g_t])
    slopes *= torch.exp(found[:, 2] / divisor) / divisor.square_()
    g_x = g_xi / w
    left = torch.stack([-g_x, gz])
    size = torch.stack([-(g_s * s + g_xi * xi) / w, gz * r + g_s / w])
    # Through the softmax: subtract the mean of the gradient under the fractions.
    scale = 2 * bound * (1 - bins * shape.min_size)
    floor = 2 * bound * shape.min_size
    before = found[0, :2] + bound - floor * index
    mean = (left * before + size * (found[1, :2] - found[0, :2] - floor)) / scale
    n_slopes = shape.n_params - 2 * bins
    grads = xi.new_zeros((n_slopes + 2 * bins + (0 if shape.circular else 1), *xi.shape))
    # Slopes first: their last row is the first of the sizes, which are written after it.
    grads.scatter_(0, index[None], slopes[:1])
    grads.scatter_(0, index[None] + 1, slopes[1:])
    if shape.circular:
        grads[0] += grads[bins]
    bin_number = torch.arange(bins, device=xi.device).reshape(-1, *[1] * (xi.ndim + 1))
    sizes = torch.where(bin_number < index, (left - mean) * scale, mean * -scale)
    sizes.scatter_(0, index.expand(1, 2, *index.shape), ((size - mean) * scale)[None])
    sizes *= fractions
    grads[-2 * bins :] = sizes.flatten(0, 1)
    return torch.where(inside, g_x, grad_value), grads if shape.circular else grads[1:]


class _Spline(torch.autograd.Function):
    """Value and log slope, with what the gradient needs as further (not differentiable) outputs."""

    @staticmethod
    def forward(x, params, shape, inverse):
        return _evaluate(x, params, shape, inverse)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.shape, ctx.inverse = inputs[2:]
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(True)
        ctx.save_for_backward(output[1], *output[2:])

    @staticmethod
    def backward(ctx, grad_value, grad_log, *_):
        return *_SplineGradient.apply(grad_value, grad_log, *ctx.saved_tensors, ctx.shape, ctx.inverse), None, None

    @staticmethod
    def vmap(info, in_dims, x, params, shape, inverse):
        x = _batched(x, in_dims[0], 0, info.batch_size)
        params = _batched(params, in_dims[1], 1, info.batch_size)
        return _Spline.apply(x, params, shape, inverse), (0, 0, 2, 2, 0, 0, 0)


class _SplineGradient(torch.autograd.Function):
    """The backward pass as a function of its own, so that it too can be vmapped (``vmap`` of ``grad``)."""

    @staticmethod
    def forward(grad_value, grad_log, log_slope, fractions, found, index, xi, inside, shape, inverse):
        saved = (fractions, found, index, xi, inside, shape)
        if not inverse:
            return _gradient(grad_value, grad_log, *saved)
        # x(z, p) solves z = f(x, p): dx = (dz - f_p dp) / f', and the log slope is -ln f' at that x.
        through_log, _ = _gradient(torch.zeros_like(grad_log), -grad_log, *saved)
        grad_z = (grad_value + through_log) * torch.exp(log_slope)
        _, grad_params = _gradient(-grad_z, -grad_log, *saved)
        return grad_z, grad_params

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        raise NotImplementedError(
            "The rational-quadratic spline has no second derivatives. Use an affine flow (maf, realnvp) there."
        )

    @staticmethod
    def vmap(info, in_dims, *args):
        targets = (0, 0, 0, 2, 2, 0, 0, 0)
        moved = [_batched(a, d, t, info.batch_size) for a, d, t in zip(args[:8], in_dims[:8], targets, strict=True)]
        return _SplineGradient.apply(*moved, *args[8:]), (0, 1)


def _batched(tensor: Tensor, dim: int | None, target: int, size: int) -> Tensor:
    """``tensor`` with its batch dimension at ``target``, expanded if it has none."""
    if dim is not None:
        return tensor.movedim(dim, target)
    shape = list(tensor.shape)
    return tensor.unsqueeze(target).expand(*shape[:target], size, *shape[target:])
