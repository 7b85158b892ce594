"""Objects that each have parameters of their own, in one observation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from sbi_flows.embeddings.base import AttentionPool, Dense, Embedding, spec_of


class ObjectEmbedding(Embedding):
    """Rows of numbers, one an object: a summary of all of them, and one of each that knows of the others.

    What it makes are ``objects + 1`` equal parts, as :func:`sbi_flows.flows.hierarchical` takes: that of the whole set, which does not
    depend on the order of the objects, then that of each, which move with them.

    Parameters
    ----------
    shape : sequence of int
        ``(objects, c)``.
    outputs : int, optional
        A multiple of ``objects + 1``: 32 numbers a part by default.
    missing
        As in :class:`sbi_flows.embeddings.Embedding`. An object all of whose values are missing does not count in the summary of all.
    hidden : sequence of int
        Widths of the hidden layers.
    heads : int
        Learned queries of the pooling.
    generator : torch.Generator, optional

    Examples
    --------
    >>> ObjectEmbedding((3, 5))(torch.zeros(2, 15)).shape
    torch.Size([2, 128])

    References
    ----------
    Zaheer et al. 2017, "Deep sets", arXiv:1703.06114 (equivariant layers); Heinrich, Mishra-Sharma, Pollard & Windischhofer 2024,
    "Hierarchical neural simulation-based inference over event ensembles", arXiv:2306.12584.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int | None = None,
        missing: Sequence[int] = (),
        *,
        hidden: Sequence[int] = (64, 64),
        heads: int = 4,
        generator: torch.Generator | None = None,
    ):
        if len(shape) != 2:
            raise ValueError(f"Expected the shape of objects to be (objects, c); got {tuple(shape)}.")
        parts = int(shape[0]) + 1
        outputs = 32 * parts if outputs is None else outputs
        if outputs % parts:
            raise ValueError(f"Expected outputs in {parts} equal parts, one for all {shape[0]} objects and one for each; got {outputs}.")
        super().__init__(shape, outputs, missing, shared=(0,))
        self.each = Dense([int(shape[1]) * (2 if self.missing else 1), *hidden], generator)
        self.pool = AttentionPool(hidden[-1], heads, generator)
        self.whole = Dense([self.pool.outputs, *hidden], generator)
        self.summary = Dense([hidden[-1], *hidden, outputs // parts], generator)
        self.own = Dense([2 * hidden[-1], *hidden, outputs // parts], generator)
        self.spec = spec_of("objects", self, hidden=list(hidden), heads=heads)

    def embed(self, values, present):
        objects = nn.functional.silu(self.each(self.with_flags(values, present)))
        whole = nn.functional.silu(self.whole(self.pool(objects, present.amax(-1))))
        beside = whole[:, None].expand(-1, self.shape[0], -1)
        own = self.own(torch.cat([objects, beside], dim=-1))
        return torch.cat([self.summary(whole), own.flatten(1)], dim=1)
