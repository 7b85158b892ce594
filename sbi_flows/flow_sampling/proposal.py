"""The density that proposes: a mixture of flows, one a mode, and what keeps it from being too thin anywhere."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sbi_flows._random import RandomState, rand, seed_from, torch_generator
from sbi_flows.distributions import Distribution
from sbi_flows.flows import Flow

_WIDE = 0.1  # of a flow's draws come from its widened base
_FURTHER = 2.0  # by which their latent radius is larger; that of a normal in many columns varies by 0.7
_BROAD = 0.1  # of the proposals come from the prior; by .05 one seed of two of the model sigw_delta still had chains that waited


class FlowProposal:
    """A mixture of flows, one a mode: a normalised density in the user's parameters.

    Separated modes get flows of their own because one continuous map of a single bump to several leaves a bridge between them, and
    proposals wasted on it.

    Parameters
    ----------
    flows : sequence of Flow
    log_weights : Tensor (m,)
        Natural logs of the modes' shares; they need not be right, as acceptance corrects them.
    prior : Distribution, optional
        A tenth of the draws are its own.
    """

    def __init__(self, flows: Sequence[Flow], log_weights: Tensor, prior: Distribution | None = None):
        self.flows = [flow.eval() for flow in flows]
        self.log_weights = torch.log_softmax(log_weights.double(), 0)
        self.prior = prior

    @property
    def features(self) -> int:
        return self.flows[0].features

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """``(n, d)`` float64 draws."""
        x = self._sample_flows(n, generator)
        if self.prior is not None:
            broad = (rand((n,), generator) < _BROAD).nonzero()[:, 0]
            x[broad] = self.prior.sample(len(broad), generator).double()
        return x

    def _sample_flows(self, n: int, generator: torch.Generator) -> Tensor:
        if len(self.flows) == 1:
            return self.flows[0].sample(n, generator=generator, dtype=torch.float64)
        which = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)
        drawn = torch.empty(n, self.features, dtype=torch.float64)
        for k, flow in enumerate(self.flows):
            rows = (which == k).nonzero()[:, 0]
            if len(rows):
                drawn[rows] = flow.sample(len(rows), generator=generator, dtype=torch.float64)
        return drawn

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """Normalised natural-log density, ``(n,)`` for ``x (n, d)``."""
        each = torch.stack([flow.log_prob(x).double() for flow in self.flows], dim=-1)
        by_flows = torch.logsumexp(each + self.log_weights, dim=-1)
        if self.prior is None:
            return by_flows
        return torch.logaddexp(by_flows + math.log1p(-_BROAD), self.prior.log_prob(x).double() + math.log(_BROAD))

    def label(self, x: Tensor) -> Tensor:
        """The flow of most density at each point, ``(n,)``."""
        return torch.stack([flow.log_prob(x).double() for flow in self.flows]).argmax(0)

    def weighted(self, shares: Tensor) -> FlowProposal:
        """The same flows with other shares ``(m,)``; a mode that holds little is still proposed, so that it can be proved small."""
        return FlowProposal(self.flows, (shares.double() + 0.02 / len(shares)).log(), self.prior)

    def defended(self, prior: Distribution | None) -> FlowProposal:
        """The same with wider tails, and a share of draws of a prior.

        Where a flow has hardly any density a chain would wait for as long as it takes. Maximum likelihood leaves such places: beyond the
        draws the flow was fitted to, and at ends of parameters, where the posterior does not fall to zero and the flow does. Draws of a
        widened base (Hesterberg 1995, "Weighted average importance sampling and defensive mixture distributions") free chains around the
        flow's bulk; those of the prior anywhere, in ten times as many proposals as the likelihood there is of the evidence.
        """
        flows = [copy.deepcopy(flow) for flow in self.flows]
        for flow in flows:
            flow.base = WidenedBase(flow.base)
        return FlowProposal(flows, self.log_weights, prior)

    def without_prior(self) -> FlowProposal:
        """Its flows alone: for averages over its draws, whose errors the prior's share would only enlarge."""
        return FlowProposal(self.flows, self.log_weights)


class WidenedBase(Distribution):
    """A base density of which a share of the draws are stretched about zero, angles excepted.

    Parameters
    ----------
    base : Distribution
        Of d columns on the real line or a circle.
    """

    stretch: Tensor

    def __init__(self, base: Distribution):
        super().__init__(base.features, support=base.support)
        self.base = base
        angles = torch.tensor([column.kind == "circular" for column in self._columns])
        further = 1 + _FURTHER / math.sqrt(max(int((~angles).sum()), 1))
        self.register_buffer("stretch", torch.where(angles, 1.0, further))

    def sample(self, n, generator=None):
        z = self.base.sample(n, generator)
        wide = rand((n,), generator) < _WIDE
        return torch.where(wide[:, None], z * self.stretch.to(z), z)

    def log_prob(self, x):
        stretch = self.stretch.to(x)
        stretched = self.base.log_prob(x / stretch) - stretch.log().sum()
        return torch.logaddexp(self.base.log_prob(x) + math.log1p(-_WIDE), stretched + math.log(_WIDE))


class NumpyDensity:
    """A proposal for :func:`sbi_flows.evidence`: numpy in and out, draws from a generator of its own."""

    def __init__(self, proposal: FlowProposal, random_state: RandomState):
        self._proposal, self._generator = proposal, torch_generator(seed_from(random_state))

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        return self._proposal.log_prob(torch.as_tensor(x)).numpy()

    def sample(self, n: int) -> np.ndarray:
        return self._proposal.sample(n, generator=self._generator).numpy()
