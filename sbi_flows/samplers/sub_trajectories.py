"""Training a diffusion on pieces of its paths: each piece must agree with a learned density of where paths should be at its ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sbi_flows._random import rand, randn
from sbi_flows.losses import Batch

if TYPE_CHECKING:
    from sbi_flows.samplers.diffusion import DiffusionSampler

_USES = 8  # optimiser steps that a batch of paths serves
_WIDER = 0.3  # paths are run with up to this share of noise too much, so that they go where the sampler does not yet


class PieceBalance:
    """Spread, along pieces of paths, of what is one and the same number for a perfect sampler.

    For a diffusion that runs the backward process in reverse, ``ln flow_k(y_k) - sum_{i<k} (ln F - ln B)`` is constant along any path.
    Its variance over a piece is the mean square of all the pairwise balances in it. The paths come from the sampler with more noise than
    it has, and are not differentiated through.

    Parameters
    ----------
    length : int
        Steps of a piece.

    References
    ----------
    Zhang, Chen, Liu, Courville & Bengio 2024, arXiv:2310.02679; Madan et al. 2023, "Learning GFlowNets from partial episodes for improved
    convergence and stability", arXiv:2209.12782 (sub-trajectory balance).
    """

    def __init__(self, length: int):
        self.length = length
        self._uses = 0
        self._paths: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, sampler: DiffusionSampler, batch: Batch, generator: torch.Generator) -> Tensor:
        if self._paths is None or self._uses >= _USES:
            self._paths, self._uses = _run(sampler, batch.x, generator), 0
        self._uses += 1
        y, log_target, score = self._paths
        n, reach = len(batch.x), sampler.n_times - self.length + 1
        first = torch.randint(reach, (n,), generator=generator)
        k = first + torch.arange(self.length + 1)[:, None]  # (length + 1, n)
        row = torch.randint(y.shape[1], (n,), generator=generator).expand_as(k)
        return _spread(self._constants(sampler, y[k, row], log_target[k, row], score[k, row], k))

    def _constants(self, sampler: DiffusionSampler, y: Tensor, log_target: Tensor, score: Tensor, k: Tensor) -> Tensor:
        """What should not change along a piece, ``(length + 1, n)``."""
        steps = sampler.steps()
        before, moved, which = y[:-1].flatten(0, 1), y[1:].flatten(0, 1), k[:-1].flatten()
        mean = sampler.mean(before, score[:-1].flatten(0, 1), which, steps)
        log_ratio = sampler.log_ratio(before, moved, mean, which, steps).view(self.length, -1)
        log_flow = sampler.log_flow(y.flatten(0, 1), log_target.flatten(), k.flatten()).view(k.shape)
        return log_flow + torch.cat([torch.zeros_like(log_ratio[:1]), log_ratio.cumsum(0)])


def _spread(constants: Tensor) -> Tensor:
    """Variance along each piece ``(n,)``, growing only as its root where it is large: early on a few pieces are far off."""
    variance = constants.var(0, correction=0)
    return 2 * ((1 + variance).sqrt() - 1)


@torch.no_grad()
def _run(sampler: DiffusionSampler, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Positions ``(K + 1, n, d)``, the target's log-density there ``(K + 1, n)`` and its slope, of paths from ``y``."""
    steps = sampler.steps()
    wider = 1 + _WIDER * rand((len(y), 1), generator, dtype=y.dtype)
    y = y * wider
    positions, values, slopes = [], [], []
    for step in range(sampler.n_times + 1):
        value, slope = sampler.path.value_and_score(y)
        positions.append(y)
        values.append(torch.where(torch.isfinite(value), value, -1e3))
        slopes.append(slope)
        if step < sampler.n_times:
            mean = sampler.mean(y, slope, torch.full((len(y),), step), steps)
            y = mean + wider * steps.variance[step].sqrt() * randn(y.shape, generator, dtype=y.dtype)
    return torch.stack(positions), torch.stack(values), torch.stack(slopes)
