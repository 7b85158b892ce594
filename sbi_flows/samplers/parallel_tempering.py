"""Parallel tempering: chains at every power of the likelihood at once, which exchange positions, and ln Z from all of them."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sbi_flows._random import RandomState, randn, seed_from, torch_generator
from sbi_flows._threads import one_thread
from sbi_flows._validation import positive
from sbi_flows.flows import Flow, nsf
from sbi_flows.results import Chains, Evidence, Reliability, TemperedChains
from sbi_flows.samplers.exchange import Replicas, exchange, exchange_by_flows
from sbi_flows.samplers.kernel import metropolis
from sbi_flows.samplers.random_walk import RandomWalk
from sbi_flows.samplers.run import judge
from sbi_flows.samplers.tempered_path import TemperedPath
from sbi_flows.samplers.unseen import reach
from sbi_flows.samplers.waste_free import ascend
from sbi_flows.targets import Target, circular_columns, from_log_prob, unconstrained, wrap_angles
from sbi_flows.training import ArraySource, train

_PILOT, _PILOT_MOVES = 200, 5  # chains and moves of the annealing that places the powers
_SPACING = 0.5  # effective share between neighbouring powers: about as many swaps are accepted
_WANTED = 0.234
_RARE_SWAPS = 0.1
_LAYERS, _HIDDEN, _EPOCHS = 2, (32, 32), 30
_LARGEST_ERROR = 0.5


@torch.no_grad()
def parallel_tempering(
    target: Target,
    *,
    n_ladders: int = 16,
    n_steps: int = 2000,
    n_warmup: int = 1000,
    flow: str | None = None,
    random_state: RandomState = None,
) -> TemperedChains:
    """Chains at a ladder of powers of the likelihood, from the prior to the posterior, all of them one batch.

    Powers are placed by a short annealing. At power 0 positions are drawn afresh from the prior, elsewhere they move by random walks whose
    covariance and scale are learned in warm-up. Neighbours exchange positions after each step. ``n_ladders`` ladders run beside each
    other and never meet: their spread is the error of ln Z, whatever the autocorrelation within them.

    Parameters
    ----------
    target : Target
        With a prior.
    n_ladders : int
        At least 4.
    n_steps, n_warmup : int
        Steps of each ladder that are kept, and before.
    flow : "auto" or None
        "auto" fits a flow to each power in the middle of warm-up; every other exchange is then carried by them.
    random_state : int, generator or None

    Returns
    -------
    TemperedChains
        The chains at power 1, with ``evidence`` by stepping stones.

    Raises
    ------
    ValueError
        If the target has no prior, no draw of it has a likelihood above zero, or settings are out of range.

    Examples
    --------
    >>> from sbi_flows.distributions import BoxUniform
    >>> from sbi_flows.targets import posterior
    >>> target = posterior(lambda x: -0.5 * (x[:, 0] / 0.1) ** 2, BoxUniform([-1.0], [1.0]))
    >>> result = parallel_tempering(target, n_steps=200, n_warmup=100, random_state=0)
    >>> bool(abs(result.evidence.log_z - np.log(np.sqrt(2 * np.pi) * 0.1 / 2)) < 5 * result.evidence.log_z_err)
    True

    References
    ----------
    Syed, Bouchard-Côté, Deligiannidis & Doucet 2022, "Non-reversible parallel tempering: a scalable highly parallel MCMC scheme",
    J. R. Statist. Soc. B 84; Xie, Lewis, Fan, Kuo & Chen 2011, "Improving marginal likelihood estimation for Bayesian phylogenetic model
    selection", Systematic Biology 60 (stepping stones).
    """
    path, generator = TemperedPath(target), torch_generator(random_state)
    if positive("n_ladders", n_ladders, integer=True) < 4:
        raise ValueError(f"Expected n_ladders of at least 4, as their spread is the error of ln Z; got {n_ladders}.")
    positive("n_steps", n_steps, integer=True)
    positive("n_warmup", n_warmup, integer=True)
    if flow not in (None, "auto"):
        raise ValueError(f"Expected flow to be 'auto' or None; got {flow!r}.")
    with one_thread():
        ladder = _Ladder(path, n_ladders, generator)
        ladder.warm_up(n_warmup, flow is not None)
        return ladder.sample(n_steps)


class _Ladder:
    """All replicas, what their random walks have learned, and the flows that carry exchanges."""

    def __init__(self, path: TemperedPath, n_ladders: int, generator: torch.Generator):
        self.path, self.generator = path, generator
        ess = _SPACING * _PILOT * _PILOT_MOVES
        pilot = ascend(
            path, _PILOT, _PILOT * _PILOT_MOVES, RandomWalk(), generator, ess=ess, least_moves=_PILOT_MOVES, most_moves=_PILOT_MOVES
        )
        self.powers = torch.tensor([0.0, *pilot.powers], dtype=torch.float64)
        ends = pilot.particles.x[-_PILOT:]
        self.prior = path.start
        self.base = unconstrained(from_log_prob(self.prior.log_prob, path.features, support=path.support), ends)
        self.circular = circular_columns(self.base)
        levels, d = len(self.powers), path.features
        rows = torch.randint(_PILOT, (levels * n_ladders,), generator=generator)
        position = self.base.from_user(ends[rows])
        log_base, log_likelihood = self._evaluate(position)
        shape = levels, n_ladders
        self.replicas = Replicas(position.view(*shape, d), log_base.view(shape), log_likelihood.view(shape))
        centre = self.base.from_user(ends)
        spread = wrap_angles(centre - centre[0], self.circular).std(0).clamp(min=1e-8)
        self.covariance = torch.diag(spread.square()).expand(levels, d, d).clone()
        self.factor = torch.diag(spread).expand(levels, d, d).clone()
        self.log_scale = torch.full((levels,), math.log(2.38 / math.sqrt(d)), dtype=torch.float64)
        self.flows: list[Flow] | None = None
        self.steps = 0
        self.prior_draws, self.possible = 0, 0  # all that were made, and those of a likelihood above zero

    def warm_up(self, n_steps: int, with_flows: bool) -> None:
        """Learn scales and covariances; in the middle, the flows."""
        kept: list[Tensor] = []
        for step in range(n_steps):
            acceptance, _ = self.step()
            self._adapt(acceptance, step + 1)
            if with_flows and step < n_steps // 2 and step >= n_steps // 8:
                kept.append(self.replicas.position)
            if with_flows and step == n_steps // 2 and kept:
                self._fit_flows(torch.stack(kept, 1))

    def sample(self, n_steps: int) -> TemperedChains:
        """Steps with everything learned kept fixed."""
        self.path.n_last = self.path.n_last_invalid = 0  # as steps of the warm-up may go astray
        draws, log_prob, log_likelihood, acceptances = [], [], [], []
        swaps = torch.zeros(2, len(self.powers) - 1, dtype=torch.float64)
        for _ in range(n_steps):
            acceptance, (low, swapped) = self.step()
            swaps[0, low] += swapped.mean(-1)
            swaps[1, low] += 1
            user, log_det = self.base.to_user(self.replicas.position[-1])
            draws.append(user)
            log_prob.append(self.replicas.log_base[-1] - log_det + self.replicas.log_likelihood[-1])
            log_likelihood.append(self.replicas.log_likelihood)
            acceptances.append(acceptance[-1])
        rates = (swaps[0] / swaps[1].clamp(min=1)).numpy()
        stats = {"acceptance": torch.stack(acceptances, 1).numpy()}
        samples = torch.stack(draws, 1).numpy()
        record = torch.stack(log_likelihood, 2)
        verdict = judge(samples, self.path).reliability
        chains = Chains(
            samples, self.path.names, torch.stack(log_prob, 1).numpy(), record[-1].numpy(), stats=stats, reliability=verdict
        )
        return _result(self.path, chains, self.powers, record, rates, self.possible, self.prior_draws)

    def step(self) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One move of all replicas and one exchange; acceptances of both, and which levels exchanged."""
        d = self.path.features
        old = self.replicas.position
        noise = randn(old.shape, self.generator, dtype=torch.float64)
        moved = old + self.log_scale.exp()[:, None, None] * torch.einsum("kij,kmj->kmi", self.factor, noise)
        moved[0] = self.base.from_user(self.prior.sample(old.shape[1], self.generator).double())
        moved = wrap_angles(moved.view(-1, d), self.circular)
        log_base, log_likelihood = (part.view(old.shape[:2]) for part in self._evaluate(moved))
        proposed = Replicas(moved.view(old.shape), log_base, log_likelihood)
        ratio = log_base - self.replicas.log_base + self.powers[:, None] * (log_likelihood - self.replicas.log_likelihood)
        ratio[0] = torch.where(torch.isfinite(log_likelihood[0]), 0.0, -math.inf)  # the prior, where the likelihood is not zero
        self.prior_draws += ratio.shape[1]
        self.possible += int(torch.isfinite(log_likelihood[0]).sum())
        info = metropolis(ratio, self.generator)
        self.replicas = self.replicas.taken(info.accepted, proposed)
        parity = self.steps % 2
        if self.flows is not None and self.steps % 4 >= 2:
            self.replicas, swapped = exchange_by_flows(
                self.replicas, self.powers, parity, self.flows, self._evaluate, self.generator
            )
        else:
            self.replicas, swapped = exchange(self.replicas, self.powers, parity, self.generator)
        self.steps += 1
        return info.acceptance, (torch.arange(parity, len(self.powers) - 1, 2), swapped)

    def _evaluate(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """ln of the prior in the unconstrained space, and ln L, of rows there."""
        log_base = self.base.log_prob(rows)
        log_likelihood = torch.full_like(log_base, -math.inf)
        inside = torch.isfinite(log_base)
        if bool(inside.any()):
            # Rows come level by level, the posterior's last.
            last = torch.arange(len(rows)) >= len(rows) - len(rows) // len(self.powers)
            log_likelihood[inside] = self.path.log_likelihood_with_holes(self.base.to_user(rows[inside])[0], last[inside])
        return log_base, log_likelihood

    def _adapt(self, acceptance: Tensor, t: int) -> None:
        position = self.replicas.position
        self.log_scale += t**-0.6 * (acceptance.mean(1) - _WANTED)
        _, ladders, d = position.shape
        away = position - position.mean(1, keepdim=True)
        away = wrap_angles(away.reshape(-1, d), self.circular).view(position.shape)
        gain = min(1.0, 4 / (t + 10 * d / ladders + 4))
        self.covariance += gain * (torch.einsum("kmi,kmj->kij", away, away) / (ladders - 1) - self.covariance)
        diagonal = self.covariance.diagonal(dim1=1, dim2=2).clamp(min=1e-300)
        factor, failed = torch.linalg.cholesky_ex(self.covariance + torch.diag_embed(1e-8 * diagonal))
        self.factor = torch.where((failed > 0)[:, None, None], torch.diag_embed(diagonal.sqrt()), factor)

    def _fit_flows(self, kept: Tensor) -> None:
        """A flow a level, in the unconstrained space, from positions ``(levels, steps, ladders, d)``."""
        flows = []
        for rows in kept.flatten(1, 2):
            flow = nsf(self.path.features, layers=_LAYERS, hidden=_HIDDEN, support=self.base.support, generator=self.generator)
            flow.fit_scaling(rows)
            held_out = np.arange(len(rows)) % 10 == 0
            source = ArraySource(rows, train_rows=np.flatnonzero(~held_out), validation_rows=np.flatnonzero(held_out))
            with torch.enable_grad():
                train(flow, source, max_epochs=_EPOCHS, patience=5, random_state=seed_from(self.generator))
            flows.append(copy.deepcopy(flow).double().requires_grad_(False).eval())
        self.flows = flows


def _result(
    path: TemperedPath, chains: Chains, powers: Tensor, record: Tensor, rates: np.ndarray, possible: int, prior_draws: int
) -> TemperedChains:
    """ln Z from ln L ``(levels, ladders, steps)``: the ladders are independent, so their spread is its error.

    The ladder begins at the prior *where the likelihood is not zero*, so that the share of prior draws there comes first.
    """
    gaps = (powers[1:] - powers[:-1])[:, None, None]
    log_weights = gaps * record[:-1]
    flat = log_weights.flatten(1)
    log_ratios = torch.logsumexp(flat, 1) - math.log(flat.shape[1])
    influence = ((log_weights - log_ratios[:, None, None]).exp().mean(2) - 1).sum(0)
    share = max(possible, 1) / prior_draws
    log_z = float(log_ratios.sum()) + math.log(share)
    error = math.hypot(float(influence.std() / math.sqrt(len(influence))), math.sqrt((1 - share) / max(possible, 1)))
    own = [] if chains.reliability is None else list(chains.reliability.reasons)
    reasons = list(own)
    if error > _LARGEST_ERROR:
        reasons.append(f"the error of ln Z is {error:.2g}: run longer, or more ladders")
    worst = int(np.argmin(rates))
    if rates[worst] < _RARE_SWAPS:
        reasons.append(
            f"only {rates[worst]:.1%} of the swaps between powers {float(powers[worst]):.3g} and {float(powers[worst + 1]):.3g} were "
            "accepted: the likelihood may jump there; carry exchanges by flow='auto'"
        )
    missing, holes = path.told(float(chains.stats["acceptance"].mean()))
    verdict = Reliability.from_reasons([*missing, *reasons], [*holes, reach(prior_draws)])
    row = {"log_z": log_z, "log_z_err": error, "ess": 1.0, "pareto_k": -np.inf, "n_evaluations": path.n_evaluations}
    table = pd.DataFrame([row], index=["stepping stones"])
    evidence = Evidence(log_z, error, "stepping stones", 1.0, -np.inf, verdict, table, path.names)
    chains = replace(chains, reliability=Reliability.from_reasons([*missing, *own], holes))
    return TemperedChains(chains, evidence, powers.numpy(), rates, path.n_evaluations, verdict)
