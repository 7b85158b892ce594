"""Embeddings by items: sets of exchangeable trials, and tokens that attend to each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sbi_flows.embeddings.base import AttentionPool, Dense, Embedding, Linear, spec_of


class SetEmbedding(Embedding):
    """Exchangeable trials in any number: a network on each, attention pooling, a network on the pool.

    The result does not depend on the order of the trials, nor on where in the row absent ones leave their gaps. A trial is absent when all
    its values are missing; a trial that misses some is told which. How many there are is seen.

    Parameters
    ----------
    shape : sequence of int
        ``(trials,)`` or ``(trials, c)``: the most trials there can be, and the values of each.
    outputs : int
    missing
        As in :class:`sbi_flows.embeddings.Embedding`.
    hidden : sequence of int
        Widths of the hidden layers of both networks.
    heads : int
        Learned queries of the pooling.
    generator : torch.Generator, optional

    Examples
    --------
    >>> embedding = SetEmbedding((10, 2))
    >>> rows = torch.randn(1, 20, generator=torch.Generator().manual_seed(0))
    >>> rows[:, 14:] = torch.nan       # seven trials
    >>> shuffled = rows.view(1, 10, 2)[:, torch.tensor([7, 0, 9, 2, 5, 3, 8, 4, 1, 6])].reshape(1, 20)
    >>> bool(torch.allclose(embedding(rows), embedding(shuffled), atol=1e-5))
    True

    References
    ----------
    Zaheer et al. 2017, "Deep sets", arXiv:1703.06114; Lee et al. 2019, "Set transformer", arXiv:1810.00825 (pooling by attention);
    Radev et al. 2020, "BayesFlow", arXiv:2003.06281 (summary networks for exchangeable data).
    """

    exchangeable = True

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int = 32,
        missing: Sequence[int] = (),
        *,
        hidden: Sequence[int] = (64, 64),
        heads: int = 4,
        generator: torch.Generator | None = None,
    ):
        if len(shape) not in (1, 2):
            raise ValueError(f"Expected the shape of a set to be (trials,) or (trials, c); got {tuple(shape)}.")
        super().__init__(shape, outputs, missing, shared=(0,))
        width = 1 if len(shape) == 1 else int(shape[1])
        self.each = Dense([width * (2 if self.missing else 1), *hidden], generator)
        self.pool = AttentionPool(hidden[-1], heads, generator)
        self.whole = Dense([self.pool.outputs, *hidden, outputs], generator)
        self.spec = spec_of("set", self, hidden=list(hidden), heads=heads)

    def embed(self, values, present):
        if values.ndim == 2:
            values, present = values[..., None], present[..., None]
        trials = self.each(self.with_flags(values, present))
        return self.whole(self.pool(nn.functional.silu(trials), present.amax(-1)))


class TokenEmbedding(Embedding):
    """Every value, or every trial, as a token of a small transformer; tokens attend to each other and are pooled.

    Of shape ``(c,)`` every value is a token and knows its place. Of shape ``(trials, c)`` every trial is one and the places are not known,
    as for exchangeable trials. Slower than the other embeddings and worth it where how values combine matters more than each of them.

    Parameters
    ----------
    shape : sequence of int
    outputs : int
    missing
        As in :class:`sbi_flows.embeddings.Embedding`. Missing tokens are attended to by none.
    width : int
        Numbers a token has.
    layers, heads : int
        Rounds of attention, and attention heads of each.
    generator : torch.Generator, optional

    Examples
    --------
    >>> TokenEmbedding((8,), width=16)(torch.zeros(3, 8)).shape
    torch.Size([3, 32])

    References
    ----------
    Vaswani et al. 2017, "Attention is all you need", arXiv:1706.03762; Xiong et al. 2020, arXiv:2002.04745 (normalisation before each
    block); Gloeckler et al. 2024, "All-in-one simulation-based inference", arXiv:2404.09636 (data values as tokens).
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int = 32,
        missing: Sequence[int] = (),
        *,
        width: int = 32,
        layers: int = 2,
        heads: int = 4,
        generator: torch.Generator | None = None,
    ):
        if len(shape) not in (1, 2):
            raise ValueError(f"Expected the shape of tokens to be (values,) or (trials, c); got {tuple(shape)}.")
        if width % heads:
            raise ValueError(f"Expected width to be a multiple of heads; got width={width}, heads={heads}.")
        placed = len(shape) == 1
        super().__init__(shape, outputs, missing, shared=() if placed else (0,))
        self.exchangeable = not placed
        inputs = (1 if placed else int(shape[1])) * (2 if self.missing else 1)
        # A place has a direction of its own for the value as well as an offset: columns need not mean alike.
        self.places = nn.Parameter(torch.randn(2, self.shape[0], width, generator=generator)) if placed else None
        self.enter = Linear(inputs, width, generator)
        self.blocks = nn.ModuleList(_AttentionBlock(width, heads, generator) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.pool = AttentionPool(width, heads, generator)
        self.whole = Dense([self.pool.outputs, 2 * width, outputs], generator)
        self.spec = spec_of("token", self, width=width, layers=layers, heads=heads)

    def embed(self, values, present):
        if values.ndim == 2:
            values, present = values[..., None], present[..., None]
        tokens = self.enter(self.with_flags(values, present))
        if self.places is not None:
            tokens = tokens + values * self.places[0] + self.places[1]
        there = present.amax(-1)
        for block in self.blocks:
            tokens = block(tokens, there)
        return self.whole(self.pool(self.norm(tokens), there))


class _AttentionBlock(nn.Module):
    """Attention among tokens, then a network on each; both added to what came in, normalised before."""

    def __init__(self, width: int, heads: int, generator: torch.Generator | None):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.project = Linear(width, 3 * width, generator)
        self.mix = Linear(width, width, generator)
        self.each = Dense([width, 2 * width, width], generator)

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        query, key, value = self.project(self.norms[0](tokens)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        scores = torch.einsum("nqhw,nkhw->nhqk", query, key) / math.sqrt(query.shape[-1])
        weights = torch.softmax(torch.where(present[:, None, None] > 0, scores, -1e9), dim=-1)
        mixed = torch.einsum("nhqk,nkhw->nqhw", weights, value).flatten(2)
        tokens = tokens + self.mix(mixed)
        return tokens + self.each(self.norms[1](tokens))
