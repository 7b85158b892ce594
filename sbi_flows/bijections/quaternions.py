"""Rotations as unit quaternions ``(w, x, y, z)``; q and -q are the same rotation."""

from __future__ import annotations

import torch
from torch import Tensor


def multiply(p: Tensor, q: Tensor) -> Tensor:
    """``p q`` of ``(4, ...)``: the rotation q, then p."""
    a, b, c, d = p
    w, x, y, z = q
    return torch.stack(
        [a * w - b * x - c * y - d * z, a * x + b * w + c * z - d * y, a * y - b * z + c * w + d * x, a * z + b * y - c * x + d * w]
    )


def conjugate(q: Tensor) -> Tensor:
    """The inverse rotation of ``(4, ...)``."""
    return torch.cat([q[:1], -q[1:]])


def to_matrix(q: Tensor) -> Tensor:
    """Rotation matrix ``(3, 3, ...)`` of ``(4, ...)``; of any length but zero, the length divided out.

    Examples
    --------
    >>> to_matrix(torch.tensor([0.0, 0.0, 0.0, 1.0])).diagonal()
    tensor([-1., -1.,  1.])
    """
    w, x, y, z = q * (2 / q.square().sum(0)).sqrt()
    rows = [
        [1 - y * y - z * z, x * y - w * z, x * z + w * y],
        [x * y + w * z, 1 - x * x - z * z, y * z - w * x],
        [x * z - w * y, y * z + w * x, 1 - x * x - y * y],
    ]
    return torch.stack([torch.stack(row) for row in rows])


def from_rate(rate: Tensor) -> Tensor:
    """The rotation ``(4, ...)`` after unit time at the angular velocity ``rate (3, ...)``."""
    angle = rate.square().sum(0, keepdim=True).clamp(min=torch.finfo(rate.dtype).tiny).sqrt()
    return torch.cat([torch.cos(0.5 * angle), torch.sin(0.5 * angle) / angle * rate])


def to_rate(q: Tensor) -> Tensor:
    """The angular velocity ``(3, ...)`` that makes the rotation ``q (4, ...)`` in unit time the shorter way round, at most pi."""
    q = torch.where(q[:1] < 0, -q, q)
    sine = q[1:].square().sum(0, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny).sqrt()
    return 2 * torch.atan2(sine, q[:1]) / sine * q[1:]


# The cross products with the three axes: (3, 3, axis).
CROSS = torch.tensor(
    [
        [[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]],
        [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 0.0]],
        [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
    ]
)
