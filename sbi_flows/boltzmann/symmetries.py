"""Which symmetries an energy has: named where a flow assumes one that it has not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sbi_flows._random import RandomState, randn, torch_generator
from sbi_flows._validation import choose
from sbi_flows.boltzmann.coordinates import Coordinates, MeanFreeCoordinates, MoleculeCoordinates, RigidCoordinates
from sbi_flows.boltzmann.target import BoltzmannTarget
from sbi_flows.flows import Flow, free_rigid_flow, pair_flow, particle_flow

# What an energy of particles may not depend on.
SYMMETRIES = ("translations", "rotations", "reflections", "permutations")
_FEW = 6  # particles, for which a density that sees pairs and triangles costs no more than one that does not
_CHECKED = 8  # configurations at which a generator looks
# Of integration: weights that are off by a hundredth at the few rows that need more steps change no estimate.
_STEPS, _TOLERANCE = 4, 0.03
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


def assumed(coordinates: Coordinates | None, flow: Flow | None) -> tuple[tuple[int, int], tuple[str, ...]] | None:
    """Particles and dimensions, and the symmetries that coordinates and a flow take for granted; None for none."""
    if isinstance(coordinates, MoleculeCoordinates):
        return (coordinates.whole // 3, 3), ("translations", "rotations")
    if not isinstance(coordinates, MeanFreeCoordinates):
        return None
    equivariant = flow is not None and flow.spec.get("architecture") in ("pair_flow", "particle_flow")
    return (coordinates.particles, coordinates.dimensions), SYMMETRIES if equivariant else ("translations",)


def suited_flow(flow: Flow | None, method: str, target: BoltzmannTarget, x: Tensor, generator: torch.Generator) -> Flow | None:
    """The user's flow, or that of alike particles where the energy says that it is one of such; None for the default.

    Raises
    ------
    ValueError
        If the flow has other columns than the target, or the energy at ``x (n, features)`` lacks a symmetry that is assumed.
    """
    coordinates = target.coordinates
    if flow is None and method in ("auto", "matching") and isinstance(coordinates, MeanFreeCoordinates) and has_all(target.energy):
        alike = pair_flow if coordinates.particles <= _FEW else particle_flow
        flow = alike(coordinates.particles, coordinates.dimensions, steps=_STEPS, tolerance=_TOLERANCE, generator=generator)
    if isinstance(coordinates, RigidCoordinates):
        flow = _of_bodies(flow, method, target, coordinates, x, generator)
    if flow is not None and (flow.features != target.features or flow.context_features):
        raise ValueError(
            f"Expected a flow of {target.features} features without context; got one of {flow.features} with {flow.context_features} "
            "context features."
        )
    told = assumed(coordinates, flow)
    if told is not None:
        some = target.configurations(x[:: max(1, len(x) // _CHECKED)][:_CHECKED])[0]
        check_symmetries(target.reduced_energy, some, *told)
    return flow


def _of_bodies(
    flow: Flow | None, method: str, target: BoltzmannTarget, coordinates: RigidCoordinates, x: Tensor, generator: torch.Generator
) -> Flow:
    """The user's flow of rigid bodies or the default one, as long as positions spread."""
    if method not in ("auto", "matching") or (flow is not None and flow.spec.get("architecture") != "free_rigid_flow"):
        raise ValueError(
            "Expected rigid bodies to be fitted by method='matching' and a flow of rotations, sbi_flows.flows.free_rigid_flow(bodies): no "
            f"other knows that q and -q are one rotation; got method={method!r}"
            + ("" if flow is None else f" and a flow of architecture {flow.spec.get('architecture')!r}")
            + ". Leave both out, or pass coordinates of your own."
        )
    some = target.configurations(x[:: max(1, len(x) // _CHECKED)][:_CHECKED])[0]
    turned = some * torch.tensor([1.0, 1, 1, -1, -1, -1, -1], dtype=some.dtype).repeat(coordinates.bodies)
    before = target.reduced_energy(some)
    off = (target.reduced_energy(turned) - before).abs().amax()
    if not bool(off <= _RELATIVE * before.abs().amax().clamp(min=1.0)):
        raise ValueError(
            f"Expected an energy that is the same for q and -q, which are one rotation; it changed by up to {float(off):.3g} kT. "
            "Compute it from rotation matrices, or from the places of the sites."
        )
    spread = float(x.unflatten(1, (coordinates.bodies, 7))[..., :3].square().mean().sqrt())
    return flow or free_rigid_flow(coordinates.bodies, length=max(spread, 1e-12), generator=generator)


def has_all(energy: Any) -> bool:
    """Whether an energy says of itself that its particles are all alike and know no place, direction or hand."""
    return set(SYMMETRIES) <= set(getattr(energy, "symmetries", ())) and not getattr(energy, "permuted", ())
