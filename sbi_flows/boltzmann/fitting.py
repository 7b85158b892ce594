"""The ways to train: likelihood, heights, energies, forces, and annealed draws of the flow itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_flows._validation import positive
from sbi_flows.boltzmann.buffer import AnnealedDraws, ReplayBuffer
from sbi_flows.boltzmann.checks import INTEGRATED, chains_from
from sbi_flows.distributions import NormalMixture
from sbi_flows.flows import Flow, nsf, realnvp
from sbi_flows.losses import (
    Batch,
    Loss,
    alpha_two,
    flow_matching,
    force_matching,
    known_density,
    manifold_flow_matching,
    nll,
    reverse_kl,
    rigid_flow_matching,
)
from sbi_flows.results import FitHistory, Reliability
from sbi_flows.targets import Target
from sbi_flows.training import ArraySource, BatchSource, SimulatorSource, train

COMPONENTS = (1, 16, 64)  # normals in the base that are tried
LEAST_ROWS = 10  # for each number that a mixture fits
WORTHWHILE = 0.02  # nats of held-out likelihood that a larger mixture must gain
BATCH = 256
STEPS_AN_EPOCH = 16
FRESH = 256  # annealed draws an epoch
KEPT = 32  # epochs of them
N_STEPS, MATCHING_STEPS = 400, 3000  # a step of matching integrates nothing and is many times as cheap
MATCHED_ROWS = 50_000  # that matching has without data: a noisy loss needs many
_LONGEST = 100  # moves of the chains that make them
_SLOWER = 0.3  # of the learning rate, for what improves on a fit


@dataclass(frozen=True)
class Problem:
    """What a stage of training gets.

    Attributes
    ----------
    target : Target
    x, held_out : Tensor (n, d), (m, d)
        Configurations of the target, to train on and to judge by.
    n_steps : int
    learning_rate : float
    generator : torch.Generator
    progress : bool
    """

    target: Target
    x: Tensor
    held_out: Tensor
    n_steps: int
    learning_rate: float
    generator: torch.Generator
    progress: bool

    @property
    def _rows(self) -> Tensor:
        return torch.cat([self.x, self.held_out])

    def likelihood(self, flow: Flow) -> FitHistory:
        """Maximum likelihood."""
        return self._on_rows(flow, None, nll)

    def heights(self, flow: Flow) -> FitHistory:
        """Likelihood, and the energies of the configurations."""
        log_p = self.target.log_prob(self._rows)
        return self._on_rows(flow, torch.stack([log_p, torch.ones_like(log_p)], 1), known_density)

    def force_matching(self, flow: Flow) -> FitHistory:
        """Likelihood, and the forces at the configurations."""
        return self._on_rows(flow, self.target.log_prob_and_grad(self._rows)[1], force_matching)

    def matching(self, flow: Flow) -> FitHistory:
        """Flow matching, for continuous flows: nothing is integrated in training."""
        loss = _MATCHING.get(flow.spec.get("architecture", ""), flow_matching)
        return self._on_rows(flow, None, loss, 0.5)

    def mixed(self, flow: Flow) -> FitHistory:
        """Likelihood and energies at the configurations, and energies at the flow's own draws: the last alone would lose what is rare."""
        backward = reverse_kl(self.target.log_prob)
        log_p = self.target.log_prob(self._rows)

        def both(flow: Flow, batch: Batch, generator: torch.Generator) -> Tensor:
            drawn = Batch(flow.base.sample(len(batch.x), generator))
            return known_density(flow, batch, generator) + backward(flow, drawn, generator)

        return self._on_rows(flow, torch.stack([log_p, torch.ones_like(log_p)], 1), both, _SLOWER)

    def reverse_kl(self, flow: Flow) -> FitHistory:
        """Reverse Kullback-Leibler divergence at the flow's own draws, with path gradients."""
        source = SimulatorSource(flow.base.sample, BATCH * STEPS_AN_EPOCH, n_validation=0)
        return self._train(flow, source, reverse_kl(self.target.log_prob), STEPS_AN_EPOCH, _SLOWER)

    def annealing(self, flow: Flow) -> FitHistory:
        """Least alpha = 2 divergence, on annealed draws of the flow kept in a buffer."""
        source = ReplayBuffer(AnnealedDraws(self.target, flow), BATCH * STEPS_AN_EPOCH, FRESH, KEPT * FRESH)
        return self._train(flow, source, alpha_two, STEPS_AN_EPOCH, _SLOWER)

    def _on_rows(self, flow: Flow, known: Tensor | None, loss: Loss, rate: float = 1.0) -> FitHistory:
        n, m = len(self.x), len(self.held_out)
        source = ArraySource(self._rows, known, train_rows=np.arange(n), validation_rows=np.arange(n, n + m))
        return self._train(flow, source, loss, max(1, round(len(self.x) / BATCH)), rate)

    def _train(self, flow: Flow, source: BatchSource, loss: Loss, steps_an_epoch: int, rate: float) -> FitHistory:
        return train(
            flow,
            source,
            loss=loss,
            batch_size=BATCH,
            max_epochs=max(1, round(self.n_steps / steps_an_epoch)),
            learning_rate=rate * self.learning_rate,
            weight_decay=0.0,
            random_state=self.generator,
            progress=self.progress,
        )


