"""What an importance sample missed, as chains that start from it find out."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sbi_flows.samplers.pool import log_mean

_ITERATIONS = 50


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
