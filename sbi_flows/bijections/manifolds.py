"""Spheres, circles, rotations, boxes and lines: points of each, shortest paths, and frames of moves along which fields are written.

A field is ``sum_a u_a E_a`` of numbers u, which a network gives, and fixed fields E of the factor, so that it can never leave it; its
divergence is ``sum_a (derivative of u_a along E_a + u_a div E_a)``. All arrays lead with columns, moves or units; the batch is last.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from sbi_flows._random import rand, randn
from sbi_flows.bijections.quaternions import CROSS, conjugate, from_rate, multiply, to_matrix, to_rate
from sbi_flows.bijections.spline import wrap

LOG_2PI = math.log(2 * math.pi)
UNIT = 1e-3  # how far from one the length of a point of a sphere may be


class Factor(ABC):
    """One manifold of a product.

    Attributes
    ----------
    columns : int
        Numbers that give a point.
    moves : int
        Fields E of the frame.
    seen : int
        Numbers by which a network sees a point: smooth functions of it that tell all points apart.
    entry : str or list
        Plain data from which :func:`factor` makes the same.
    """

    columns: int
    moves: int
    seen: int
    entry: str | list

    @abstractmethod
    def seen_of(self, x: Tensor) -> Tensor:
        """``(columns, n)`` to ``(seen, n)``."""

    @abstractmethod
    def seen_along(self, x: Tensor) -> Tensor:
        """Derivatives of what is seen along each move, ``(seen, moves, n)``."""

    @abstractmethod
    def velocity(self, x: Tensor, u: Tensor) -> Tensor:
        """``sum_a u_a E_a`` of ``u (moves, n)``: ``(columns, n)``."""

    @abstractmethod
    def frame_divergence(self, x: Tensor) -> Tensor:
        """``div E_a``, ``(moves, n)``."""

    @abstractmethod
    def path(self, start: Tensor, end: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The shortest path at times ``t (n,)``: where it is and its velocity, both ``(columns, n)``."""

    @abstractmethod
    def settled(self, x: Tensor) -> Tensor:
        """Points with what rounding and integration have moved them off the manifold taken out."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None, like: Tensor) -> Tensor:
        """Points ``(columns, n)`` of the base density: uniform, or standard normal on a line."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Log of the base density, ``(n,)``."""

    def outside(self, x: Tensor) -> Tensor:
        """Which points ``x (columns, n)`` are not on the manifold because there is an end to it, ``(n,)`` bool."""
        return torch.zeros(x.shape[-1], dtype=torch.bool, device=x.device)

    def off(self, x: Tensor) -> str | None:
        """What is wrong with points that are no points of the manifold, in words."""
        return None


class Line(Factor):
    """Real numbers of order one."""

    columns = moves = seen = 1
    entry = "real"

    def seen_of(self, x):
        return x

    def seen_along(self, x):
        return torch.ones_like(x)[:, None]

    def velocity(self, x, u):
        return u

    def frame_divergence(self, x):
        return torch.zeros_like(x)

    def path(self, start, end, t):
        return torch.lerp(start, end, t), end - start

    def settled(self, x):
        return x

    def sample(self, n, generator, like):
        return randn((1, n), generator, dtype=like.dtype, device=like.device)

    def log_prob(self, x):
        return -0.5 * (x[0].square() + LOG_2PI)


class Circle(Factor):
    """Angles on [-pi, pi)."""

    columns = moves = 1
    seen = 2
    entry = "circular"

    def seen_of(self, x):
        return torch.cat([x.cos(), x.sin()])

    def seen_along(self, x):
        return torch.cat([-x.sin(), x.cos()])[:, None]

    def velocity(self, x, u):
        return u

    def frame_divergence(self, x):
        return torch.zeros_like(x)

    def path(self, start, end, t):
        arc = wrap(end - start)
        return wrap(start + t * arc), arc

    def settled(self, x):
        return wrap(x)

    def sample(self, n, generator, like):
        return math.pi * (2 * rand((1, n), generator, dtype=like.dtype, device=like.device) - 1)

    def log_prob(self, x):
        return 0.0 * x[0] - LOG_2PI


