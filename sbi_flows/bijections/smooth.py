"""Smooth mixture transformers on the circle and on an interval: derivatives of every order, inverse by root finding.

Splines have kinks in their second derivative, and so forces, the gradients of log-densities, that jump. Here the derivative of the map is
a mixture of Poisson kernels (wrapped Cauchy densities), which have no kinks anywhere, ``P(t) = (1 - |w|^2) / |e^{it} - w|^2`` with w a
point of the unit disc. Its integral is ``t + 2 arg(1 - w conj e^{it})`` up to a constant, so value and slope are closed; the inverse
has no closed form, and its gradients, of any order, come from the implicit function theorem.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sbi_flows.bijections.base import Transformer
from sbi_flows.bijections.spline import wrap
from sbi_flows.nn import transforms_active

_LARGEST = 0.97  # of |w|: slopes from 1/66 to 66
_IDENTITY = 1e-6  # how far from the identity zero parameters may be
_ITERATIONS = 60  # enough for bisection alone to reach rounding; Newton takes some five


class SmoothCircle(Transformer):
    """A mixture of Moebius maps of the circle [-pi, pi), then a rotation.

    Parameters
    ----------
    components : int
        At least 2. Zero parameters spread them evenly round the circle, where together they are the identity to 1e-6.

    Examples
    --------
    >>> t = SmoothCircle(components=4)
    >>> x = torch.linspace(-3, 3, 5, dtype=torch.float64)
    >>> z, log_slope = t.forward(x, torch.ones(t.n_params, 5, dtype=torch.float64))
    >>> torch.allclose(t.inverse(z, torch.ones(t.n_params, 5, dtype=torch.float64))[0], x)
    True

    References
    ----------
    Koehler, Kraemer & Noe 2021, "Smooth normalizing flows", arXiv:2110.00351; Rezende et al. 2020, "Normalizing flows on tori and
    spheres", arXiv:2002.02428 (mixtures of Moebius maps).
    """

    circular = True

    def __init__(self, components: int = 8):
        self._components = _checked(components)
        self.n_params = 3 * components + 1

    def forward(self, x, params):
        mixture = self._mixture(params)
        value, slope = _value_and_slope(x, mixture)
        return wrap(value + params[-1]), torch.log(slope)

    def inverse(self, z, params):
        mixture = self._mixture(params)
        x = wrap(_Root.apply(z - params[-1], mixture))
        return x, -torch.log(_value_and_slope(x, mixture)[1])

    def _mixture(self, params: Tensor) -> Tensor:
        return _mixture(params[:-1], self._components)


class SmoothInterval(Transformer):
    """The same on ``[low, high]``, whose ends stay where they are: mixtures on the circle that are even about both ends.

    Parameters
    ----------
    low, high : float
        Every element must lie between them. For columns of a bounded support with a uniform base; values beyond are taken to the end.
    components : int

    Examples
    --------
    >>> t = SmoothInterval(0.0, 1.0)
    >>> z, log_slope = t.forward(torch.tensor([0.0, 0.5, 1.0]), torch.zeros(t.n_params, 3))
    >>> torch.allclose(z, torch.tensor([0.0, 0.5, 1.0]), atol=1e-5)
    True

    References
    ----------
    Koehler, Kraemer & Noe 2021, arXiv:2110.00351.
    """

    def __init__(self, low: float = -1.0, high: float = 1.0, components: int = 8):
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"Expected finite ends with low < high; got {low} and {high}.")
        self.low, self.high = float(low), float(high)
        self._components = _checked(components)
        self.n_params = 3 * components

    def forward(self, x, params):
        value, slope = _value_and_slope(self._angle(x), self._mixture(params))
        return self._place(value), torch.log(slope)

    def inverse(self, z, params):
        mixture = self._mixture(params)
        angle = _Root.apply(self._angle(z), mixture)
        return self._place(angle), -torch.log(_value_and_slope(angle, mixture)[1])

    def _angle(self, x: Tensor) -> Tensor:
        return (x.clamp(self.low, self.high) - self.low) * (math.pi / (self.high - self.low))

    def _place(self, angle: Tensor) -> Tensor:
        return (self.low + angle * ((self.high - self.low) / math.pi)).clamp(self.low, self.high)

    def _mixture(self, params: Tensor) -> Tensor:
        """Each component with its mirror image."""
        weight, real, imaginary = _mixture(params, self._components)
        return torch.stack([torch.cat([0.5 * weight] * 2), torch.cat([real] * 2), torch.cat([imaginary, -imaginary])])


class _Root(torch.autograd.Function):
    """``x`` with ``value(x, mixture) = z``. The backward pass is written in differentiable operations of its own output x, so that
    derivatives of any order are right."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z, mixture):
        # value(x) - x is within pi of zero for any mixture.
        low, high = z - math.pi, z + math.pi
        x = z.clone()
        for i in range(_ITERATIONS):
            value, slope = _value_and_slope(x, mixture)
            excess = value - z
            high, low = torch.where(excess > 0, x, high), torch.where(excess > 0, low, x)
            newton = x - excess / slope
            step = torch.where((newton > low) & (newton < high), newton, 0.5 * (low + high))
            # Rounding of an angle of order one; nothing may be asked of the numbers under a transform.
            if i % 4 == 3 and not transforms_active() and bool(((step - x).abs() <= 2 * torch.finfo(x.dtype).eps * math.pi).all()):
                return step
            x = step
        return x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output, inputs[1])

    @staticmethod
    def backward(ctx, gradient):
        x, mixture = ctx.saved_tensors
        with torch.enable_grad():
            slope = _value_and_slope(x, mixture)[1]
            per_slope = gradient / slope
        return per_slope, -per_slope * _value_by_mixture(x, mixture)


