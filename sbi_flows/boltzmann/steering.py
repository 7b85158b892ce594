"""A flow at another temperature: the base spread by the square root of their ratio about where its parts are."""

from __future__ import annotations

import copy
import math

import torch

from sbi_flows.distributions import Columns, Distribution, NormalMixture, StandardNormal
from sbi_flows.flows import Flow


def steered(flow: Flow, ratio: float) -> Flow:
    """A copy of ``flow`` whose base is ``ratio`` times as hot.

    Where the flow preserves volume and its base is normal, ``q^(1 / ratio)`` is exactly that: then a flow that fits one temperature fits
    all. Where it does not, importance weights correct what is left.

    References
    ----------
    Dibak, Klein, Kraemer & Noe 2022, "Temperature steerable flows and Boltzmann generators", arXiv:2108.01590.
    """
    copied = copy.deepcopy(flow)
    copied.base = _spread(copied.base, 0.5 * math.log(ratio))
    if copied.spec.get("base") == "normal":
        copied.spec = {**copied.spec, "base": {"name": "mixture", "components": 1}}  # what a file must build again
    return copied.requires_grad_(False).eval()


@torch.no_grad()
def _spread(base: Distribution, log_scale: float) -> Distribution:
    if isinstance(base, Columns):
        return Columns([_spread(part, log_scale) for part in base.parts], base.columns)
    if isinstance(base, StandardNormal):
        wide = NormalMixture(base.features, 1, generator=torch.Generator()).to(base._anchor)
        wide.means.zero_()
        wide.log_scales.fill_(log_scale)
        return wide
    if isinstance(base, NormalMixture):
        base.log_scales.add_(log_scale)
    return base
