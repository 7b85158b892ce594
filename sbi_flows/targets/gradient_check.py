"""Whether a target's gradient is the derivative of its density."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sbi_flows.targets.base import Target

_STEP = 1e-4  # of the points' spread: halved once, to see how well the difference is known
_LEAST_SPREAD = 1e-4  # of their distance from zero: points may lie all but on one spot
_LINE = 12  # points of the line on which roughness is looked for
_SHARE = 0.5  # of the points at which a column must be wrong: a density with a kink may be so at one


def check_gradient(target: Target, x: Tensor, *, rtol: float = 1e-3) -> None:
    """Compare the gradient with central differences; it costs four evaluations a column and point, and twelve a point.

    Parameters
    ----------
    target : Target
        In its own coordinates: pass ``unconstrained(target)`` with points of the real line to check what kernels see. What is found there
        is told in the user's own parameters, where it can be seen in them.
    x : Tensor (n, d)
        A few points, such as three or ten, where the density is above zero and its gradient is not nearly zero.
    rtol : float
        What a component may differ by, relative to the larger of it and the difference quotient; the quotient's own error, known from a
        second step size, is allowed for besides.

    Raises
    ------
    ValueError
        If there is no gradient, no point has a density, or a column is wrong at half of the points or more; the message names it and says
        by which factor.

    Examples
    --------
    >>> from sbi_flows.targets import from_log_prob, from_numpy
    >>> wrong = from_numpy(lambda x: -(x**2).sum(-1), grad=lambda x: -x)
    >>> check_gradient(from_log_prob(wrong, 1, names=["mass"]), torch.ones(1, 1))
    Traceback (most recent call last):
    ValueError: The gradient of the target is wrong in 'mass': at 1 of 1 points, such as (1,), it is -1 where differences of the \
density give -2 (0.5 times). ...
    """
    x = torch.as_tensor(x).detach().double()
    complaint = _complaint(target, x, rtol)
    if complaint is None:
        return
    if target.user is not target:
        own = _complaint(target.user, target.to_user(x)[0].detach(), rtol)
        complaint = own or f"{complaint} This is seen in the sampler's coordinates, on the real line, and not in your own parameters."
    raise ValueError(complaint)


def _complaint(target: Target, x: Tensor, rtol: float) -> str | None:
    """What is wrong with the gradient at ``x (n, d)``, in the target's own coordinates."""
    value, gradient = target.log_prob_and_grad(x)
    usable = torch.isfinite(value)
    if not bool(usable.any()):
        raise ValueError(f"Expected points where the target has a density; it has none at the {len(x)} given. Pass draws of the prior.")
    x, gradient = x[usable], gradient[usable]
    slope, error = _differences(target, x)
    # Where one column dwarfs another, cancellation in the density leaves the small one unknown.
    scale = torch.maximum(gradient.abs(), slope.abs()) + 1e-7 * slope.abs().nan_to_num().amax(dim=1, keepdim=True)
    known = torch.isfinite(slope)
    wrong = known & ~((gradient - slope).abs() <= rtol * scale + 10 * error)
    share = wrong.sum(0) / known.sum(0).clamp(min=1)
    bad = [j for j in range(target.features) if share[j] >= _SHARE]
    if not bad:
        return None
    j = bad[0]
    row = int(wrong[:, j].nonzero()[0])
    got, expected = float(gradient[row, j]), float(slope[row, j])
    factor = f" ({got / expected:.3g} times)" if expected else ""
    point = ", ".join(f"{v:.4g}" for v in x[row].tolist()[:6]) + ("," if target.features == 1 else ", ..." if target.features > 6 else "")
    columns = ", ".join(repr(target.names[j]) for j in bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    return (
        f"The gradient of the target is wrong in {columns}: at {int(wrong[:, j].sum())} of {int(known[:, j].sum())} points, such as "
        f"({point}), it is {got:.6g} where differences of the density give {expected:.6g}{factor}. Correct grad, or write the density in "
        "torch and leave it out."
    )


def _differences(target: Target, x: Tensor) -> tuple[Tensor, Tensor]:
    """Central difference quotients ``(n, d)`` and how well they are known."""
    spread = torch.maximum(x.std(dim=0, correction=0), _LEAST_SPREAD * x.abs().amax(dim=0))
    if len(x) == 1:
        spread = x[0].abs()
    step = (_STEP * torch.where(spread > 0, spread, 1.0)).expand_as(x)
    quotients = []
    for size in (step, step / 2):
        shifts = torch.diag_embed(size)
        forward, backward = (target.log_prob((x[:, None] + sign * shifts).flatten(0, 1)).detach() for sign in (1, -1))
        quotients.append((forward - backward).reshape(x.shape) / (2 * size))
    noise = _noise(target, x, step)
    return quotients[1], (quotients[1] - quotients[0]).abs() + noise[:, None] / step


def _noise(target: Target, x: Tensor, step: Tensor) -> Tensor:
    """How rough the density is on the scale of the differences ``(n,)``: its fourth differences along a line.

    Curvature, which second differences would take for roughness, has none: in a density of very different scales it would hide the error
    of every flatter column. Noise is as large in both once the root of the squared coefficients' ratio, 70 to 6, is taken out.
    """
    along = step[:, None] * torch.arange(_LINE, dtype=x.dtype, device=x.device)[:, None]
    values = target.log_prob((x[:, None] + along).flatten(0, 1)).detach().reshape(len(x), _LINE)
    return values.diff(n=4, dim=1).abs().nan_to_num(0.0, 0.0, 0.0).amax(dim=1) * math.sqrt(6 / 70)
