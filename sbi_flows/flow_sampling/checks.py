"""What can be wrong with a target, found out before anything is run."""

from __future__ import annotations

import torch
from torch import Tensor

from sbi_flows.targets import Target


def check_values(target: Target, points: Tensor) -> list[str]:
    """Evaluate at points inside the support; notes about holes.

    Raises
    ------
    ValueError
        If the density is +inf or NaN everywhere, or a function raises: then with the row at which it does.
    """
    try:
        values = target.log_prob(points)
    except (ValueError, TypeError):
        raise  # messages of our own about shapes and types say what to do
    except Exception as error:
        row = _first_that_raises(target, points)
        raise ValueError(
            f"The density raised {type(error).__name__}: {error}, first at {_place(target, points[row])}. Return -inf where the model has "
            "no value."
        ) from error
    n = len(points)
    n_nan, n_inf = int(torch.isnan(values).sum()), int((values == torch.inf).sum())
    if n_inf:
        at = _place(target, points[values == torch.inf][0])
        raise ValueError(f"The density is +inf at {n_inf} of {n} points, first at {at}: a density there is infinite or overflows.")
    if n_nan == n:
        raise ValueError(f"The density is NaN at all of {n} points, e.g. at {_place(target, points[0])}: look at it there.")
    return [f"the density was NaN at {n_nan} of {n} points, which counted as zero density"] if n_nan else []


def has_gradient(target: Target, point: Tensor) -> bool:
    """Whether autograd sees through the density at ``point (1, d)``."""
    x = point.detach().clone().requires_grad_()
    with torch.enable_grad():
        try:
            value = target.log_prob(x)
            if not value.requires_grad:
                return False
            torch.autograd.grad(value.sum(), x)
        except (ValueError, RuntimeError):
            return False
    return True


def _first_that_raises(target: Target, points: Tensor) -> int:
    for row in range(len(points)):
        try:
            target.log_prob(points[row : row + 1])
        except Exception:  # noqa: BLE001  the question is only whether it raises
            return row
    return 0


def _place(target: Target, point: Tensor) -> str:
    shown = [f"{name}={float(value):.4g}" for name, value in zip(target.names[:4], point, strict=False)]
    return ", ".join(shown) + (", ..." if target.features > 4 else "")
