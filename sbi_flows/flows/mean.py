"""Draws of a continuous flow in one or a few evaluations: a network of average velocities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sbi_flows.bijections.velocity import VelocityNet
from sbi_flows.flows.base import Flow
from sbi_flows.flows.continuous import cnf

_ROWS_AT_ONCE = 2**16
# Below this difference of times the average of the drift is its value in the middle.
_SHORT = 1e-3


class MeanFlow(nn.Module):
    """A fast sampler beside the continuous flow it was distilled from.

    Its network gives the average velocity u of the parent's path between two times, so that ``x_s = x_t + (s - t) u(x_t, t, s)`` in one
    evaluation. Train it by :func:`sbi_flows.distillation.distil`.

    It has no density of its own: the map is not known to be invertible. ``log_prob`` is the parent's, exact for the parent, and the
    draws follow it as far as distilling went. How far is in ``distance``.

    Parameters
    ----------
    parent : Flow
        Continuous; kept as it is.
    layers : int
    hidden : (int, int)
    embedding : int
        Sizes of the network, as in :func:`sbi_flows.flows.cnf`.
    n_steps : int
        Evaluations a draw takes.
    generator : torch.Generator, optional
        Draws the initial weights.

    Attributes
    ----------
    features, context_features : int
    spec : dict
    distance : float
        Root mean squared distance of draws from the parent's of the same noise, in standard deviations: a bound on the Wasserstein-2
        distance between the two densities. NaN until :meth:`measure`.

    Examples
    --------
    >>> from sbi_flows.flows import cnf
    >>> MeanFlow(cnf(2)).sample(3).shape
    torch.Size([3, 2])

    References
    ----------
    Geng et al. 2025, "Mean flows for one-step generative modeling", arXiv:2505.13447.
    """

    data_dtype = Flow.data_dtype

    _distance: Tensor

    def __init__(
        self,
        parent: Flow,
        *,
        layers: int = 2,
        hidden: Sequence[int] = (128, 128),
        embedding: int = 64,
        n_steps: int = 1,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.features, self.context_features = parent.features, parent.context_features
        # Two columns tell the net where the path is to end.
        net = VelocityNet(
            self.features,
            self.context_features + 2,
            blocks=layers,
            hidden=hidden,
            circular=parent.continuous.circular,
            embedding=embedding,
            generator=generator,
        )
        # First, as a module's first parameter stands for the dtype and device of all.
        self.net = net.to(parent._anchor)
        self.parent = parent.requires_grad_(False)
        self.n_steps = n_steps
        self.spec = {
            "architecture": "mean_flow",
            "parent": parent.spec,
            "layers": layers,
            "hidden": list(hidden),
            "embedding": embedding,
            "n_steps": n_steps,
        }
        self.register_buffer("_distance", torch.full((), math.nan, dtype=torch.float64))

    @property
    def distance(self) -> float:
        return float(self._distance)

    def conditioned(self, context: Tensor | None) -> tuple[MeanFlow, Tensor | None]:
        """Itself and ``context``, as :meth:`sbi_flows.flows.Flow.conditioned`."""
        return self, context

    # --- The average velocity ----------------------------------------------------------------------------------------------

    def average_velocity(self, t: Tensor, s: Tensor, y: Tensor, context: Tensor | None = None) -> Tensor:
        """Average velocity ``(n, d)`` from times ``t`` to ``s``, (n,), of the parent's path through ``y (n, d)`` at t."""
        context = self.parent._rounded(self.parent._scaled(context))
        ends = torch.stack([2 * s - 1, torch.log(1.02 - s)], dim=-1)
        given = ends if context is None else torch.cat([context.expand(len(y), -1), ends], dim=-1)
        path = self.parent.continuous.path
        _, gain, scale = path.preconditioning(t)
        real = self.net.is_real
        u = self.net(t, (1 + real * (scale - 1)) * y.mT, self.net.conditions(given))
        return (self._average_drift(t, s) * real * y.mT + (1 + real * (gain - 1)) * u).mT

    def _average_drift(self, t: Tensor, s: Tensor) -> Tensor:
        """What moves normal data: their path is in proportion to the standard deviation."""
        path = self.parent.continuous.path
        scale_t, scale_s = path.preconditioning(t)[2], path.preconditioning(s)[2]
        gap = s - t
        short = gap.abs() < _SHORT
        average = (scale_t / scale_s - 1) / torch.where(short, 1.0, gap)
        return torch.where(short, path.preconditioning(0.5 * (t + s))[0], average)

    def follow(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Noise ``z (n, d)`` to standardised draws ``(n, d)`` in ``n_steps`` evaluations, with contexts as for :meth:`sample`."""
        for step in range(self.n_steps):
            t, s = (z.new_full((len(z),), (step + i) / self.n_steps) for i in (0, 1))
            z = self.wrapped(z + (1 / self.n_steps) * self.average_velocity(t, s, z, context))
        return z

    def wrapped(self, y: Tensor) -> Tensor:
        """Angles back on their circle."""
        return self.parent.continuous.wrapped(y)

    # --- A density, the parent's, and draws --------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The parent's log density, ``(n,)``."""
        return self.parent.log_prob(x, context)

    def log_prob_error(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The parent's integration error, ``(n,)``."""
        return self.parent.log_prob_error(x, context)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """``(n, d)`` draws; a context ``(1, c)`` serves all of them, ``(n, c)`` gives one draw a row."""
        context = self.parent._checked_context(context, n)
        pieces = []
        for start in range(0, n, _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            z = self.parent.base.sample(min(_ROWS_AT_ONCE, n - start), generator)
            given = context if context is None or len(context) == 1 else context[rows]
            y, _ = self.parent.scaling.inverse_and_log_det(self.follow(z, given), self.parent._scaled(given))
            pieces.append(self.parent.support.inverse_and_log_det(y.to(dtype or z.dtype))[0])
        return torch.cat(pieces)

    @torch.no_grad()
    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws, and the parent's log density at them, which is not theirs: no importance weights without the parent's own draws."""
        x = self.sample(n, context, generator=generator, dtype=dtype)
        return x, self.log_prob(x, context)

    @torch.no_grad()
    def measure(self, noise: Tensor, draws: Tensor, context: Tensor | None = None) -> MeanFlow:
        """Set ``distance`` from noise ``(n, d)`` and the standardised draws ``(n, d)`` that the parent makes of it."""
        away = self.wrapped(self.follow(noise, context) - draws)
        self._distance.copy_(away.double().square().sum(-1).mean().sqrt())
        return self


def mean_flow(
    parent: Mapping[str, Any],
    *,
    layers: int = 2,
    hidden: Sequence[int] = (128, 128),
    embedding: int = 64,
    n_steps: int = 1,
    generator: torch.Generator | None = None,
) -> MeanFlow:
    """A :class:`MeanFlow` beside a fresh flow of the spec ``parent``: what a file is read into."""
    settings = {name: value for name, value in parent.items() if name != "architecture"}
    flow = cnf(**settings, generator=generator)
    return MeanFlow(flow, layers=layers, hidden=hidden, embedding=embedding, n_steps=n_steps, generator=generator)
