"""A gauge-equivariant coupling flow of U(1) links that works on fluxes through blocks, from coarse to fine.

Turning one link by an angle moves that much flux from one of its two plaquettes to the other and changes no other gauge-invariant angle
than those of loops around one of them. So let a rectangle of plaquettes be cut in two, and a link on the cut be turned: the flux ``a``
through one half changes, that through the whole, ``s``, does not, and neither do the fluxes of other rectangles. A coupling layer
turns one link in every rectangle of a tiling, by a circular monotone map of ``a`` whose parameters a translation-equivariant
convolutional net reads off the fluxes ``s`` of all rectangles. The layers cut rectangles of ``block`` by ``block`` sites again and again,
down to single plaquettes.

Gauge transformations change no flux and commute with turning links, translations by ``block`` map the tilings to themselves:
the flow is equivariant under both. That the two halves are alike is built in as well: what is mapped is ``a - s / 2``, by an odd map.
Without that the same training left seven times the divergence.

References
----------
Kanwar et al. 2020, "Equivariant flow-based sampling for lattice gauge theory", arXiv:2003.06413 (plaquette couplings); Luescher 2010,
"Trivializing maps, the Wilson flow and the HMC algorithm", arXiv:0907.5491.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from sbi_flows._validation import positive
from sbi_flows.bijections.base import Bijection
from sbi_flows.bijections.spline import CircularSpline, wrap
from sbi_flows.bijections.support import parse_support
from sbi_flows.distributions.bases import Torus
from sbi_flows.flows import Flow
from sbi_flows.nn import ResidualNet
from sbi_flows.physics.lattice.u1 import check_size

_FEATURES = 3  # of a flux, for the net
_SMALLEST_BIN = 1e-4  # as a share of the circle: at large beta all but a ten-thousandth of the density is in the middle


def gauge_flow(
    size: int,
    *,
    block: int = 8,
    bins: int = 5,
    hidden: Sequence[int] = (16, 16),
    kernel: int = 1,
    generator: torch.Generator | None = None,
) -> Flow:
    """A flow of ``2 size^2`` flattened link angles, the identity before training; its latent links are uniform (Haar).

    Parameters
    ----------
    size : int
        Sites along each axis.
    block : int
        A power of two that divides ``size``: the largest square whose flux is mapped, and the stride of translation equivariance.
    bins : int
        Of the circular splines, from an angle of zero to one of pi; the other half is the mirror image.
    hidden : sequence of int
        Widths of each layer's net.
    kernel : int
        Odd width of the net's window on the fluxes of neighbouring rectangles. One is enough for the Wilson action in two dimensions, where
        rectangles know of each other only through their sum.
    generator : torch.Generator, optional
        Draws the initial weights.

    Returns
    -------
    Flow
        Trained by :func:`sbi_flows.physics.lattice.trivialise`, moved to a lattice of another size by :func:`resized`.

    Raises
    ------
    ValueError
        For a block that is no power of two or does not divide ``size``, or an even kernel.

    Examples
    --------
    >>> flow = gauge_flow(8)
    >>> flow.sample(3).shape
    torch.Size([3, 128])
    """
    check_size(size)
    if block < 2 or block & (block - 1) or size % block:
        raise ValueError(f"Expected block to be a power of two from 2 on that divides size={size}; got {block}.")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"Expected kernel to be an odd width; got {kernel}.")
    positive("bins", bins, integer=True)
    features = 2 * size**2
    spec = {"size": size, "block": block, "bins": bins, "hidden": list(hidden), "kernel": kernel}
    layers = [FluxCoupling(size, *cut, bins, hidden, kernel, generator) for cut in _cuts(block)]
    support = parse_support("circular", features)
    return Flow(support, GaugeBijection(size, layers), Torus(features), scaling="none", spec=spec)


def resized(flow: Flow, size: int) -> Flow:
    """The same layers on a lattice of ``size`` sites, which the flow's block must divide: what a small lattice taught, a large one uses.

    Examples
    --------
    >>> resized(gauge_flow(4, block=4), 8).features
    128
    """
    larger = gauge_flow(**{**flow.spec, "size": size}).to(next(flow.parameters()).dtype)
    weights = {name: value for name, value in flow.state_dict().items() if name.startswith("bijection.")}
    # Supports and base have no numbers of their own here: every column is an angle.
    larger.load_state_dict({**larger.state_dict(), **weights})
    return larger


class GaugeBijection(Bijection):
    """The layers of :func:`gauge_flow` on rows of flattened links; latent to data goes from the coarsest to the finest."""

    def __init__(self, size: int, layers: Sequence[FluxCoupling]):
        super().__init__()
        self.size = size
        self.layers = cast("Sequence[FluxCoupling]", nn.ModuleList(layers))

    def forward_and_log_det(self, x, context=None):
        return self._turn(x, list(reversed(self.layers)), "forward")

    def inverse_and_log_det(self, z, context=None):
        return self._turn(z, list(self.layers), "inverse")

    def _turn(self, rows: Tensor, layers: Sequence[FluxCoupling], direction: str) -> tuple[Tensor, Tensor]:
        size, n = self.size, len(rows)
        links = rows.mT.reshape(2, size, size, n)
        angles = links[0] + links[1].roll(-1, 0) - links[0].roll(-1, 1) - links[1]
        turns = torch.zeros_like(links)
        log_dets = []
        for layer in layers:
            turn, log_det = layer(angles, direction)
            layer.move(turn, turns, angles)
            log_dets.append(log_det)
        return wrap(links + turns).reshape(-1, n).mT, torch.stack(log_dets).sum(0)


class FluxCoupling(nn.Module):
    """One layer: every rectangle of a tiling is cut in two, and a link on the cut turned.

    Parameters
    ----------
    size : int
        Sites along each axis of the lattice.
    shape : tuple of int
        Of a rectangle, in plaquettes.
    axis : int
        Along which it is halved.
    bins, hidden, kernel, generator
        As in :func:`gauge_flow`.
    """

    def __init__(
        self,
        size: int,
        shape: tuple[int, int],
        axis: int,
        bins: int,
        hidden: Sequence[int],
        kernel: int,
        generator: torch.Generator | None,
    ):
        super().__init__()
        self.size, self.shape, self.axis, self.kernel = size, shape, axis, kernel
        self.bins = bins
        # Fluxes through many plaquettes are nearly uniform: their maps differ little from the identity, and so should what a step changes.
        self._gain = (2 / (shape[0] * shape[1])) ** 0.5
        self.spline = CircularSpline(2 * bins, min_size=_SMALLEST_BIN)
        self.net = ResidualNet(_FEATURES * kernel**2, 3 * bins + 1, hidden, generator=generator)

    def forward(self, angles: Tensor, direction: str) -> tuple[Tensor, Tensor]:
        """Plaquettes ``(L, L, n)`` to the change of each first half's flux ``(rows, columns, n)`` and the log-determinant ``(n,)``."""
        (high, wide), size = self.shape, self.size
        tiles = angles.view(size // high, high, size // wide, wide, -1)
        whole = wrap(tiles.sum((1, 3)))
        first = (tiles[:, : high // 2] if self.axis == 0 else tiles[:, :, :, : wide // 2]).sum((1, 3))
        centred = wrap(first - 0.5 * whole)
        half = self._gain * self.net(self._window(whole).flatten(1)).view(-1, *centred.shape)
        params = _mirrored(half, self.bins)
        moved, log_each = getattr(self.spline, direction)(centred, params)
        return wrap(moved - centred), log_each.sum((0, 1))

    def move(self, turn: Tensor, turns: Tensor, angles: Tensor) -> None:
        """Add ``turn`` to the links on the cuts, in ``turns (2, L, L, n)``, and to the plaquettes beside them, in place."""
        (high, wide), half = self.shape, self.shape[self.axis] // 2
        if self.axis == 0:
            turns[1, half::high, ::wide] += turn
            angles[half - 1 :: high, ::wide] += turn
            angles[half::high, ::wide] -= turn
        else:
            turns[0, ::high, half::wide] -= turn
            angles[::high, half - 1 :: wide] += turn
            angles[::high, half::wide] -= turn

    def _window(self, whole: Tensor) -> Tensor:
        """What the net sees of fluxes ``(rows, columns, n)``: of each and its neighbours, ``(features, rows, columns, n)``."""
        # The half angle is what a rectangle's two halves share; its cosine is even and does not jump at the seam.
        seen = torch.stack([whole.cos(), whole.sin(), (0.5 * whole).cos()])
        if self.kernel == 1:
            return seen
        reach = range(-(self.kernel // 2), self.kernel // 2 + 1)
        return torch.cat([seen.roll((i, j), (1, 2)) for i in reach for j in reach])


def _mirrored(half: Tensor, bins: int) -> Tensor:
    """Parameters of an odd circular spline of ``2 bins`` bins from those of its right half.

    ``half (3 bins + 1, *shape)``: slopes at the knots from zero to the seam, then widths, then heights of the bins between.
    """
    slopes, widths, heights = half[: bins + 1], half[bins + 1 : 2 * bins + 1], half[2 * bins + 1 :]
    sizes = torch.stack([torch.cat([part.flip(0), part]) for part in (widths, heights)], dim=1).flatten(0, 1)
    # The spline wants slopes from the seam on, and a rotation last: none here.
    return torch.cat([slopes.flip(0), slopes[1:-1], sizes, torch.zeros_like(half[:1])])


def _cuts(block: int) -> list[tuple[tuple[int, int], int]]:
    """Rectangle and axis of each cut, from a square of ``block`` sites to single plaquettes."""
    cuts, shape = [], [block, block]
    while max(shape) > 1:
        axis = 0 if shape[0] == shape[1] else 1
        cuts.append(((shape[0], shape[1]), axis))
        shape[axis] //= 2
    return cuts
