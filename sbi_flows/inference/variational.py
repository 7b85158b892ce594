"""The fast alternative to chains: a flow fitted to the posterior's density, corrected by importance weights that judge it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sbi_flows._random import RandomState, seed_from, torch_generator
from sbi_flows._validation import positive
from sbi_flows.flows import Flow, nsf
from sbi_flows.inference.posterior import Posterior
from sbi_flows.losses import reverse_kl
from sbi_flows.results import Reliability, WeightedSamples
from sbi_flows.samplers import anneal
from sbi_flows.targets import Target
from sbi_flows.training import ArraySource, SimulatorSource, train

_BATCH = 256
_STEPS_AN_EPOCH = 25
_JUDGED = 10_000
_MOST = 50  # proposals made for each draw at most
# A posterior draw whose density exceeds the flow's this many times lies where the flow hardly goes; one in a hundred may.
_MISSED = math.log(100)
_MISSED_SHARE = 0.01


class VariationalPosterior(Posterior):
    """A posterior known up to a constant and a flow near it; :func:`variational` makes it.

    Draws are the flow's, resampled by their importance weights; ``log_prob`` is the posterior's own density, normalised by the evidence
    that the weights give.

    Parameters
    ----------
    target : Target
        With a prior.
    flow : Flow
    points : Tensor (n, d)
        Points about where the posterior is, by other means: where the flow is not, a mode is missing.
    x_o : ndarray, optional
    reliability : Reliability, optional
        A verdict to start from.
    random_state : int, generator or None

    Attributes
    ----------
    flow_ : Flow
    log_z, log_z_err : float
        ln of the integral of likelihood times prior, and its standard error.
    ess : float
        Effective share of the flow's draws, in (0, 1].
    pareto_k : float
    """

    def __init__(
        self,
        target: Target,
        flow: Flow,
        points: Tensor,
        *,
        x_o: np.ndarray | None = None,
        reliability: Reliability | None = None,
        random_state: RandomState = None,
    ):
        if target.prior is None:
            raise ValueError("Expected a target with a prior: make it with targets.posterior(log_likelihood, prior).")
        before = Reliability(True) if reliability is None else reliability
        super().__init__(target.prior, target.names, np.empty(0) if x_o is None else x_o, before)
        self.target, self.flow_ = target, flow
        judged = self.weighted(_JUDGED, random_state)
        self.log_z, self.log_z_err = judged.log_z, judged.log_z_err
        self.ess, self.pareto_k = judged.ess / _JUDGED, judged.pareto_k
        reasons = [*before.reasons, *judged.reliability.reasons, *self._missed(points)]
        self.reliability = Reliability.from_reasons(reasons, before.notes)

    def weighted(self, n_samples: int, random_state: RandomState = None) -> WeightedSamples:
        """Draws of the flow with their importance weights: averages over them use every draw, where ``sample`` must choose."""
        positive("n_samples", n_samples, integer=True)
        with torch.no_grad():
            x = self.flow_.sample(n_samples, generator=torch_generator(random_state), dtype=torch.float64)
            # The density is evaluated at the very numbers that were drawn, rounding included.
            log_weights = torch.nan_to_num(self.target.log_prob(x), nan=-math.inf, neginf=-math.inf) - self.flow_.log_prob(x)
        return WeightedSamples(x.numpy(), log_weights.numpy(), self.names)

    def sample(self, n_samples: int = 1, random_state: RandomState = None) -> np.ndarray:
        """``(n_samples, d)`` draws by importance resampling; where weights are very unequal, rows repeat (see ``reliability``)."""
        return resampled(self.weighted, self.ess, n_samples, random_state)

    def log_density(self, theta: Tensor) -> Tensor:
        """As :meth:`Posterior.log_density`; normalised to within ``log_z_err``."""
        return self.target.log_prob(theta) - self.log_z

    @torch.no_grad()
    def _missed(self, points: Tensor) -> list[str]:
        excess = self.target.log_prob(points) - self.flow_.log_prob(points) - self.log_z
        share = float((~(excess < _MISSED)).double().mean())
        if share <= _MISSED_SHARE:
            return []
        return [
            f"{share:.0%} of the points found by annealing lie where the flow has less than a hundredth of the posterior's density: it "
            "misses a mode or a tail. Train longer, use a larger flow, or sample by chains"
        ]


def resampled(
    propose: Callable[[int, torch.Generator], WeightedSamples], efficiency: float, n_samples: int, random_state: RandomState
) -> np.ndarray:
    """``(n_samples, d)`` draws by importance resampling of several proposals each, of which a share ``efficiency`` is effective."""
    positive("n_samples", n_samples, integer=True)
    generator = torch_generator(random_state)
    n_proposals = int(n_samples * np.clip(4 / efficiency, 4, _MOST)) + 100
    return propose(n_proposals, generator).resample(n_samples, seed_from(generator))


def variational(
    target: Target,
    *,
    flow: Flow | None = None,
    n_steps: int = 300,
    learning_rate: float = 1e-3,
    n_particles: int = 2000,
    x_o: np.ndarray | None = None,
    reliability: Reliability | None = None,
    random_state: RandomState = None,
    progress: bool = False,
) -> VariationalPosterior:
    """Fit a flow to a posterior whose density is known up to a constant.

    Particles are annealed from the prior to the posterior (:func:`sbi_flows.samplers.anneal`), the flow is fitted to them, so that it knows
    every mode they found, and then improved by the reverse Kullback-Leibler divergence with path gradients
    (:func:`sbi_flows.losses.reverse_kl`). Importance weights correct what is left and judge it.

    Parameters
    ----------
    target : Target
        With a prior, and with gradients.
    flow : Flow, optional
        What to train, in place; its support must be the target's. A coupling spline flow by default: draws are as fast as densities.
    n_steps : int
        Of 256 draws each, of the second stage; 0 leaves it out, and needs no gradients.
    learning_rate : float
        Its peak.
    n_particles : int
    x_o, reliability : optional
        Of the posterior that comes back.
    random_state : int, generator or None
    progress : bool
        Show progress bars on standard error.

    Returns
    -------
    VariationalPosterior

    Raises
    ------
    ValueError
        If the target has no prior, or the likelihood is zero at all draws of it.

    Examples
    --------
    >>> from sbi_flows.distributions import BoxUniform
    >>> from sbi_flows.targets import posterior
    >>> target = posterior(lambda x: -0.5 * (x / 0.1).square().sum(-1), BoxUniform([-1.0], [1.0]))
    >>> result = variational(target, flow=nsf(1, layers=1, hidden=(8,), support=(-1, 1)), n_steps=0, random_state=0)
    >>> bool(abs(result.log_z - math.log(0.1 * math.sqrt(2 * math.pi) / 2)) < 0.1)
    True

    References
    ----------
    Rezende & Mohamed 2015, "Variational inference with normalizing flows", arXiv:1505.05770.
    """
    positive("n_steps", n_steps, integer=True, zero=True)
    positive("n_particles", n_particles, integer=True)
    generator = torch_generator(random_state)
    points = anneal(target, n_particles, generator)
    if flow is None:
        flow = nsf(target.features, autoregressive=False, layers=4, support=target.support, generator=generator)
    flow.requires_grad_(True).fit_scaling(points)
    held_out = np.arange(n_particles // 10)
    source = ArraySource(points, train_rows=np.arange(len(held_out), n_particles), validation_rows=held_out)
    train(flow, source, random_state=generator, progress=progress)
    if n_steps:
        base = flow.base
        train(
            flow,
            SimulatorSource(base.sample, _BATCH * _STEPS_AN_EPOCH),
            loss=reverse_kl(target.log_prob),
            batch_size=_BATCH,
            max_epochs=max(1, n_steps // _STEPS_AN_EPOCH),
            learning_rate=learning_rate,
            random_state=generator,
            progress=progress,
        )
    flow.requires_grad_(False).eval()
    return VariationalPosterior(target, flow, points, x_o=x_o, reliability=reliability, random_state=generator)