def _value_and_slope(x: Tensor, mixture: Tensor) -> tuple[Tensor, Tensor]:
    """Of angles ``x (*shape)`` under ``mixture (3, components, *shape)``; the value moves x by less than pi."""
    weight, real, imaginary = mixture
    along, across = _parts(x, real, imaginary)
    square = real.square() + imaginary.square()
    value = x + 2 * (weight * torch.atan2(across, 1 - along)).sum(0)
    slope = (weight * (1 - square) / (1 + square - 2 * along)).sum(0)
    return value, slope


def _value_by_mixture(x: Tensor, mixture: Tensor) -> Tensor:
    """Derivative of the value with respect to every entry of the mixture."""
    weight, real, imaginary = mixture
    along, across = _parts(x, real, imaginary)
    over = 2 * weight / ((1 - along).square() + across.square())
    sine, cosine = torch.sin(x), torch.cos(x)
    # atan2(a, b) changes by (b da - a db) / (a^2 + b^2) with a = across and b = 1 - along.
    by_real = over * ((1 - along) * sine + across * cosine)
    by_imaginary = over * (across * sine - (1 - along) * cosine)
    return torch.stack([2 * torch.atan2(across, 1 - along), by_real, by_imaginary])


def _parts(x: Tensor, real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
    """``|w| cos(x - arg w)`` and ``|w| sin(x - arg w)``."""
    sine, cosine = torch.sin(x), torch.cos(x)
    return real * cosine + imaginary * sine, real * sine - imaginary * cosine


def _mixture(params: Tensor, components: int) -> Tensor:
    """``(3 components, *shape)`` to weights and points of the disc, ``(3, components, *shape)``."""
    logits, real, imaginary = params.unflatten(0, (3, components)).unbind(0)
    # Evenly spread, kernels add up to a constant but for 2 r^components, and no two of them learn the same.
    radius = (0.5 * _IDENTITY) ** (1 / components)
    turn = 2 * math.pi / components * torch.arange(components, dtype=params.dtype, device=params.device)
    turn = turn.reshape(-1, *[1] * (params.ndim - 1))
    real, imaginary = real + radius * torch.cos(turn), imaginary + radius * torch.sin(turn)
    shrink = _LARGEST * (1 + real.square() + imaginary.square()).rsqrt()
    return torch.stack([torch.softmax(logits, 0), shrink * real, shrink * imaginary])


def _checked(components: int) -> int:
    if components < 2:
        raise ValueError(f"Expected at least 2 components; got components={components}.")
    return int(components)
