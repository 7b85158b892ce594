"""How many independent draws the draws of chains are worth."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sbi_flows.flow_sampling.modes import Modes
from sbi_flows.weights import autocorrelation_time


def effective_size(samples: Tensor) -> float:
    """Independent draws that ``(chain, draw, d)`` are worth, by the slowest column."""
    n = samples.shape[0] * samples.shape[1]
    return float(np.min([n / autocorrelation_time(samples[..., j].numpy()) for j in range(samples.shape[-1])]))


def bulk_size(samples: Tensor) -> float:
    """The same by ranks, as reports count it: a long tail must not decide for all of a column.

    References
    ----------
    Vehtari et al. 2021, "Rank-normalization, folding, and localization: an improved R-hat", arXiv:1903.08008.
    """
    flat = samples.flatten(0, 1)
    rank = flat.argsort(dim=0, stable=True).argsort(dim=0).double()
    return effective_size(torch.special.ndtri((rank + 0.625) / (len(flat) + 0.25)).view_as(samples))


def about_their_modes(samples: Tensor, modes: Modes) -> Tensor:
    """Draws ``(chain, draw, d)`` less the mean of the mode each lies in: what is left to forget where no chain leaves its mode."""
    labels = modes.label(samples)
    centred = samples.clone()
    for k in range(modes.n):
        inside = labels == k
        if inside.any():
            centred[inside] -= samples[inside].mean(0)
    return centred
