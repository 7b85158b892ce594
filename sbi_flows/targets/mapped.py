"""Targets made of targets: at a temperature, on the real line, in the latent space of a flow."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sbi_flows._random import torch_generator
from sbi_flows.bijections.support import ColumnSupport
from sbi_flows.bijections.unconstrain import LARGEST_QUANTILE, Unconstrain
from sbi_flows.flows import Flow
from sbi_flows.targets.base import Target

_PRIOR_DRAWS = 1000  # enough to place a half-line's reference distribution, which only has to be of the right order
_PRIOR_SEED = 0  # any: the draws set a scale, not a result


class TemperedTarget(Target):
    """A target's likelihood to a power; made by :func:`tempered`."""

    def __init__(self, target: Target, inverse_temperature: float):
        super().__init__(target.features, target.names, target.support, target.prior)
        self._target, self.inverse_temperature = target, inverse_temperature
        self.same_parameters = target.same_parameters

    def log_likelihood(self, x):
        return self.inverse_temperature * self._target.log_likelihood(x)

    def log_prob(self, x):
        log_prob = self._target.log_prob(x)
        if self.prior is None:
            return self.inverse_temperature * log_prob
        log_prior = self.prior.log_prob(x)
        # Outside the prior both are -inf, and their difference is not a number.
        excess = torch.where(torch.isfinite(log_prior), log_prob - log_prior, 0.0)
        return log_prior + self.inverse_temperature * excess

    def recorded(self, x):
        return self._target.recorded(x)

    @property
    def notes(self):
        return self._target.notes


class _Mapped(Target):
    """A target in other parameters than the user's, on real columns and angles."""

    def __init__(self, target: Target, names: Sequence[str], support: Sequence[ColumnSupport]):
        super().__init__(target.features, names, ["circular" if column.kind == "circular" else "real" for column in support])
        self.target = target

    @property
    def user(self):
        return self.target.user

    def log_likelihood(self, x):
        return self.target.log_likelihood(self.to_user(x)[0])


class UnconstrainedTarget(_Mapped):
    """A target seen from the real line (angles: from [-pi, pi)); made by :func:`unconstrained`."""

    def __init__(self, target: Target, rows: Tensor):
        super().__init__(target, target.names, target._columns)
        self.map = Unconstrain(target._columns)
        self.map.fit(rows)
        self._bounded = torch.tensor([column.kind not in ("real", "circular") for column in target._columns])

    def log_prob(self, x):
        x = self._checked(x)
        # Further out the map repeats its last value: without an end there the density would never fall off.
        beyond = ((x.abs() > LARGEST_QUANTILE) & self._bounded).any(-1)
        theta, log_det = self.map.inverse_and_log_det(x)
        return torch.where(beyond, -math.inf, self.target.log_prob(theta) + log_det)

    def to_user(self, x):
        theta, log_det = self.map.inverse_and_log_det(x)
        theta, more = self.target.to_user(theta)
        return theta, log_det + more

    def from_user(self, x):
        return self.map.forward_and_log_det(self.target.from_user(x))[0]


class PulledBackTarget(_Mapped):
    """A target seen from the latent space of a flow; made by :func:`pulled_back`."""

    def __init__(self, target: Target, flow: Flow):
        super().__init__(target, [f"z{i}" for i in range(target.features)], flow.support.support)
        # A copy in float64: a density mapped through a float32 flow would be a staircase to gradients and small steps.
        self.flow = copy.deepcopy(flow).double().requires_grad_(False).eval()

    def log_prob(self, x):
        theta, log_det = self.flow.from_base(self._checked(x))
        return self.target.log_prob(theta) + log_det

    def to_user(self, x):
        theta, log_det = self.flow.from_base(self._checked(x))
        theta, more = self.target.to_user(theta)
        return theta, log_det + more

    def from_user(self, x):
        return self.flow.to_base(self.target.from_user(self._checked(x)))[0]


def tempered(target: Target, inverse_temperature: float) -> Target:
    """The prior times the likelihood to a power, or the whole density to a power where the target has no prior.

    Examples
    --------
    >>> from sbi_flows.targets import from_log_prob
    >>> hot = tempered(from_log_prob(lambda x: -x.square().sum(-1), 1), 0.5)
    >>> hot.log_prob(torch.ones(1, 1))
    tensor([-0.5000], dtype=torch.float64)
    """
    if not (math.isfinite(inverse_temperature) and inverse_temperature >= 0):
        raise ValueError(f"Expected a finite inverse_temperature of at least 0; got {inverse_temperature!r}.")
    return TemperedTarget(target, float(inverse_temperature))


def unconstrained(target: Target, rows: Tensor | None = None) -> Target:
    """The same density over real columns (and angles on [-pi, pi)), Jacobian included; ``target`` itself where it is so already.

    Parameters
    ----------
    target : Target
    rows : Tensor (n, d), optional
        Points of about the scale of the target: they place the reference distributions of half-lines and heavy tails. Draws of the
        prior by default, where there is one.

    Examples
    --------
    >>> from sbi_flows.targets import from_log_prob
    >>> flat = from_log_prob(lambda x: torch.zeros(len(x)), 1, support=(0, 1))
    >>> unconstrained(flat).support
    ['real']
    """
    standard = ("real", -math.inf, math.inf), ("circular", -math.pi, math.pi)
    if all((column.kind, column.low, column.high) in standard for column in target._columns):
        return target
    if rows is None:
        rows = torch.zeros(1, target.features, dtype=torch.float64)
        if target.prior is not None:
            rows = target.prior.sample(_PRIOR_DRAWS, torch_generator(_PRIOR_SEED))
    return UnconstrainedTarget(target, rows)


def pulled_back(target: Target, flow: Flow) -> Target:
    """The density of the flow's latent variable when its data follow the target: nearly the flow's base if the flow is good.

    Parameters
    ----------
    target : Target
    flow : Flow
        Without context; a float64 copy of it is used.

    Examples
    --------
    >>> from sbi_flows.targets import from_log_prob
    >>> from sbi_flows.flows import realnvp
    >>> pulled_back(from_log_prob(lambda x: -x.square().sum(-1), 2), realnvp(2)).names
    ('z0', 'z1')

    References
    ----------
    Hoffman, Sountsov, Dillon, Langmore, Tran & Vasudevan 2019, "NeuTra-lizing bad geometry in Hamiltonian Monte Carlo using neural
    transport", arXiv:1903.03704.
    """
    if flow.features != target.features or flow.context_features:
        raise ValueError(
            f"Expected a flow of {target.features} features without context to pull the target back through; "
            f"got one of {flow.features} with {flow.context_features} context features."
        )
    return PulledBackTarget(target, flow)
