"""How much mass a flow of one column has below and above a value: what is known of a value that was not seen itself."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sbi_flows.distributions import StandardNormal
from sbi_flows.flows.base import Flow


def log_prob_and_tails(flow: Flow, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The log-density of a flow of one column, and the log of its mass below and above ``x (n, 1)``; each ``(n,)``, differentiable.

    A flow of one column is a rising function of it, so the mass below x is that of the base below the image of x: no integral is
    done, and neither tail loses digits to the other.

    Parameters
    ----------
    flow : Flow
        One for which :func:`check_tails` has nothing to say.
    x : Tensor (n, 1)
    context : Tensor (n, c) or (1, c), optional

    Examples
    --------
    >>> from sbi_flows.flows import nsf
    >>> _, below, above = log_prob_and_tails(nsf(1).double(), torch.tensor([[-2.0], [3.0]], dtype=torch.float64))
    >>> bool(torch.allclose(below.exp() + above.exp(), torch.ones(2, dtype=torch.float64)))
    True
    """
    outside, inside = flow.support.replace_outside(x)
    z, log_det = flow.to_base(inside, context)
    log_prob = torch.where(outside, -math.inf, flow.base.log_prob(z) + log_det)
    low, high = x[:, 0] <= flow.support.support[0].low, x[:, 0] >= flow.support.support[0].high
    below, above = _log_normal_cdf(z[:, 0]), _log_normal_cdf(-z[:, 0])
    below = torch.where(low, -math.inf, torch.where(high, 0.0, below))
    above = torch.where(high, -math.inf, torch.where(low, 0.0, above))
    return log_prob.to(x.dtype), below.to(x.dtype), above.to(x.dtype)


def _log_normal_cdf(z: Tensor) -> Tensor:
    """Not ``torch.special.log_ndtr``, which vmap (of ensembles) does not know."""
    left, right = z.clamp(max=0.0) / -math.sqrt(2), z.clamp(min=0.0) / math.sqrt(2)
    return torch.where(z < 0, torch.log(torch.special.erfcx(left) / 2) - left.square(), torch.log1p(-torch.erfc(right) / 2))


@torch.no_grad()
def check_tails(flow: Any) -> None:
    """``ValueError`` for a density whose mass beyond a value is not that of a normal base: say so before anything is computed from it."""
    if not isinstance(flow, Flow):
        raise ValueError(f"Expected a flow over real columns, as only there mass lies below or above a value; got {type(flow).__name__}.")
    if flow.features != 1:
        raise ValueError(f"Expected a flow of one column, as only there mass lies below or above a value; got {flow.features} columns.")
    if flow.support.support[0].kind == "circular":
        raise ValueError("Expected a column with a below and an above; got an angle. Say support=(low, high) if it does not wrap round.")
    if not isinstance(flow.base, StandardNormal):
        raise ValueError(
            f"Expected a flow over a normal base, whose tails are known; got {type(flow.base).__name__}. Use base='normal'; for heavy "
            "tails say support='heavy'."
        )
    where = flow.support.inverse_and_log_det(torch.tensor([[-1.0], [1.0]], dtype=torch.float64, device=flow._anchor.device))[0]
    image = flow.to_base(where, where.new_zeros(1, flow.context_features) if flow.context_features else None)[0][:, 0]
    if not image[1] > image[0]:
        raise ValueError(
            f"Expected a flow that is a rising function of its column; this one maps {where[0, 0]:g} to {image[0]:g} and {where[1, 0]:g} "
            f"to {image[1]:g}. Leave out the layer that turns the column round."
        )
