"""Embeddings of data on a grid, by convolutions: time series, spectra and images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sbi_flows.embeddings.base import AttentionPool, Convolution, Dense, Embedding, spec_of

_SMALL = 4  # cells that an axis is brought down to
_MOST_CELLS = 256  # of a spectrum, at most, that the dense network sees
_WIDEST = 15  # bins over which a place is looked for
_PEAKED = 2.0  # by how much a bin's score grows with one standard deviation of what is seen there


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
    """A spectrum, or any curve where each place means something of its own: a network on all bins, and where its lines are.

    Every bin has its own scale. A network that squeezes hundreds of bins into a few numbers would have to learn the place of a narrow line
    to a thousandth of the axis; instead each of ``heads`` attends to bins (at first to peaks or dips of some width), and the mean place it
    attends to is an output of its own, on which a flow may regress. More than 256 bins are first brought down by a convolution.

    Parameters
    ----------
    shape : sequence of int
        ``(bins,)`` or ``(bins, channels)``.
    outputs, missing, hidden, generator
        As in :class:`SeriesEmbedding`.
    channels : int
        Features of each bin, where lines are looked for.
    kernel : int
        Odd number of bins that a feature is made from.
    heads : int
        Places among the outputs; even, half of them begin as peaks and half as dips.

    Examples
    --------
    >>> SpectrumEmbedding((500,))(torch.zeros(3, 500)).shape
    torch.Size([3, 32])

    References
    ----------
    Levine, Finn, Darrell & Abbeel 2016, "End-to-end training of deep visuomotor policies", arXiv:1504.00702 (expected places).
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int = 32,
        missing: Sequence[int] = (),
        *,
        channels: int = 8,
        kernel: int = 5,
        hidden: Sequence[int] = (128, 128),
        heads: int = 6,
        generator: torch.Generator | None = None,
    ):
        _check_grid("a spectrum", shape, (1, 2), "(bins,) or (bins, channels)", kernel)
        if heads < 2 or heads % 2 or heads >= outputs:
            raise ValueError(f"Expected an even number of heads below outputs={outputs}; got {heads}.")
        super().__init__(shape, outputs, missing, shared=())
        self.regressable = heads
        inputs = _channels_of(shape) * (2 if self.missing else 1)
        stride = -(-self.shape[0] // _MOST_CELLS)
        self.coarse = Convolution(1, inputs, channels, kernel * stride | 1, (stride,), generator) if stride > 1 else None
        self.fine = Convolution(1, inputs, channels, kernel, (1,), generator)
        self.places = _Places(self.shape[0], inputs, _channels_of(shape), channels, heads, generator)
        cells = channels * -(-self.shape[0] // stride) if stride > 1 else inputs * self.shape[0]
        self.whole = Dense([cells + self.places.outputs + heads, *hidden, outputs - heads], generator)
        self.spec = spec_of("spectrum", self, channels=channels, kernel=kernel, hidden=list(hidden), heads=heads)

    def embed(self, values, present):
        if values.ndim == 2:
            values, present = values[..., None], present[..., None]
        lines = self.with_flags(values, present).mT
        places, heights = self.places(lines, self.fine(lines))
        cells = lines if self.coarse is None else self.coarse(lines)
        rest = self.whole(torch.cat([cells.flatten(1), places, heights], dim=1))
        return torch.cat([places, rest], dim=1)


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


class _Places(nn.Module):
    """Mean places, with weights that begin as peaks and dips of the data smoothed over some bins, and what is there."""

    coordinates: Tensor

    def __init__(self, bins: int, inputs: int, data: int, features: int, heads: int, generator: torch.Generator | None):
        super().__init__()
        self.register_buffer("coordinates", torch.linspace(-1.0, 1.0, bins), persistent=False)
        self.smooth = Convolution(1, inputs, heads, _WIDEST, (1,), generator)
        self.refine = Convolution(1, features, heads, 5, (1,), generator)
        with torch.no_grad():
            offsets = torch.arange(_WIDEST) - _WIDEST // 2
            for weight in (self.smooth.weight, self.refine.weight):
                weight.zero_()
            for head in range(heads):
                width = 1 + 2 * (head // 2)
                kernel = torch.exp(-0.5 * (offsets / (0.5 * width)).square())
                sign = 1.0 if head % 2 == 0 else -1.0
                self.smooth.weight[head, :data] = sign * _PEAKED * kernel / kernel.norm() / data**0.5
        self.outputs = heads * (1 + features)

    def forward(self, lines: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
        """``(n, inputs, bins)`` and features there to places ``(n, heads)`` from -1 to 1 and what is there, ``(n, heads * ...)``."""
        scores = self.smooth(lines) + self.refine(nn.functional.silu(fine))
        weights = torch.softmax(scores, dim=-1)
        places = weights @ self.coordinates
        spread = (weights @ self.coordinates.square() - places.square()).clamp(min=1e-12).sqrt()
        return places, torch.cat([spread, (weights @ fine.mT).flatten(1)], dim=1)


def _channels_of(shape: Sequence[int]) -> int:
    return 1 if len(shape) == 1 else int(shape[1])


def _check_grid(what: str, shape: Sequence[int], axes: tuple[int, int], form: str, kernel: int) -> None:
    if len(shape) not in axes:
        raise ValueError(f"Expected the shape of {what} to be {form}; got {tuple(shape)}.")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"Expected kernel to be an odd width; got {kernel}.")
