"""What can be wrong with a target, found out before anything is run."""

from __future__ import annotations

import torch
from torch import Tensor

from sbi_flows.targets import Target
from sbi_flows.targets.evaluation import HAS_NO_GRADIENT


def check_values(target: Target, points: Tensor) -> list[str]:
    """Evaluate at points inside the support; notes about holes.

    Raises
    ------
    ValueError
        If the density is +inf or NaN everywhere, or a torch function raises: then with the row at which it does.
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
    no_value = torch.isnan(values) | (values == torch.inf)
    if bool(no_value.all()):
        at = _place(target, points[0])
        raise ValueError(f"The density is NaN or +inf at all of {len(points)} points, e.g. at {at}: look at it there.")
    if not bool(no_value.any()):
        return []
    return [
        f"the density was NaN or +inf at {int(no_value.sum())} of {len(points)} points that were looked at first, e.g. at "
        f"{_place(target, points[no_value][0])}, which counted as zero density"
    ]


def has_gradient(target: Target, point: Tensor) -> bool:
    """Whether autograd sees through the density at ``point (1, d)``."""
    x = point.detach().clone().requires_grad_()
    with torch.enable_grad():
        try:
            value = target.log_prob(x)
            if not value.requires_grad:
                return False
            torch.autograd.grad(value.sum(), x)
        except RuntimeError:
            return False
        except ValueError as error:
            # A gradient that was given, but is of the wrong shape or raises everywhere, is an error and not the lack of one.
            if HAS_NO_GRADIENT not in str(error):
                raise
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
