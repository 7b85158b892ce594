"""The posterior of a likelihood or a ratio that was learned: known up to a constant, and sampled by chains."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_flows._random import RandomState, torch_generator
from sbi_flows._validation import as_float, positive
from sbi_flows.distributions import Distribution
from sbi_flows.estimators import FlowDensity
from sbi_flows.flows import Flow
from sbi_flows.inference.posterior import Posterior
from sbi_flows.inference.variational import VariationalPosterior, variational
from sbi_flows.results import Chains, Reliability, WeightedSamples
from sbi_flows.samplers import NUTS, Kernel, Mixed, RandomWalk, anneal, judge, run_chains
from sbi_flows.targets import Target

_PARTICLES = 1000
_PRIOR_DRAWS = 20_000
_DRAWS_A_CHAIN = 20
_CHAINS = (50, 500)
_WARMUP = 50
_THIN = 10
_DOUBLINGS = 3
# From here on half of the steps are NUTS: 2.8 times the effective draws a second of the random walk on the benchmark's ten-dimensional
# linear model, and a twentieth on two_moons, where jumps between the moons are what counts and a gradient costs several evaluations.
_FOLLOWS_GRADIENTS = 8
# The starts are nearly posterior draws already, so that a chain need not travel: it is enough that half of one is worth five draws.
_MAX_RHAT = 1.1
_FITTED = 5000  # draws behind log_z


class TargetPosterior(Posterior):
    """A posterior known up to a constant; :meth:`NLE.posterior` and :meth:`NRE.posterior` make it.

    ``sample`` starts many chains where sequential Monte Carlo from the prior has found the posterior (:func:`sbi_flows.samplers.anneal`),
    runs an adaptive random walk with jumps between modes, from eight parameters on mixed with NUTS, and lets it run longer until R-hat and
    effective sample size say that the chains agree; ``reliability`` says whether they did. ``log_prob`` is *not normalised*: it is the log
    of likelihood (or ratio) times prior.

    Parameters
    ----------
    targets : sequence of Target
        One an observation.
    prior, names, x_o, reliability, n_observations
        As for :class:`Posterior`.
    n_prior : int
        Draws of the prior among which modes are looked for; each costs one evaluation of the target.

    Attributes
    ----------
    target : Target
        Of a single observation: for :func:`sbi_flows.samplers.run_chains` with a kernel of your choice.
    chains_ : list of Chains
        What the last call of ``sample`` ran, one an observation.
    """

    chains_: list[Chains]

    def __init__(
        self,
        targets: Sequence[Target],
        prior: Distribution,
        names: Sequence[str],
        x_o: np.ndarray,
        reliability: Reliability,
        n_observations: int | None = None,
        *,
        n_prior: int = _PRIOR_DRAWS,
    ):
        unsampled = Reliability.from_reasons(reliability.reasons, [*reliability.notes, "not sampled yet: no chain has been judged"])
        super().__init__(prior, names, x_o, unsampled, n_observations)
        self._targets, self._n_prior = list(targets), n_prior
        self._before_sampling = reliability

    @property
    def target(self) -> Target:
        self._refuse_batch("target")
        return self._targets[0]

    @property
    def targets(self) -> tuple[Target, ...]:
        """One an observation."""
        return tuple(self._targets)

    def remark(self, reasons: Sequence[str], notes: Sequence[str]) -> None:
        """As :meth:`Posterior.remark`; remarks outlive the verdict on the chains, which every call of ``sample`` gives anew."""
        super().remark(reasons, notes)
        own = self._before_sampling
        self._before_sampling = Reliability.from_reasons([*own.reasons, *reasons], [*own.notes, *notes])

    def sample(self, n_samples: int = 1, random_state: RandomState = None) -> np.ndarray:
        """Draws by Markov chains, all inside the prior's support.

        Parameters
        ----------
        n_samples : int
        random_state : int, generator or None

        Returns
        -------
        ndarray (n_samples, d)
            ``(m, n_samples, d)`` for a batch, whose observations are sampled one after the other. In random order, so that any part of
            them represents the whole; neighbours in a chain are correlated (see ``reliability``).
        """
        positive("n_samples", n_samples, integer=True)
        generator = torch_generator(random_state)
        self.chains_ = [_sample(target, n_samples, generator, self._n_prior) for target in self._targets]
        self.reliability = self._judged()
        draws = []
        for chains in self.chains_:
            rows = chains.samples.reshape(-1, self.features)
            draws.append(rows[torch.randperm(len(rows), generator=generator)[:n_samples].numpy()])
        return draws[0] if self.n_observations is None else np.stack(draws)

    def log_prob(self, theta: Any) -> np.ndarray:
        """Natural log of the posterior density up to a constant (one for each observation); -inf outside the prior's support.

        Parameters
        ----------
        theta : array_like (n, d)
            The same points for all of a batch; ``(m, n, d)`` gives each observation points of its own.

        Returns
        -------
        ndarray (n,)
            ``(m, n)`` for a batch.
        """
        if self.n_observations is None:
            return super().log_prob(theta)
        points = as_float(theta, "theta").double().cpu()
        points = points.expand(self.n_observations, *points.shape) if points.ndim == 2 else points
        if points.ndim != 3 or (points.shape[0], points.shape[2]) != (self.n_observations, self.features):
            raise ValueError(
                f"Expected theta of shape (n, {self.features}) or ({self.n_observations}, n, {self.features}); got {tuple(points.shape)}."
            )
        with torch.no_grad():
            return np.stack([target.log_prob(own).numpy() for target, own in zip(self._targets, points, strict=True)])

    def log_density(self, theta: Tensor) -> Tensor:
        """As :meth:`Posterior.log_density`, up to a constant."""
        return self.target.log_prob(theta)

    @property
    def log_z(self) -> float:
        """What ``log_prob`` lacks: ln of the integral of likelihood (or ratio) times prior, by a flow fitted to draws when first asked.

        What speaks against it, the verdict on those draws included, joins ``reliability``, marked "log_z".
        For NLE it is the evidence ln p(x_o); for NRE it would be 0 if the ratio were perfect.
        """
        return self._normaliser.log_z

    @property
    def log_z_err(self) -> float:
        """One standard error of ``log_z``."""
        return self._normaliser.log_z_err

    def reweight(self, log_likelihood, n_samples: int = 10_000, random_state: RandomState = None) -> WeightedSamples:
        """As :meth:`Posterior.reweight`; the weights are normalised by ``log_z``, whose error adds to theirs."""
        log_z = self.log_z  # first, as its verdict is part of the posterior's, which the weights take over
        weighted = super().reweight(log_likelihood, n_samples, random_state)
        return dataclasses.replace(weighted, log_weights=weighted.log_weights + log_z)

    def variational(
        self, *, flow: Flow | None = None, n_steps: int = 300, random_state: RandomState = None
    ) -> VariationalPosterior:
        """The fast alternative to chains where many draws are wanted: see :func:`sbi_flows.inference.variational.variational`."""
        return variational(
            self.target, flow=flow, n_steps=n_steps, x_o=self.x_o, reliability=self._before_sampling, random_state=random_state
        )

    @cached_property
    def _normaliser(self) -> WeightedSamples:
        self._refuse_batch("log_z")
        chains = _sample(self.target, _FITTED, torch_generator(0), self._n_prior)
        draws = chains.samples.reshape(-1, self.features)
        with torch.enable_grad():
            flow = FlowDensity(layers=2, hidden=(32, 32), max_epochs=20, support=self.prior.support, random_state=0).fit(draws)
        proposals = flow.sample(_FITTED, random_state=0)
        log_weights = super().log_prob(proposals) - flow.log_prob(proposals)
        weighted = WeightedSamples(proposals, log_weights, self.names)
        verdicts = [weighted.reliability] if chains.reliability is None else [chains.reliability, weighted.reliability]
        self.remark([f"log_z: {reason}" for verdict in verdicts for reason in verdict.reasons], ())
        return weighted

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, index: int) -> TargetPosterior:
        """The posterior of one observation of a batch."""
        i = self._place(index)
        return TargetPosterior([self._targets[i]], self.prior, self.names, self.x_o[i], self._before_sampling, n_prior=self._n_prior)

    def _judged(self) -> Reliability:
        """The verdict before sampling, and that of the chains."""
        before, m = self._before_sampling, self.n_observations
        share = 3 / self._n_prior  # which that many draws miss one time in twenty
        smallest = f"modes were looked for near {self._n_prior} draws of the prior: one in less than {share:.1g} of it may be missed"
        reasons, notes = list(before.reasons), [*before.notes, smallest]
        for i, chains in enumerate(self.chains_):
            where = "" if m is None else f"observation {i}: "
            verdict = chains.reliability
            if verdict is not None:
                reasons += [where + reason for reason in verdict.reasons]
                notes += [where + note for note in verdict.notes]
        return Reliability.from_reasons(reasons, notes)


def _verdict(chains: Chains, target: Target) -> Reliability:
    verdict = judge(chains.samples, target, max_rhat=_MAX_RHAT).reliability
    notes = () if chains.reliability is None else chains.reliability.notes
    return Reliability.from_reasons(verdict.reasons, notes)


def _sample(target: Target, n_samples: int, generator: torch.Generator, n_prior: int) -> Chains:
    """Chains of at least ``n_samples`` draws together, longer and longer ones until they have converged."""
    n_chains = int(np.clip(n_samples // _DRAWS_A_CHAIN, *_CHAINS))
    n_draws = max(-(-n_samples // n_chains), _DRAWS_A_CHAIN)
    start = anneal(target, max(_PARTICLES, n_chains), generator, n_prior=n_prior)[:n_chains].numpy()
    kernel, thin = _kernel(target.features)
    for _ in range(_DOUBLINGS + 1):
        chains = run_chains(
            kernel, target, start, n_steps=n_draws * thin, n_warmup=_WARMUP, thin=thin, random_state=generator
        )
        verdict = _verdict(chains, target)
        chains = dataclasses.replace(chains, reliability=verdict)
        if verdict.ok:
            break
        # From where they are, twice as long: nothing of what came before is kept, so what follows is judged on its own.
        start, thin = chains.samples[:, -1], 2 * thin
    return chains


def _kernel(d: int) -> tuple[Kernel, int]:
    """What moves chains in d dimensions, and how many steps apart draws are kept."""
    if d < _FOLLOWS_GRADIENTS:
        return RandomWalk(), max(_THIN, 4 * d)
    return Mixed([RandomWalk(), NUTS(check=False)], weights=[1, 1]), _THIN
