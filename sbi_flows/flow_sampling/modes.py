"""Which modes a local kernel does not connect, seen in where its chains stay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

_GAP = 3.0  # within-chain standard deviations of empty space between clusters of chain means
_NOISE = 2.0  # times the expected noise of their chains' means that clusters must be apart besides
_DIRECTIONS = 4  # in which chains are told apart: in more, noise alone keeps points apart
_MOST_MODES = 32
_SHARE_CROSSING = 0.02  # of the chains: as many that go from one cluster to another connect them


@dataclass(frozen=True)
class Modes:
    """Regions that chains of a local kernel stay in.

    Attributes
    ----------
    centres : Tensor (m, k)
        In the discriminating directions, in units of the spread within a chain.
    directions : Tensor (p, k)
        From the columns of :func:`flat_columns` to these.
    circular : Tensor (d,) of bool
    group : Tensor (m,)
        Of each centre, the mode it belongs to: clusters that chains cross between are one mode.
    """

    centres: Tensor
    directions: Tensor
    circular: Tensor
    group: Tensor

    @property
    def n(self) -> int:
        """How many modes."""
        return int(self.group.max()) + 1

    def label(self, x: Tensor) -> Tensor:
        """The mode of each point: ``(...,)`` for ``x (..., d)`` on the real line."""
        if self.n == 1:
            return torch.zeros(x.shape[:-1], dtype=torch.long)
        near = torch.cdist(flat_columns(x, self.circular).flatten(0, -2) @ self.directions, self.centres).argmin(-1)
        return self.group[near].view(x.shape[:-1])


def flat_columns(x: Tensor, circular: Tensor) -> Tensor:
    """``x (..., d)`` with each angle replaced by its cosine and sine, so that distances know no seam."""
    if not bool(circular.any()):
        return x
    angles = x[..., circular]
    return torch.cat([x[..., ~circular], angles.cos(), angles.sin()], dim=-1)


def one_mode(circular: Tensor) -> Modes:
    """Nothing to tell apart."""
    zero = torch.zeros(1, 1, dtype=torch.float64)
    return Modes(zero, zero, circular, torch.zeros(1, dtype=torch.long))


def separated_modes(samples: Tensor, circular: Tensor) -> Modes:
    """Clusters of chains that a local kernel does not connect.

    Chains that move within one mode have means that scatter little against their spread; the directions in which chain means differ most
    against it (those of a linear discriminant) show the modes. Chain means with more than three such spreads of empty space between
    them, where hardly a chain crosses, are in different modes. A slow kernel in one wide mode leaves no gap among many chains.

    Parameters
    ----------
    samples : Tensor (chain, draw, d)
        Of a local kernel, on the real line (angles on [-pi, pi)).
    circular : Tensor (d,) of bool

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> draws = torch.randn(64, 20, 2, generator=generator).double()
    >>> angles = torch.zeros(2, dtype=torch.bool)
    >>> separated_modes(draws, angles).n
    1
    >>> draws[:16] += 10
    >>> separated_modes(draws, angles).n
    2
    """
    flat = flat_columns(samples, circular)
    n_chains, _, p = flat.shape
    means = flat.mean(1)
    within = (flat - means[:, None]).flatten(0, 1)
    scale = within.std(0).clamp(min=1e-12 * float(flat.abs().max()) + 1e-300)
    within, centred = within / scale, (means - means.mean(0)) / scale
    # A ridge keeps directions that the chains have hardly explored from looking like walls.
    covariance = within.T @ within / len(within) + 0.05 * torch.eye(p, dtype=within.dtype)
    root = torch.linalg.cholesky(covariance)
    whitened = torch.linalg.solve_triangular(root, centred.T, upper=False)
    vectors, values, _ = torch.linalg.svd(whitened, full_matrices=False)
    k = int((values[:_DIRECTIONS].square() / n_chains > 1e-6).sum())
    if n_chains < 4 or k == 0:
        return one_mode(circular)
    directions = torch.linalg.solve_triangular(root.T, vectors[:, :k], upper=True) / scale[:, None]
    projected = means @ directions
    cluster = fcluster(linkage(projected.numpy(), "single"), t=_GAP, criterion="distance") - 1
    m = int(cluster.max()) + 1
    if m == 1 or m > min(_MOST_MODES, n_chains // 4):
        return one_mode(circular)
    centres = torch.stack([projected[torch.from_numpy(cluster == j)].mean(0) for j in range(m)])
    apart = Modes(centres, directions, circular, torch.arange(m))
    white = torch.linalg.solve_triangular(root, within.T, upper=False).T.view(n_chains, -1, p)
    noise = _squared_noise(white).numpy()
    by_cluster = np.array([noise[cluster == j].mean() / (cluster == j).sum() for j in range(m)])
    near = torch.cdist(centres, centres).numpy() < _GAP + _NOISE * np.sqrt(np.add.outer(by_cluster, by_cluster))
    return Modes(centres, directions, circular, _joined(apart.label(samples).numpy(), near))


def _squared_noise(white: Tensor) -> Tensor:
    """Expected squared length ``(chain,)`` of the error of each chain's mean; ``white (chain, draw, p)`` about these means.

    With more columns than chains some direction shows all of it, so that a wide or slow chain of noise looks like a mode of its own.
    """
    n = white.shape[1]
    power = white.square().sum((1, 2))
    neighbours = ((white[:, 1:] * white[:, :-1]).sum((1, 2)) / power).clamp(0.0, 1 - 1 / n)
    return power / n * (1 + neighbours) / (1 - neighbours) / n


def _joined(labels: np.ndarray, near: np.ndarray) -> Tensor:
    """Modes after clusters that are ``near (m, m)`` or between which chains cross are made one; ``labels (chain, draw)``."""
    m = len(near)
    crossing = np.zeros((m, m))
    for row in labels:
        here = np.unique(row)
        crossing[np.ix_(here, here)] += 1
    # Of a cluster of a chain or two nobody else may come by: then it is enough that half of its own chains leave it.
    at_home = np.bincount([np.bincount(row).argmax() for row in labels], minlength=m)
    few = np.minimum.outer(at_home, at_home) / 2
    connected = near | (crossing > max(1.0, _SHARE_CROSSING * len(labels))) | ((crossing >= few) & (crossing > 0))
    group = np.arange(m)
    for i in range(m):
        for j in np.flatnonzero(connected[i]):
            group[group == group[j]] = group[i]
    return torch.from_numpy(np.unique(group, return_inverse=True)[1])
