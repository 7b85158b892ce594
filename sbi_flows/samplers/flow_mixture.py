"""Frozen flows as proposals that reach further than they were taught."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sbi_flows._random import rand, randn
from sbi_flows.distributions import Distribution, StandardNormal
from sbi_flows.flows import Flow

WIDE, WIDE_SHARE = 1.5, 0.15  # scale of the wider latent normal, and how many draws are its


class WidenedNormal(Distribution):
    """A standard normal of which a share is wider."""

    def sample(self, n, generator=None):
        dtype, device = self._anchor.dtype, self._anchor.device
        wide = rand((n, 1), generator, dtype=dtype, device=device) < WIDE_SHARE
        return torch.where(wide, WIDE, 1.0) * randn((n, self.features), generator, dtype=dtype, device=device)

    def log_prob(self, x):
        radius, d = x.square().sum(-1), x.shape[-1]
        usual = -0.5 * radius + math.log(1 - WIDE_SHARE)
        wide = -0.5 * radius / WIDE**2 - d * math.log(WIDE) + math.log(WIDE_SHARE)
        return torch.logaddexp(usual, wide) - 0.5 * d * math.log(2 * math.pi)


def frozen(flow: Flow) -> Flow:
    """A copy whose draws reach further into its tails, at the price of a seventh of them: what a flow is too thin for lies there."""
    copied = copy.deepcopy(flow).eval()
    if type(copied.base) is StandardNormal:
        copied.base = WidenedNormal(copied.base.features).to(next(copied.parameters()))
    return copied


class FlowMixture:
    """A mixture of flows: where the newest is too thin, an older and wider one is not.

    Parameters
    ----------
    flows : sequence of Flow
        The last of them is the newest.
    older : float
        What all but the newest share; of two neighbours the newer has twice as much.
    """

    def __init__(self, flows: Sequence[Flow], older: float):
        self.flows = list(flows)
        shares = 2.0 ** torch.arange(len(self.flows) - 1, dtype=torch.float64)
        newest = torch.ones(1, dtype=torch.float64)
        self.shares = torch.cat([older * shares / shares.sum(), (1 - older) * newest]) if len(shares) else newest

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws ``(n, d)``, flow by flow; their numbers are drawn too, so that each row has the mixture's density."""
        which = torch.multinomial(self.shares, n, replacement=True, generator=generator).bincount(minlength=len(self.flows))
        rows = [flow.sample(int(k), generator=generator, dtype=torch.float64) for flow, k in zip(self.flows, which, strict=True) if k]
        return torch.cat(rows)

    def log_prob(self, x: Tensor) -> Tensor:
        """``(n,)`` in float64."""
        parts = torch.stack([flow.log_prob(x).double() for flow in self.flows])
        return torch.logsumexp(parts + self.shares.log()[:, None], 0)
