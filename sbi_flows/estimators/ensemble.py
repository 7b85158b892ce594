"""Modules around a flow that are densities themselves: an equal mixture of members, and a flow behind an embedding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sbi_flows.flows import Flow, PartlyDiscrete
from sbi_flows.flows.base import ROWS_AT_ONCE
from sbi_flows.nn import transforms_active


class FlowEnsemble(nn.Module):
    """The equal mixture of several flows: its density is the mean of theirs, a draw comes from a member picked at random.

    Parameters
    ----------
    flows : sequence of Flow
        Of the same features and context.

    References
    ----------
    Lakshminarayanan, Pritzel & Blundell 2017, "Simple and scalable predictive uncertainty estimation using deep ensembles",
    arXiv:1612.01474.
    """

    flows: Any  # a list of modules with the methods of Flow

    def __init__(self, flows: Sequence[Any]):
        super().__init__()
        self.flows = nn.ModuleList(flows)
        self.features = flows[0].features
        self.context_features = flows[0].context_features
        self.data_dtype = data_dtype(flows[0])

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log of the members' mean density, ``(n,)``."""
        each = torch.stack([flow.log_prob(x, context) for flow in self.flows])
        return torch.logsumexp(each, dim=0) - math.log(len(self.flows))

    def log_prob_error(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The largest of the members' integration errors, ``(n,)``; zero for discrete flows."""
        return torch.stack([flow.log_prob_error(x, context) for flow in self.flows]).amax(dim=0)

    def sample(self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """``(n, d)`` draws; context (1, c) is shared, (n, c) gives one draw a row."""
        device = next(self.parameters()).device
        where = device if generator is None else generator.device
        picked = torch.randint(len(self.flows), (n,), generator=generator, device=where).to(device)
        drawn, places = [], []
        for m, flow in enumerate(self.flows):
            rows = torch.nonzero(picked == m)[:, 0]
            if len(rows):
                own = context if context is None or len(context) == 1 else context[rows]
                drawn.append(draw(flow, len(rows), own, generator))
                places.append(rows)
        return torch.cat(drawn)[torch.argsort(torch.cat(places))]

    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws and the mixture's log density at them."""
        x = self.sample(n, context, generator=generator)
        return x, self.log_prob(x, context if context is None or len(context) == n else context.expand(n, -1))


def data_dtype(flow: Any) -> torch.dtype:
    """The dtype a flow wants its data in: its own word, or else that of its parameters."""
    return getattr(flow, "data_dtype", next(flow.parameters()).dtype)


def draw(flow: Any, n: int, context: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """``(n, d)`` draws in the dtype of the flow's data, where it can give them so."""
    if isinstance(flow, Flow):
        return flow.sample(n, context, generator=generator, dtype=flow.data_dtype)
    return flow.sample(n, context, generator=generator)


class EmbeddedFlow(nn.Module):
    """A conditional flow that sees its context through a network trained jointly with it.

    Parameters
    ----------
    flow : Flow
        With as many context features as the embedding puts out.
    embedding : nn.Module
        ``(n, context_features)``, standardised per column, to ``(n, flow.context_features)``. It must act row by row (no batch
        normalisation), as a density must not depend on its neighbours. One with a method ``fit_scaling(context, weights)``, as those of
        :mod:`sbi_flows.embeddings`, gets the columns as they are and standardises them itself.
    context_features : int
    """

    flow: Any  # a module with the methods of Flow
    location: Tensor
    scale: Tensor

    def __init__(self, flow: Any, embedding: nn.Module, context_features: int):
        super().__init__()
        self.flow = flow
        self.embedding = embedding
        self.features = flow.features
        self.context_features = context_features
        self.data_dtype = data_dtype(flow)
        dtype = next(flow.parameters()).dtype
        self.register_buffer("location", torch.zeros(context_features, dtype=dtype))
        self.register_buffer("scale", torch.ones(context_features, dtype=dtype))

    def fit_scaling(self, x: Tensor, context: Tensor, weights: Tensor | None = None) -> None:
        """Set the standardisation of the context and, by what comes out of the untrained embedding, that of the flow."""
        own: Any = getattr(self.embedding, "fit_scaling", None)
        if own is not None:
            own(context, weights)
        else:
            w = torch.ones(len(context), dtype=torch.float64) if weights is None else weights.double()
            w = (w / w.sum())[:, None].to(context.device)
            mean = (w * context.double()).sum(0)
            spread = (w * (context.double() - mean).square()).sum(0).sqrt()
            self.location.copy_(mean)
            self.scale.copy_(torch.where(spread > 0, spread, 1.0))
        with torch.no_grad():
            embedded = self._embed(context.to(self.location))
            if isinstance(self.flow, Flow | PartlyDiscrete):
                # Random features change as the network learns: what was regressed on them would be noise.
                known = int(getattr(self.embedding, "regressable", 0))
                if known:
                    embedded[:, known:] = 0.0
                self.flow.fit_scaling(x, embedded, weights, regress=known > 0)
            else:
                self.flow.fit_scaling(x, embedded, weights)

    def log_prob(self, x: Tensor, context: Tensor) -> Tensor:
        """``(n,)``."""
        return self.flow.log_prob(x, self._embed(context))

    def log_prob_error(self, x: Tensor, context: Tensor) -> Tensor:
        """The flow's own integration error, ``(n,)``."""
        return self.flow.log_prob_error(x, self._embed(context))

    def choose_steps(self, x: Tensor, context: Tensor) -> None:
        """As :meth:`sbi_flows.flows.Flow.choose_steps`, on the embedded context."""
        with torch.no_grad():
            self.flow.choose_steps(x, self._embed(context))

    def conditioned(self, context: Tensor) -> tuple[Any, Tensor]:
        """The flow behind the embedding, and the context it sees."""
        return self.flow, self._embed(context)

    def sample(self, n: int, context: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """``(n, d)`` draws; context (1, c) is shared, (n, c) gives one draw a row."""
        return draw(self.flow, n, self._embed(context), generator)

    def sample_and_log_prob(self, n: int, context: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draws and their log density."""
        return self.flow.sample_and_log_prob(n, self._embed(context), generator=generator)

    def _embed(self, context: Tensor) -> Tensor:
        if len(context) < 2 or torch.is_grad_enabled() or transforms_active():
            return self._embed_all(context)
        # Many draws for each of a few conditions come as runs of equal rows: each run is embedded once.
        distinct, row = torch.unique_consecutive(context, dim=0, return_inverse=True)
        return torch.cat([self._embed_all(rows) for rows in distinct.split(ROWS_AT_ONCE)])[row]

    def _embed_all(self, context: Tensor) -> Tensor:
        return self.embedding((context.to(self.location) - self.location) / self.scale)
