"""Embeddings of data on a grid, by convolutions: time series, spectra and images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sbi_flows.embeddings.base import AttentionPool, Convolution, Dense, Embedding, spec_of

_SMALL = 4  # cells that an axis is brought down to


class SeriesEmbedding(Embedding):
    """A time series: strided convolutions, pooled over time.

    All times share one scale, and times are seen, so that "when" is not lost in the pooling. Missing stretches, such as the ends of shorter
    series, are left out of the pool.

    Parameters
    ----------
    shape : sequence of int
        ``(length,)`` or ``(length, channels)``.
    outputs : int
    missing
        As in :class:`sbi_flows.embeddings.Embedding`.
    channels : int
        Features along the series; twice as many after the first halving.
    kernel : int
        Odd width of the convolutions.
    hidden : sequence of int
        Widths of the network after the pooling.
    generator : torch.Generator, optional

    Examples
    --------
    >>> SeriesEmbedding((100, 2))(torch.zeros(3, 200)).shape
    torch.Size([3, 32])

    References
    ----------
    Wang, Yan & Oates 2017, "Time series classification from scratch with deep neural networks", arXiv:1611.06455.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int = 32,
        missing: Sequence[int] = (),
        *,
        channels: int = 16,
        kernel: int = 5,
        hidden: Sequence[int] = (64,),
        generator: torch.Generator | None = None,
    ):
        _check_grid("a series", shape, (1, 2), "(length,) or (length, channels)", kernel)
        super().__init__(shape, outputs, missing, shared=(0,))
        self.tower = _Tower(self.shape[:1], _channels_of(shape) * (2 if self.missing else 1), channels, kernel, 2 * _SMALL, generator)
        self.pool = AttentionPool(self.tower.channels, 4, generator)
        self.whole = Dense([self.pool.outputs, *hidden, outputs], generator)
        self.spec = spec_of("series", self, channels=channels, kernel=kernel, hidden=list(hidden))

    def embed(self, values, present):
        if values.ndim == 2:
            values, present = values[..., None], present[..., None]
        cells = self.tower(self.with_flags(values, present).mT).mT
        # A cell counts where some of its stretch of the series is there.
        there = nn.functional.adaptive_avg_pool1d(present.amax(-1)[:, None], cells.shape[1])[:, 0]
        return self.whole(self.pool(cells, (there > 0).to(cells)))


class SpectrumEmbedding(Embedding):
    """A spectrum, or any curve where each place means something of its own: strided convolutions, and no pooling.

    Every bin has its own scale and the network after the convolutions sees which cell is which.

    Parameters
    ----------
    shape : sequence of int
        ``(bins,)`` or ``(bins, channels)``.
    outputs, missing, channels, kernel, hidden, generator
        As in :class:`SeriesEmbedding`.

    Examples
    --------
    >>> SpectrumEmbedding((500,))(torch.zeros(3, 500)).shape
    torch.Size([3, 32])
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int = 32,
        missing: Sequence[int] = (),
        *,
        channels: int = 16,
        kernel: int = 5,
        hidden: Sequence[int] = (64,),
        generator: torch.Generator | None = None,
    ):
        _check_grid("a spectrum", shape, (1, 2), "(bins,) or (bins, channels)", kernel)
        super().__init__(shape, outputs, missing, shared=())
        self.tower = _Tower(self.shape[:1], _channels_of(shape) * (2 if self.missing else 1), channels, kernel, 2 * _SMALL, generator)
        self.whole = Dense([self.tower.cells, *hidden, outputs], generator)
        self.spec = spec_of("spectrum", self, channels=channels, kernel=kernel, hidden=list(hidden))

    def embed(self, values, present):
        if values.ndim == 2:
            values, present = values[..., None], present[..., None]
        return self.whole(self.tower(self.with_flags(values, present).mT).flatten(1))


class ImageEmbedding(Embedding):
    """An image: strided convolutions down to a few cells, and a network on these.

    All pixels of a channel share one scale.

    Parameters
    ----------
    shape : sequence of int
        ``(h, w)`` or ``(channels, h, w)``.
    outputs, missing, channels, kernel, hidden, generator
        As in :class:`SeriesEmbedding`.

    Examples
    --------
    >>> ImageEmbedding((1, 16, 16))(torch.zeros(2, 256)).shape
    torch.Size([2, 32])
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int = 32,
        missing: Sequence[int] = (),
        *,
        channels: int = 16,
        kernel: int = 3,
        hidden: Sequence[int] = (64,),
        generator: torch.Generator | None = None,
    ):
        _check_grid("an image", shape, (2, 3), "(h, w) or (channels, h, w)", kernel)
        super().__init__(shape, outputs, missing, shared=(-2 + len(shape), -1 + len(shape)))
        layers = 1 if len(shape) == 2 else self.shape[0]
        self.tower = _Tower(self.shape[-2:], layers * (2 if self.missing else 1), channels, kernel, _SMALL, generator)
        self.whole = Dense([self.tower.cells, *hidden, outputs], generator)
        self.spec = spec_of("image", self, channels=channels, kernel=kernel, hidden=list(hidden))

    def embed(self, values, present):
        if values.ndim == 3:
            values, present = values[:, None], present[:, None]
        layers = torch.cat([values, present], dim=1) if self.missing else values
        return self.whole(self.tower(layers).flatten(1))


class _Tower(nn.Module):
    """Convolutions that halve every axis until it is short, with the place of every cell as further channels."""

    coordinates: Tensor

    def __init__(self, grid: Sequence[int], inputs: int, channels: int, kernel: int, small: int, generator: torch.Generator | None):
        super().__init__()
        axes = len(grid)
        lines = [torch.linspace(-1.0, 1.0, size) for size in grid]
        self.register_buffer("coordinates", torch.stack(torch.meshgrid(*lines, indexing="ij")), persistent=False)
        self.enter = Convolution(axes, inputs + axes, channels, kernel, (1,) * axes, generator)
        steps, sizes, width = [], list(grid), channels
        while max(sizes) > small:
            stride = tuple(2 if size > small else 1 for size in sizes)
            wider = 2 * channels
            steps.append(Convolution(axes, width, wider, kernel, stride, generator))
            steps.append(Convolution(axes, wider, wider, kernel, (1,) * axes, generator))
            sizes, width = [-(-size // step) for size, step in zip(sizes, stride, strict=True)], wider
        self.steps = nn.ModuleList(steps)
        self.channels = width
        self.cells = width
        for size in sizes:
            self.cells *= size

    def forward(self, x: Tensor) -> Tensor:
        """``(n, inputs, *grid)`` to ``(n, channels, *cells)``."""
        h = self.enter(torch.cat([x, self.coordinates.expand(len(x), *self.coordinates.shape)], dim=1))
        for down, stay in zip(self.steps[::2], self.steps[1::2], strict=True):
            h = down(nn.functional.silu(h))
            h = h + stay(nn.functional.silu(h))
        return nn.functional.silu(h)


def _channels_of(shape: Sequence[int]) -> int:
    return 1 if len(shape) == 1 else int(shape[1])


def _check_grid(what: str, shape: Sequence[int], axes: tuple[int, int], form: str, kernel: int) -> None:
    if len(shape) not in axes:
        raise ValueError(f"Expected the shape of {what} to be {form}; got {tuple(shape)}.")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"Expected kernel to be an odd width; got {kernel}.")
