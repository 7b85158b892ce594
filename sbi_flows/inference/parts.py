"""Some parameters of a posterior: without regard to the others (marginal), or with the others held fixed (conditional)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_flows._random import RandomState, seed_from, torch_generator
from sbi_flows.distributions import Distribution
from sbi_flows.estimators import ConditionalFlow, FlowDensity
from sbi_flows.flows import MixedDensity
from sbi_flows.inference.posterior import Posterior
from sbi_flows.inference.variational import resampled
from sbi_flows.results import Reliability, WeightedSamples

_DRAWS = 5000


class PartOfPrior(Distribution):
    """Some columns of a prior: their support and draws. Their density is not known in general."""

    def __init__(self, whole: Distribution, columns: Sequence[int], names: Sequence[str]):
        super().__init__(len(columns), names, [whole.support[j] for j in columns])
        self.double()
        self._whole, self._columns_of_whole = whole, list(columns)
        self.discrete = {i: whole.discrete[j] for i, j in enumerate(columns) if j in whole.discrete}

    def sample(self, n, generator=None):
        return self._whole.sample(n, generator)[:, self._columns_of_whole]

    def log_prob(self, x):
        raise ValueError(
            "Expected the whole posterior: the prior density of some of its parameters is not known. Reweight the whole, then take columns."
        )


class MarginalPosterior(Posterior):
    """Some parameters of a posterior, whatever the others are. Draws are exact; the density is a flow fitted to draws when first asked for.

    Parameters
    ----------
    whole : Posterior
    columns : sequence of int
    """

    def __init__(self, whole: Posterior, columns: Sequence[int]):
        names = [whole.names[j] for j in columns]
        prior = PartOfPrior(whole.prior, columns, names)
        super().__init__(prior, names, whole.x_o, whole.reliability, whole.n_observations)
        self._whole, self._columns = whole, list(columns)

    def sample(self, n_samples: int = 1, random_state: RandomState = None) -> np.ndarray:
        """``(n_samples, k)`` draws; ``(m, n_samples, k)`` for a batch."""
        return self._whole.sample(n_samples, random_state)[..., self._columns]

    def log_density(self, theta: Tensor) -> Tensor:
        """Natural log of the density, by a flow fitted to 5000 draws: ``(n,)``."""
        self._refuse_batch("log_prob")
        flow = self._density.flow_
        return flow.log_prob(theta.to(next(flow.parameters()).device)).to(theta)

    @cached_property
    def _density(self) -> FlowDensity:
        with torch.enable_grad():  # asked for within log_prob, which needs none
            flow = FlowDensity(flow=_flow_of(self.prior), layers=2, hidden=(32, 32), support=self.prior.support, random_state=0)
            return flow.fit(self.sample(_DRAWS, 0))


class ConditionalPosterior(Posterior):
    """A posterior with some parameters held at given values.

    A conditional flow fitted to draws of the whole posterior proposes; importance weights against the whole posterior's density correct
    it, and give the density of the fixed values by which it is normalised. ``reliability`` says how well that went.

    Parameters
    ----------
    whole : Posterior
    fixed : mapping of str to float
    random_state : int, generator or None

    Attributes
    ----------
    log_density_of_fixed, log_density_of_fixed_err : float
        ln of the whole posterior's density at the fixed values, the others integrated out, and its standard error.
    """

    def __init__(self, whole: Posterior, fixed: Mapping[str, float], random_state: RandomState = None):
        held = [whole.names.index(name) for name in fixed]
        free = [j for j in range(whole.features) if j not in held]
        names = [whole.names[j] for j in free]
        super().__init__(PartOfPrior(whole.prior, free, names), names, whole.x_o, whole.reliability)
        self._whole, self._free, self._held = whole, free, held
        self._values = np.array([_number(name, value) for name, value in fixed.items()])
        generator = torch_generator(random_state)
        draws = whole.sample(_DRAWS, generator)
        settings: dict[str, Any] = {"support": self.prior.support, "random_state": seed_from(generator)}
        flow = ConditionalFlow(flow=_flow_of(self.prior), layers=2, hidden=(32, 32), max_epochs=12, **settings)
        self._proposal = flow.fit(draws[:, held], draws[:, free])
        weighted = self._propose(_DRAWS, generator)
        self.log_density_of_fixed, self.log_density_of_fixed_err = weighted.log_z, weighted.log_z_err
        self._efficiency = weighted.ess / len(weighted.samples)
        verdict, own = weighted.reliability, whole.reliability
        reasons = [f"parameters held fixed: {reason}" for reason in verdict.reasons]
        self.reliability = Reliability.from_reasons([*own.reasons, *reasons], own.notes)

    def sample(self, n_samples: int = 1, random_state: RandomState = None) -> np.ndarray:
        """``(n_samples, k)`` draws of the free parameters, by importance resampling; where weights are very unequal, rows repeat."""
        return resampled(self._propose, self._efficiency, n_samples, random_state)

    def log_density(self, theta: Tensor) -> Tensor:
        """Natural log of the density of the free parameters, ``(n,)``."""
        full = theta.new_empty(len(theta), self._whole.features)
        full[:, self._free] = theta
        full[:, self._held] = torch.from_numpy(self._values).to(theta)
        return self._whole.log_density(full) - self.log_density_of_fixed

    def _propose(self, n: int, generator: torch.Generator) -> WeightedSamples:
        given = np.broadcast_to(self._values, (n, len(self._values)))
        rows = self._proposal.sample(self._values[None], n, generator)[0]
        full = np.empty((n, self._whole.features))
        full[:, self._free], full[:, self._held] = rows, given
        return WeightedSamples(rows, self._whole.log_prob(full) - self._proposal.log_prob(given, rows), self.names)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool | str) or np.ndim(value) or not np.isfinite(value):
        raise ValueError(f"Expected a finite number for {name} to be held at; got {value!r}.")
    return float(value)


def _flow_of(prior: Distribution) -> str | MixedDensity:
    """The architecture for parameters of which some may be discrete."""
    return MixedDensity(dict(prior.discrete)) if prior.discrete else "nsf"


def columns_of(names: Any, whole: Posterior) -> list[int]:
    """Which columns of ``whole`` are meant, in the order asked for; ``ValueError`` for unknown or repeated names, or none."""
    wanted = [names] if isinstance(names, str) or not isinstance(names, Iterable) else list(names)
    unknown = [name for name in wanted if name not in whole.names]
    if unknown or not wanted or len(set(wanted)) != len(wanted):
        got = ", ".join(map(str, wanted)) or "none"
        by_number = [f"{j} is {whole.names[j]!r}" for j in unknown if isinstance(j, int) and 0 <= j < whole.features]
        hint = f" Pass names, not numbers: {', '.join(by_number)}." if by_number else ""
        raise ValueError(f"Expected some of the parameters {', '.join(whole.names)}, each once; got {got}.{hint}")
    return [whole.names.index(name) for name in wanted]
