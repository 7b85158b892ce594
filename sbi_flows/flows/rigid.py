"""Flows of rigid bodies: :func:`rigid_flow`, and :func:`free_rigid_flow` for quaternions of any length."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sbi_flows.bijections.rigid import FreeRigid, RigidContinuous
from sbi_flows.bijections.support import parse_support
from sbi_flows.distributions.rigid import FreeRigidNormal, RigidNormal
from sbi_flows.flows.base import Flow


def rigid_flow(
    bodies: int = 1,
    *,
    positions: bool = True,
    length: float = 1.0,
    hidden: Sequence[int] = (128, 128),
    steps: int = 4,
    tolerance: float | None = 1e-2,
    generator: torch.Generator | None = None,
) -> Flow:
    """A continuous flow of rows ``(x, y, z, qw, qx, qy, qz)`` a body whose density is the same for a quaternion and its negative.

    Train it by :func:`sbi_flows.losses.rigid_flow_matching` or by likelihood. Parameters are those of
    :class:`sbi_flows.bijections.rigid.RigidContinuous`, which also says with respect to what its densities are.

    Examples
    --------
    >>> flow = rigid_flow(2)
    >>> flow.log_prob(flow.sample(5)).shape
    torch.Size([5])
    """
    bijection = RigidContinuous(
        bodies, positions=positions, length=length, hidden=hidden, steps=steps, tolerance=tolerance, generator=generator
    )
    spec = {
        "architecture": "rigid_flow",
        "bodies": int(bodies),
        "positions": bool(positions),
        "length": float(length),
        "hidden": [int(width) for width in hidden],
        "steps": int(steps),
        "tolerance": tolerance,
    }
    return Flow(parse_support(None, bijection.features), bijection, RigidNormal(bodies, positions), scaling="none", spec=spec)


def free_rigid_flow(
    bodies: int = 1,
    *,
    length: float = 1.0,
    hidden: Sequence[int] = (128, 128),
    steps: int = 4,
    tolerance: float | None = 1e-2,
    generator: torch.Generator | None = None,
) -> Flow:
    """:func:`rigid_flow` of rows whose quaternions have any length and mean a rotation by their direction; densities are per volume.

    Lengths are independent of all else, as :class:`sbi_flows.distributions.rigid.FreeRigidNormal` has them. So samplers of real numbers
    can be used together with the flow.

    Examples
    --------
    >>> flow = free_rigid_flow(2)
    >>> flow.log_prob(flow.sample(5)).shape
    torch.Size([5])
    """
    inner = RigidContinuous(bodies, length=length, hidden=hidden, steps=steps, tolerance=tolerance, generator=generator)
    spec = {
        "architecture": "free_rigid_flow",
        "bodies": int(bodies),
        "length": float(length),
        "hidden": [int(width) for width in hidden],
        "steps": int(steps),
        "tolerance": tolerance,
    }
    return Flow(parse_support(None, inner.features), FreeRigid(inner), FreeRigidNormal(bodies), scaling="none", spec=spec)
