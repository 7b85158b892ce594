"""Is an energy what it is taken for: of the right shape, with the force that belongs to it and the symmetries that a flow assumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sbi_flows._random import RandomState, randn, torch_generator
from sbi_flows._validation import choose
from sbi_flows.physics.molecules.energy import SYMMETRIES

_RELATIVE = 1e-5  # float32 energies of some hundred kT are rounded to this


def check_symmetries(
    energy: Callable[[Tensor], Tensor],
    x: Tensor,
    particles: tuple[int, int],
    symmetries: Sequence[str] = SYMMETRIES,
    *,
    permuted: Sequence[Sequence[int]] = (),
    random_state: RandomState = 0,
) -> None:
    """``ValueError`` that names the symmetry, unless ``energy`` stays the same under all of ``symmetries``.

    A flow that is the same under a symmetry has no density for an energy that is not: its weights would be wrong by what it cannot
    express, and no diagnostic of the flow alone would tell.

    Parameters
    ----------
    energy : callable
        ``(n, particles * dimensions)`` to ``(n,)``.
    x : Tensor (n, particles * dimensions)
        Typical configurations, of finite energy; a few are enough.
    particles : (int, int)
        Number of particles and of dimensions.
    symmetries : sequence of str
        Of "translations", "rotations", "reflections" and "permutations".
    permuted : sequence of sequence of int
        Groups of particles that are alike; all by default.
    random_state : int, generator or None

    Examples
    --------
    >>> from sbi_flows.physics.molecules import dw4
    >>> check_symmetries(dw4(), torch.randn(3, 8), (4, 2))
    """
    generator = torch_generator(random_state)
    x = x.double()
    before = energy(x)
    _check_shape(before, x)
    place = x.unflatten(1, particles)
    for symmetry in symmetries:
        choose("symmetry", symmetry, SYMMETRIES)
        changed = energy(_MOVES[symmetry](place, permuted or [range(particles[0])], generator).flatten(1))
        off = (changed - before).abs().amax()
        scale = before.abs().amax().clamp(min=1.0)
        if not bool(off <= _RELATIVE * scale):
            raise ValueError(
                f"Expected an energy that is the same under {symmetry}; under one of them it changed by up to {float(off):.3g} kT. A flow "
                f"that assumes this symmetry cannot have its density: leave {symmetry!r} out of the symmetries and use a flow without it, "
                "or remove what breaks it (an external field, a wall, a marked particle)."
            )


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


def _check_shape(value: Tensor, x: Tensor) -> None:
    if tuple(value.shape) != (len(x),):
        raise ValueError(
            f"Expected energies of shape ({len(x)},), one a configuration; got {tuple(value.shape)}. Sum over particles and pairs, "
            "not over rows."
        )


def _translated(place: Tensor, groups, generator: torch.Generator) -> Tensor:
    return place + randn((len(place), 1, place.shape[2]), generator, dtype=place.dtype)


def _rotated(place: Tensor, groups, generator: torch.Generator) -> Tensor:
    turn, upper = torch.linalg.qr(randn((place.shape[2],) * 2, generator, dtype=place.dtype))
    turn = turn * upper.diagonal().sign()
    proper = torch.cat([turn[:, :1] * torch.linalg.det(turn).sign(), turn[:, 1:]], 1)
    return place @ proper


def _reflected(place: Tensor, groups, generator: torch.Generator) -> Tensor:
    return place * torch.tensor([-1.0] + [1.0] * (place.shape[2] - 1), dtype=place.dtype)


def _permuted(place: Tensor, groups, generator: torch.Generator) -> Tensor:
    order = torch.arange(place.shape[1])
    for group in groups:
        members = torch.tensor(list(group))
        # A turn by one: every particle of the group moves, and with it all energies that know one of them.
        order[members] = members.roll(1)
    return place[:, order]


_MOVES = {"translations": _translated, "rotations": _rotated, "reflections": _reflected, "permutations": _permuted}