_MATCHING: dict[str, Loss] = {
    "manifold_flow": manifold_flow_matching,
    "rigid_flow": rigid_flow_matching,
    "free_rigid_flow": rigid_flow_matching,
}

# Stages of each method: those after the first begin from its fit, and are undone where they make it worse.
STAGES: dict[str, tuple[Callable[[Problem, Flow], FitHistory], ...]] = {
    "annealing": (Problem.heights, Problem.annealing),
    "heights": (Problem.heights,),
    "likelihood": (Problem.likelihood,),
    "reverse_kl": (Problem.reverse_kl,),
    "mixed": (Problem.likelihood, Problem.mixed),
    "matching": (Problem.matching,),
    "force_matching": (Problem.force_matching,),
}


def method_for(method: str, flow: Flow | None, data: bool) -> str:
    """What "auto" means: matching for flows that are integrated, else heights, and annealing where there are no data."""
    if method != "auto":
        return method
    if flow is not None and flow.spec.get("architecture") in INTEGRATED:
        return "matching"
    return "heights" if data else "annealing"


def undone(history: FitHistory) -> FitHistory:
    """A history whose weights are not kept: what was wrong with it is told, and says nothing about the flow."""
    verdict = history.reliability
    notes = [*verdict.notes, *(f"in training that was undone: {reason}" for reason in verdict.reasons)]
    return dataclasses.replace(history, reliability=Reliability.from_reasons([], notes))


def steps_for(n_steps: int | str, method: str) -> int:
    """What "auto" means."""
    if n_steps == "auto":
        return MATCHING_STEPS if method == "matching" else N_STEPS
    return int(positive("n_steps", n_steps, integer=True))


def more_rows(target: Target, x: Tensor, generator: torch.Generator) -> Tensor:
    """Annealed particles ``x (n, d)`` and where chains at the target go from them, some MATCHED_ROWS ``(m, d)``.

    Chains keep the shares that annealing gave to states; what they add is what each state looks like.
    """
    moves = min(_LONGEST, 2 * round(MATCHED_ROWS / len(x)))
    return x if moves < 2 else torch.cat([x, chains_from(target, x, moves, generator).flatten(0, 1)])


def started_flow(method: str, x: Tensor, held_out: Tensor, settings: Mapping[str, Any], generator: torch.Generator) -> Flow:
    """A coupling flow on the base, a normal or a mixture of normals, of the best held-out likelihood before training."""
    best: Flow | None = None
    best_score = -np.inf
    for components in COMPONENTS:
        if components > 1 and 2 * components * x.shape[1] * LEAST_ROWS > len(x):
            break
        base: Any = "normal" if components == 1 else {"name": "mixture", "components": components}
        # Forces are matched by second derivatives, which splines do not have.
        flow = (
            realnvp(x.shape[1], base=base, generator=generator, **settings)
            if method == "force_matching"
            else nsf(x.shape[1], autoregressive=False, base=base, generator=generator, **settings)
        )
        flow.fit_scaling(x)
        with torch.no_grad():
            if isinstance(flow.base, NormalMixture):
                flow.base.fit(flow.to_base(x)[0], generator=generator)
            score = float(flow.log_prob(held_out).mean())
        if best is None or score > best_score + WORTHWHILE:
            best, best_score = flow, score
        if components > 1 and not isinstance(flow.base, NormalMixture):
            break  # angles have no mixture
    if best is None:
        raise ValueError("Expected some rows to start a flow from.")
    return best
