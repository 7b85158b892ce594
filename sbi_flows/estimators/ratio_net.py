"""The network behind ``RatioClassifier``: a pair (theta, x) to one number, ``ln p(x | theta) / p(x)``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sbi_flows.bijections.linear import Whiten
from sbi_flows.bijections.support import ColumnSupport
from sbi_flows.bijections.unconstrain import Unconstrain
from sbi_flows.embeddings import Embedding
from sbi_flows.nn import ResidualNet


class RatioNet(nn.Module):
    """A residual network over theta, freed of its support and standardised, beside standardised (and embedded) x.

    Parameters
    ----------
    support : sequence of ColumnSupport
        Of theta, one a column; angles enter by their cosine and sine.
    context : int
        Columns of x.
    hidden : sequence of int
    embedding : nn.Module, optional
        ``(n, context)``, standardised per column, to ``(n, k)``; trained jointly.
    generator : torch.Generator, optional
        Draws the initial weights.
    """

    # As for flows: offsets are taken off in float64 before anything is rounded.
    data_dtype = torch.float64

    _anchor: Tensor

    def __init__(
        self,
        support: Sequence[ColumnSupport],
        context: int,
        hidden: Sequence[int],
        embedding: nn.Module | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.features, self.context_features = len(support), context
        self.support = Unconstrain(support)
        real = [i for i, column in enumerate(support) if column.kind != "circular"]
        self._angles = [i for i, column in enumerate(support) if column.kind == "circular"]
        self._real = real
        self.scaling = Whiten(self.features, real, "standard")
        # An embedding of ours standardises its input itself, as it knows which columns must share one scale.
        self.context_scaling = Whiten(context, method="none" if isinstance(embedding, Embedding) else "standard")
        self.embedding = embedding
        width = context if embedding is None else _width(embedding, context)
        self.net = ResidualNet(len(real) + 2 * len(self._angles) + width, 1, hidden, generator=generator)
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)  # carries dtype and device

    @torch.no_grad()
    def fit_scaling(self, theta: Tensor, x: Tensor) -> None:
        """Set the standardisation from rows ``theta (n, d)`` and ``x (n, c)``."""
        self.support.fit(theta)
        self.scaling.fit(self.support.forward_and_log_det(theta.double())[0])
        self.context_scaling.fit(x.double())
        if isinstance(self.embedding, Embedding):
            self.embedding.fit_scaling(x)

    def log_ratio(self, theta: Tensor, x: Tensor) -> Tensor:
        """``ln p(x | theta) / p(x)`` of each pair of rows, ``(n,)`` in theta's dtype; -inf outside the support of theta."""
        outside, inside = self.support.replace_outside(theta)
        value = self.compare(*self.encode(inside, x))
        return torch.where(outside, -math.inf, value.to(theta.dtype))

    def encode(self, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the network sees of theta inside its support and of x, ``(n, a)`` and ``(n, b)``: once a row, in however many pairs."""
        z = self.scaling.forward_and_log_det(self.support.forward_and_log_det(theta)[0])[0].to(self._anchor.dtype)
        columns = [z[:, self._real]]
        if self._angles:
            columns += [torch.cos(z[:, self._angles]), torch.sin(z[:, self._angles])]
        seen = self.context_scaling.forward_and_log_det(x)[0].to(self._anchor.dtype)
        return torch.cat(columns, dim=1), seen if self.embedding is None else self.embedding(seen)

    def compare(self, theta: Tensor, x: Tensor) -> Tensor:
        """The log ratio of pairs of encoded rows, ``(n,)``."""
        return self.net(torch.cat([theta, x], dim=1).mT)[0]


class RatioEnsemble(nn.Module):
    """Several ratio networks; their ratios are averaged, as densities are.

    Parameters
    ----------
    nets : sequence of RatioNet
    """

    def __init__(self, nets: Sequence[nn.Module]):
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def log_ratio(self, theta: Tensor, x: Tensor) -> Tensor:
        """Log of the mean ratio, ``(n,)``."""
        each = torch.stack([net.log_ratio(theta, x) for net in self.nets])  # type: ignore[operator]
        return torch.logsumexp(each, dim=0) - math.log(len(self.nets))


def _width(embedding: nn.Module, context: int) -> int:
    parameter = next(embedding.parameters(), torch.zeros(()))
    with torch.no_grad():
        shape = embedding(torch.zeros(2, context, dtype=parameter.dtype)).shape
    if len(shape) != 2 or shape[0] != 2:
        raise ValueError(f"Expected an embedding from (n, {context}) to (n, k); for n = 2 it gave {tuple(shape)}.")
    return shape[1]
