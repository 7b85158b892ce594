"""What an importance sample missed, as chains find out that came another way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from sbi_flows.flows import Flow
from sbi_flows.samplers.pool import Part, ess, log_mean
from sbi_flows.samplers.random_walk import RandomWalk
from sbi_flows.samplers.tempered_path import TemperedPath, systematic
from sbi_flows.targets import pulled_back

_ITERATIONS = 50
_MOVES = 2  # latent steps of each particle at each power


class Missed(NamedTuple):
    """ln Z by a bridge between draws and chains, less ln Z by importance weights.

    Attributes
    ----------
    log_ratio, error : float
        The latter is that of both estimates.
    """

    log_ratio: float
    error: float

    @property
    def real(self) -> bool:
        """Whether it is more than noise (three errors; false alarms 3e-3 where chains have mixed) and matters (.02)."""
        return not abs(self.log_ratio) <= max(3 * self.error, 0.02)


def missed_mass(draws: Tensor, chains: Tensor) -> Missed:
    """Compare ln(target / proposal) of draws of the proposal ``(n,)`` with that of chains at the target ``(chains, steps)``.

    Where the proposal is too thin for any draw, importance weights know of no mass and of no error. Chains walk into such places if these
    touch what was drawn; the bridge then gives the mass of what both see, divided by the share of the time that chains spend there.

    References
    ----------
    Meng & Wong 1996, "Simulating ratios of normalizing constants via a simple identity", Statistica Sinica 6.
    """
    start = log_z = log_mean(draws)
    for _ in range(_ITERATIONS):
        seen = torch.sigmoid(draws - log_z)  # p / (p + q)
        spent = torch.sigmoid(log_z - chains)  # q / (p + q)
        log_z = log_z + math.log(float(seen.mean())) - math.log(max(float(spent.mean()), 1e-300))
    # p / (p + q) over the draws is what q / (p + q) is over the chains when log_z is right.
    weights = torch.softmax(draws, 0)
    parts = [
        float(seen.std() / seen.mean()) / math.sqrt(len(seen)),
        float(spent.mean(1).std() / spent.mean()) / math.sqrt(len(spent)),
        math.sqrt(max(float(weights.square().sum()) - 1 / len(weights), 0.0)),
    ]
    return Missed(log_z - start, math.hypot(*parts))


def annealed(path: TemperedPath, draws: Part, flows: Mapping[float, Flow], n: int, generator: torch.Generator) -> Tensor:
    """``(n, d)`` points at the last power that walked there from draws of the prior, in the latent spaces of the flows on their way.

    A branch that shrinks before it grows can be too rare for a flow to learn where it is rarest. Walkers that are in it stay in it.

    Parameters
    ----------
    path : TemperedPath
    draws : Part
        Of the prior.
    flows : mapping of float to Flow
        By rising power.
    """
    kernel, state, before = RandomWalk(), None, 0.0
    x, log_likelihood = draws.x, draws.log_likelihood
    log_weights = torch.zeros_like(log_likelihood)
    for power, flow in flows.items():
        log_weights = log_weights + (power - before) * log_likelihood
        if state is None or ess(log_weights) < 0.5 * n:
            rows = systematic(torch.softmax(log_weights, 0), n, generator)
            x, log_likelihood, log_weights = x[rows], log_likelihood[rows], torch.zeros(n, dtype=log_weights.dtype)
        before = path.power = power
        space = pulled_back(path, flow)
        z = space.from_user(x)
        if state is None:
            state = kernel.init(z, space)
        log_prob = path.log_prior(x) + power * log_likelihood + space.to_user(z)[1]
        state = kernel.relocate(state, z, log_prob, space)[0]._replace(archive=z)
        for move in range(_MOVES):
            state, info = kernel.step(state, space, generator)
            state = kernel.adapt(state, info, space, move / _MOVES)
        x, log_det = space.to_user(state.position)
        log_likelihood = path.recovered(x, state.log_prob - log_det)
    return x[systematic(torch.softmax(log_weights, 0), n, generator)]
