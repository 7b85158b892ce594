"""Is an energy what it is taken for: with the force that belongs to it, and the symmetries that a flow assumes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sbi_flows._random import randn, torch_generator
from sbi_flows.boltzmann.symmetries import check_symmetries

__all__ = ["check_force", "check_symmetries"]


def check_force(energy: Callable[[Tensor], Tensor], force: Callable[[Tensor], Tensor], x: Tensor, *, step: float = 1e-5) -> None:
    """``ValueError`` unless ``force(x)`` has the shape of ``x (n, d)`` and is minus the slope of ``energy`` there.

    Compared along one random direction a row, with differences of step ``step``.
    """
    x = x.double()
    value = force(x)
    if tuple(value.shape) != tuple(x.shape):
        raise ValueError(
            f"Expected forces of the shape of the configurations, {tuple(x.shape)}; got {tuple(value.shape)}. Flatten particles and "
            "dimensions: force.reshape(len(x), -1)."
        )
    direction = randn(x.shape, torch_generator(0), dtype=torch.float64)
    slope = (energy(x + step * direction) - energy(x - step * direction)) / (2 * step)
    along = -(value * direction).sum(1)
    off = (along - slope).abs() / (1 + slope.abs())
    if not bool((off < 1e-3).all()):
        i = int(off.nan_to_num(torch.inf).argmax())
        reversed_ = bool((along + slope).abs()[i] < 1e-3 * (1 + slope.abs()[i]))
        sign = " It has the other sign: a force is minus the gradient." if reversed_ else ""
        raise ValueError(
            f"Expected the force to be minus the gradient of the energy; along a random direction the energy of row {i} changes by "
            f"{float(slope[i]):.6g} and the force says {float(along[i]):.6g}.{sign}"
        )
