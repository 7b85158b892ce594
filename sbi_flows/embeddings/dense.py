"""Embedding of a vector of summaries."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sbi_flows.embeddings.base import Dense, Embedding, spec_of


class VectorEmbedding(Embedding):
    """A residual network on all values at once: for summaries in no particular order.

    Parameters
    ----------
    shape, missing
        As in :class:`sbi_flows.embeddings.Embedding`.
    outputs : int
    hidden : sequence of int
        Widths of the hidden layers; neighbours of one width are added to each other.
    generator : torch.Generator, optional
        Draws the initial weights.

    Examples
    --------
    >>> VectorEmbedding((200,), outputs=16)(torch.zeros(5, 200)).shape
    torch.Size([5, 16])

    References
    ----------
    He et al. 2016, "Deep residual learning for image recognition", arXiv:1512.03385.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int = 32,
        missing: Sequence[int] = (),
        *,
        hidden: Sequence[int] = (128, 128),
        generator: torch.Generator | None = None,
    ):
        super().__init__(shape, outputs, missing, shared=())
        self.net = Dense([self.inputs, *hidden, outputs], generator)
        self.spec = spec_of("vector", self, hidden=list(hidden))

    def embed(self, values, present):
        if not self.missing:
            return self.net(values.flatten(1))
        return self.net(torch.cat([values.flatten(1), present.flatten(1)[:, self.missing]], dim=1))
