"""Anybody's network behind the interface of an embedding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from sbi_flows.embeddings.base import Embedding, spec_of

# In a spec: the network itself is code and must be given again.
OWN = "own"


class ShapedEmbedding(Embedding):
    """Any ``nn.Module`` that takes observations in their own shape.

    Parameters
    ----------
    module : nn.Module
        ``(n, *shape)``, standardised value by value, NaN where missing, to ``(n, k)``. It must act row by row.
    shape, missing
        As in :class:`sbi_flows.embeddings.Embedding`.

    Raises
    ------
    ValueError
        If the module gives something else than ``(n, k)``.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(64, 8))
    >>> ShapedEmbedding(net, (1, 4, 4))(torch.zeros(2, 16)).shape
    torch.Size([2, 8])
    """

    def __init__(self, module: nn.Module, shape: Sequence[int], missing: Sequence[int] = ()):
        parameter = next(module.parameters(), torch.zeros(()))
        with torch.no_grad():
            made = module(torch.zeros(2, *shape, dtype=parameter.dtype, device=parameter.device))
        if made.ndim != 2 or len(made) != 2:
            form = ", ".join(["n", *map(str, shape)])
            raise ValueError(f"Expected an embedding from ({form}) to (n, k); for n = 2 it gave {tuple(made.shape)}.")
        super().__init__(shape, made.shape[1], missing, shared=())
        self.module = module
        self.spec = spec_of(OWN, self)

    def embed(self, values, present):
        return self.module(torch.where(present > 0, values, torch.nan) if self.missing else values)