class Sphere(Factor):
    """Unit vectors of ``columns`` numbers; the frame is that of constant vectors projected on the tangent plane."""

    def __init__(self, columns: int):
        if not int(columns) >= 2:
            raise ValueError(f"Expected a sphere of two columns or more, as in ('sphere', 3); got {columns}.")
        self.columns = self.moves = self.seen = int(columns)
        self.entry = ["sphere", self.columns]
        self.log_area = math.log(2) + 0.5 * columns * math.log(math.pi) - math.lgamma(0.5 * columns)

    def seen_of(self, x):
        return x

    def seen_along(self, x):
        return torch.eye(self.columns, dtype=x.dtype, device=x.device)[..., None] - x[:, None] * x[None]

    def velocity(self, x, u):
        return u - x * (x * u).sum(0)

    def frame_divergence(self, x):
        return -(self.columns - 1) * x

    def path(self, start, end, t):
        # By half chords: the cosine alone loses small and nearly opposite angles.
        angle = 2 * torch.atan2((end - start).norm(dim=0), (end + start).norm(dim=0))
        sine = angle.sin()
        short = sine < 1e-4 * angle.clamp(min=1.0)  # meeting points, and opposite ones, whose shortest paths are many
        safe = torch.where(short, 1.0, sine)
        weights = torch.sin((1 - t) * angle) / safe, torch.sin(t * angle) / safe
        slopes = -angle * torch.cos((1 - t) * angle) / safe, angle * torch.cos(t * angle) / safe
        point = torch.where(short, torch.lerp(start, end, t), weights[0] * start + weights[1] * end)
        point = self.settled(point)
        slope = torch.where(short, end - start, slopes[0] * start + slopes[1] * end)
        return point, self.velocity(point, slope)

    def settled(self, x):
        return x / x.norm(dim=0)

    def sample(self, n, generator, like):
        return self.settled(randn((self.columns, n), generator, dtype=like.dtype, device=like.device))

    def log_prob(self, x):
        return 0.0 * x[0] - self.log_area

    def off(self, x):
        length = x.norm(dim=0)
        if bool(((length - 1).abs() <= UNIT).all()):
            return None
        return f"unit vectors of {self.columns} columns; got lengths from {float(length.min()):.4g} to {float(length.max()):.4g}"


class Rotation(Factor):
    """Unit quaternions, q and -q being one rotation; the frame turns about the axes of the body, which keeps volumes."""

    columns, moves, seen = 4, 3, 9
    entry = "rotation"

    def seen_of(self, x):
        return to_matrix(x).flatten(0, 1)

    def seen_along(self, x):
        turned = torch.einsum("ijn,jka->ikan", to_matrix(x), CROSS.to(x))
        return turned.flatten(0, 1)

    def velocity(self, x, u):
        return 0.5 * multiply(x, torch.cat([torch.zeros_like(u[:1]), u]))

    def frame_divergence(self, x):
        return torch.zeros_like(x[:3])

    def path(self, start, end, t):
        rate = to_rate(multiply(conjugate(start), end))
        point = multiply(start, from_rate(t * rate))
        return point, self.velocity(point, rate)

    def settled(self, x):
        return x / x.norm(dim=0)

    def sample(self, n, generator, like):
        return self.settled(randn((4, n), generator, dtype=like.dtype, device=like.device))

    def log_prob(self, x):
        return 0.0 * x[0] - math.log(2 * math.pi**2)

    def off(self, x):
        told = Sphere(4).off(x)
        return None if told is None else told.replace("unit vectors of 4 columns", "unit quaternions (w, x, y, z)")


class Interval(Factor):
    """Numbers in [low, high], with walls: the one move is ``(x - low) (high - x)``, so that nothing flows through an end.

    Straight paths between points inside stay inside, and where two densities are finite at a wall, their velocity falls to zero there as
    this move does: the field that reflection at the walls would make of any other.
    """

    columns = moves = seen = 1

    def __init__(self, low: float, high: float):
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"Expected two finite ends, low < high; got {(low, high)}.")
        self.low, self.high, self.half = float(low), float(high), 0.5 * (float(high) - float(low))
        self.entry = [self.low, self.high]

    def _unit(self, x: Tensor) -> Tensor:
        return (x - self.low) / self.half - 1

    def seen_of(self, x):
        return self._unit(x)

    def _room(self, x: Tensor) -> Tensor:
        # Steps of an integration may end beyond a wall by their error: there nothing moves until they are reflected.
        return (1 - self._unit(x).square()).clamp(min=0)

    def seen_along(self, x):
        return self._room(x)[:, None]

    def velocity(self, x, u):
        return self.half * self._room(x) * u

    def frame_divergence(self, x):
        return -2 * self._unit(x).clamp(-1, 1)

    def path(self, start, end, t):
        return torch.lerp(start, end, t), end - start

    def settled(self, x):
        # Reflected at the walls, as often as it takes.
        turn = torch.remainder(x - self.low, 4 * self.half)
        return self.low + torch.minimum(turn, 4 * self.half - turn)

    def sample(self, n, generator, like):
        return self.low + 2 * self.half * rand((1, n), generator, dtype=like.dtype, device=like.device)

    def log_prob(self, x):
        return 0.0 * x[0] - math.log(2 * self.half)

    def outside(self, x):
        return ((x < self.low) | (x > self.high))[0]


def factor(entry) -> Factor:
    """The manifold of one entry: "real", "circular", "rotation", ("sphere", columns) or (low, high).

    Raises
    ------
    ValueError
        If the entry is none of these.
    """
    if isinstance(entry, Factor):
        return entry
    plain: dict[str, Callable[[], Factor]] = {"real": Line, "circular": Circle, "rotation": Rotation}
    if isinstance(entry, str) and entry in plain:
        return plain[entry]()
    if not isinstance(entry, str) and len(entry) == 2:
        return Sphere(entry[1]) if entry[0] == "sphere" else Interval(*entry)
    raise ValueError(f"Expected 'real', 'circular', 'rotation', ('sphere', columns) or two finite ends (low, high); got {entry!r}.")
