"""What a FlowSampler did and why, as a record that prints itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sbi_flows.results import Reliability

_SHOWN = 4  # parameters that a mode's place is told by
ASCENT = "flows from the prior"  # what their evaluations and seconds are booked for
METHODS = {
    "local": "local kernel alone",
    "mixed": "local kernel mixed with flow proposals",
    "latent": "local kernel in the flow's latent space",
    "stochastic-flow": "local kernel mixed with paths of a stochastic flow",
    "diffusion": "local kernel mixed with paths of a diffusion",
}


@dataclass(frozen=True)
class ModeMasses:
    """Shares of separated modes in the draws.

    Attributes
    ----------
    mass : ndarray (m,)
        Largest first.
    error : ndarray (m,)
        One standard error of each, from the chains' agreement with each other.
    position : ndarray (m, d)
        Mean of the draws in each mode, in the user's parameters; NaN where there is none.
    rhat : float
        Largest R-hat of the modes' indicators: whether chains agree about the masses.
    names : tuple of str
        Of the parameters.
    """

    mass: np.ndarray
    error: np.ndarray
    position: np.ndarray
    rhat: float
    names: tuple[str, ...]

    def places(self) -> list[str]:
        """Where each mode is: ``name = mean`` of up to four parameters, those in which modes differ most against their scatter in all."""
        scale = np.nanstd(self.position, axis=0) / (np.nanmean(np.abs(self.position), axis=0) + 1e-300)
        shown = np.sort(np.argsort(-scale, kind="stable")[:_SHOWN])
        return [", ".join(f"{self.names[j]} = {row[j]:.4g}" for j in shown) for row in self.position]

    def __str__(self) -> str:
        each = zip(self.mass, self.error, self.places(), strict=True)
        return "; ".join(f"{mass:.3f} +- {error:.3f} about {place}" for mass, error, place in each)


@dataclass(frozen=True)
class SamplerReport:
    """What was measured, what was decided, what it cost, and whether to believe the draws.

    Attributes
    ----------
    method : {"local", "mixed", "latent", "stochastic-flow", "diffusion"}
        What drew the chains: the local kernel alone, mixed with flow proposals, or in the flow's latent space.
    local_kernel : str
    reasons : tuple of str
        Why that, in words and numbers.
    n_chains, n_draws : int
    ess_bulk : ndarray (d,)
        Effective sample size of each parameter, all chains together.
    evaluations, gradients : dict of str to int
        Rows at which the density (and its gradient as well) was computed, by purpose: all there were.
    seconds, target_seconds : dict of str to float
        Wall time by purpose, and the part of it that the density itself took.
    flow_acceptance : float
        Share of the flow's proposals that were accepted in the draws that count; NaN where none were made.
    training_steps : int
        Of the flow.
    modes : ModeMasses or None
        Masses of separated modes, where there is more than one.
    reliability : Reliability
    """

    method: str
    local_kernel: str
    reasons: tuple[str, ...]
    n_chains: int
    n_draws: int
    ess_bulk: np.ndarray
    evaluations: Mapping[str, int]
    gradients: Mapping[str, int]
    seconds: Mapping[str, float]
    target_seconds: Mapping[str, float] = field(repr=False)
    flow_acceptance: float
    training_steps: int
    modes: ModeMasses | None
    reliability: Reliability

    @property
    def ess(self) -> float:
        """The smallest of ``ess_bulk``."""
        return float(np.nanmin(self.ess_bulk))

    @property
    def n_evaluations(self) -> int:
        """All evaluations of the density, those with gradient included."""
        return sum(self.evaluations.values())

    @property
    def n_gradients(self) -> int:
        return sum(self.gradients.values())

    def __repr__(self) -> str:
        lines = [f"SamplerReport: {METHODS[self.method]} ({self.local_kernel})   {self.reliability}"]
        lines += [f"    because {reason}" for reason in self.reasons]
        lines.append(f"    {self.n_chains} chains of {self.n_draws} draws, worth {self.ess:.0f} independent ones")
        if not np.isnan(self.flow_acceptance):
            origin = "that followed the posterior from the prior" if ASCENT in self.seconds else "of normals fitted to the draws"
            trained = f"trained for {self.training_steps} steps" if self.training_steps else f"{origin}: no more training needed"
            lines.append(f"    flow proposals accepted: {self.flow_acceptance:.0%} (flow {trained})")
        if self.modes is not None:
            each, agree = len(self.modes.mass), self.modes.rhat
            lines.append(f"    masses of the {each} modes that the draws of {self.local_kernel} stay in: {self.modes} (R-hat {agree:.3f})")
        lines.append(f"    {self.n_evaluations} evaluations of the density, {self.n_gradients} of them with gradient:")
        for purpose, seconds in self.seconds.items():
            count, own = self.evaluations.get(purpose, 0), self.target_seconds.get(purpose, 0.0)
            lines.append(f"        {purpose:<22}{count:>10} evaluations {seconds:>8.2f} s ({own:.2f} s in the density)")
        return "\n".join(lines)
