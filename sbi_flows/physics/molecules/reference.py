"""Reference samples of an energy by long Hamiltonian Monte Carlo of many chains, judged by the virial theorem; made once and cached."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sbi_flows._files import load_tensors, save_tensors
from sbi_flows._random import RandomState, rand, randn, torch_generator
from sbi_flows._validation import positive
from sbi_flows.physics.molecules.energy import Energy
from sbi_flows.results import Reliability
from sbi_flows.weights import autocorrelation_time

_KIND, _VERSION = "molecular reference", 1
_ACCEPTANCE = 0.8
_SIGMAS = 4.0  # of the virial before it counts as wrong: a false alarm in 16 000 runs
_MOST_APART = 3.0  # chains of few draws underestimate their own autocorrelation by up to a factor of two
_NUMBERS = ("chains", "energy", "energy_err", "virial", "virial_err", "acceptance", "step_size", "ess", "n_gradients", "seconds")
_LEAST_ESS = 400  # of the energy: its mean is then known to a twentieth of its spread


@dataclass(frozen=True)
class Reference:
    """Draws of ``exp(-U)`` by our own chains.

    Attributes
    ----------
    samples : Tensor (n, features)
        float64, draw by draw, all chains of a draw together; of zero mean where the energy has no place.
    chains : int
    energy, energy_err : float
        Mean of ``U / kT`` and its standard error.
    virial, virial_err : float or None
        Mean of ``x . dU/dx / kT`` over the degrees of freedom, which must be one, and its standard error. None on a torus, where
        coordinates have no origin.
    acceptance, step_size : float
    ess : float
        Effective size of the mean energy.
    n_gradients : int
        Forces of one configuration, warm-up included.
    seconds : float
    reliability : Reliability
    """

    samples: Tensor = field(repr=False)
    chains: int
    energy: float
    energy_err: float
    virial: float | None
    virial_err: float | None
    acceptance: float
    step_size: float
    ess: float
    n_gradients: int
    seconds: float
    reliability: Reliability


def reference_samples(
    energy: Energy,
    n: int,
    *,
    chains: int = 500,
    start: Tensor | None = None,
    n_warmup: int = 500,
    n_leapfrog: int = 20,
    thin: int = 5,
    random_state: RandomState = None,
) -> Reference:
    """``n`` draws of ``exp(-U)`` by Hamiltonian Monte Carlo, all chains in one batch.

    Parameters
    ----------
    energy : Energy
    n : int
        Draws kept, rounded up to whole draws of all chains.
    chains : int
    start : Tensor (chains, features), optional
        Where chains start; ``energy.start`` by default.
    n_warmup : int
        Trajectories before anything is kept; the step size is tuned in the first four fifths of them.
    n_leapfrog : int
        Mean number of steps of a trajectory; the number is drawn anew each time, within half of it either way.
    thin : int
        Trajectories from one kept draw to the next.
    random_state : int, generator or None

    Raises
    ------
    ValueError
        If the energy is not finite at the start: atoms overlap there.

    Examples
    --------
    >>> from sbi_flows.physics.molecules import double_well
    >>> reference_samples(double_well(), 200, chains=50, n_warmup=50, random_state=0).samples.shape
    torch.Size([200, 2])

    References
    ----------
    Duane, Kennedy, Pendleton & Roweth 1987, Physics Letters B 195, 216; Clausius 1870 (the
    virial: the mean of ``x dU/dx`` is kT for every coordinate).
    """
    for name, value in (("n", n), ("chains", chains), ("n_leapfrog", n_leapfrog), ("thin", thin)):
        positive(name, value, integer=True)
    began, generator = time.perf_counter(), torch_generator(random_state)
    x = (energy.start(chains, generator) if start is None else start).double()
    walk = _Walk(energy, x, n_leapfrog, generator)
    for i in range(n_warmup):
        walk.step()
        if i < 0.8 * n_warmup:
            walk.tune(i)
    walk.accepted.clear()
    draws, energies, virials = [], [], []
    for _ in range(math.ceil(n / len(x))):
        for _ in range(thin):
            walk.step()
        draws.append(walk.x.clone())
        energies.append(walk.energy.clone())
        virials.append(-(walk.x * walk.force).sum(1))
    return judged(
        energy, draws, energies, virials,
        acceptance=float(np.mean(walk.accepted)), step_size=walk.step_size, n_gradients=walk.n_gradients,
        seconds=time.perf_counter() - began,
    )  # fmt: skip


class _Walk:
    """The state of all chains, moved in place."""

    def __init__(self, energy: Energy, x: Tensor, n_leapfrog: int, generator: torch.Generator):
        self.potential, self.generator, self.n_leapfrog = energy, generator, n_leapfrog
        self.x = self._without_place(x)
        self.energy, self.force = energy.energy_and_force(self.x)
        self._check_start()
        self.step_size = 0.1 / max(1.0, float(self.force.square().mean().sqrt()))
        self.accepted: list[float] = []
        self.n_gradients = len(x)

    def step(self) -> None:
        """One trajectory of every chain."""
        n_steps = max(1, round(self.n_leapfrog * (0.5 + float(rand((), self.generator)))))
        momentum = self._without_place(randn(self.x.shape, self.generator, dtype=torch.float64))
        x, force, kinetic = self.x, self.force, 0.5 * momentum.square().sum(1)
        for _ in range(n_steps):
            momentum = momentum + 0.5 * self.step_size * force
            x = self.potential.wrapped(x + self.step_size * momentum)
            new_energy, force = self.potential.energy_and_force(x)
            momentum = momentum + 0.5 * self.step_size * force
        change = kinetic + self.energy - new_energy - 0.5 * momentum.square().sum(1)
        # An exploded trajectory gives NaN, which is no probability to accept.
        probability = change.nan_to_num(-torch.inf, -torch.inf, -torch.inf).clamp(max=0).exp()
        accept = rand((len(x),), self.generator, dtype=torch.float64) < probability
        self.x = torch.where(accept[:, None], x, self.x)
        self.energy = torch.where(accept, new_energy, self.energy)
        self.force = torch.where(accept[:, None], force, self.force)
        self.accepted.append(float(probability.mean()))
        self.n_gradients += n_steps * len(x)

    def tune(self, i: int) -> None:
        self.step_size *= math.exp((self.accepted[-1] - _ACCEPTANCE) / math.sqrt(1 + i / 10))

    def _without_place(self, x: Tensor) -> Tensor:
        if "translations" not in self.potential.symmetries or self.potential.particles is None:
            return x
        place = x.unflatten(1, self.potential.particles)
        return (place - place.mean(1, keepdim=True)).flatten(1)

    def _check_start(self) -> None:
        bad = ~(torch.isfinite(self.energy) & torch.isfinite(self.force).all(1))
        if bad.any():
            raise ValueError(
                f"Expected finite energies and forces at the start; those of {int(bad.sum())} of {len(bad)} configurations are not: atoms "
                f"overlap there. Place them apart, on a lattice for instance, or minimise first."
            )


def judged(
    energy: Energy,
    draws: list[Tensor],
    energies: list[Tensor],
    virials: list[Tensor],
    *,
    acceptance: float,
    step_size: float,
    n_gradients: int,
    seconds: float,
) -> Reference:
    """What draws of chains are worth: each list has one entry a draw, with a row a chain."""
    by_chain = torch.stack(energies, 1).numpy()
    time_of = autocorrelation_time(by_chain)
    ess = by_chain.size / time_of
    mean, error = float(by_chain.mean()), float(by_chain.std() / math.sqrt(ess))
    virial = virial_err = None
    reasons = []
    if not energy.periodic:
        series = torch.stack(virials, 1).numpy() / energy.degrees_of_freedom
        virial = float(series.mean())
        virial_err = float(series.std() / math.sqrt(series.size / autocorrelation_time(series)))
        if abs(virial - 1) > _SIGMAS * virial_err:
            reasons.append(
                f"the mean virial is {virial:.4f} +- {virial_err:.4f} times the degrees of freedom and must be 1: the chains are not in "
                "equilibrium, or energy and force disagree; warm up longer and check the force"
            )
    drift = _drift(by_chain)
    if abs(drift) > _SIGMAS:
        reasons.append(
            f"the mean energies of the first and the second half of the draws differ by {drift:.1f} standard errors: warm up longer"
        )
    apart = _disagreement(by_chain)
    if apart > _MOST_APART:
        reasons.append(
            f"the chains' mean energies differ {apart:.1f} times more than their length explains: they sit in different modes, "
            "whose shares are those of the start; use more warm-up, or parallel tempering"
        )
    if ess < _LEAST_ESS:
        reasons.append(f"the mean energy has an effective size of {ess:.0f} draws only: run longer")
    return Reference(
        torch.cat(draws), len(draws[0]), mean, error, virial, virial_err, acceptance, step_size, ess, n_gradients, seconds,
        Reliability.from_reasons(reasons),
    )


def _drift(series: np.ndarray) -> float:
    """Second half minus first half of the draws ``(chain, draw)``, in standard errors of chain means, which are independent."""
    half = series.shape[1] // 2
    if half < 1:
        return 0.0
    change = series[:, -half:].mean(axis=1) - series[:, :half].mean(axis=1)
    return float(change.mean() / max(change.std(ddof=1) / math.sqrt(len(change)), 1e-300)) if len(change) > 1 else 0.0


def _disagreement(series: np.ndarray) -> float:
    """Variance of the means of chains ``(chain, draw)`` over what the autocorrelation within chains makes of it."""
    chains, n = series.shape
    if chains < 20 or n < 10:
        return 0.0
    means = series.mean(axis=1)
    within = series - means[:, None]
    return float(means.var(ddof=1) / (within.var() * autocorrelation_time(within) / n))


def save_reference(path: str | os.PathLike, reference: Reference) -> None:
    """Write to one safetensors file."""
    header = {name: getattr(reference, name) for name in _NUMBERS}
    header["reasons"] = list(reference.reliability.reasons)
    save_tensors(path, {"samples": reference.samples}, header, kind=_KIND, version=_VERSION)


def load_reference(path: str | os.PathLike) -> Reference:
    """What :func:`save_reference` wrote."""
    tensors, header = load_tensors(path, kind=_KIND, version=_VERSION)
    numbers = {name: header[name] for name in _NUMBERS}
    return Reference(samples=tensors["samples"], **numbers, reliability=Reliability.from_reasons(header["reasons"]))


