"""The ways to train: likelihood, energies, forces, and annealed draws of the flow itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_flows.boltzmann.buffer import AnnealedDraws, ReplayBuffer
from sbi_flows.distributions import NormalMixture
from sbi_flows.flows import Flow, nsf
from sbi_flows.losses import alpha_two
from sbi_flows.results import FitHistory
from sbi_flows.targets import Target
from sbi_flows.training import ArraySource, train

COMPONENTS = (1, 16, 64)  # normals in the base that are tried
LEAST_ROWS = 10  # for each number that a mixture fits
WORTHWHILE = 0.02  # nats of held-out likelihood that a larger mixture must gain
BATCH = 256
STEPS_AN_EPOCH = 8
FRESH = 512  # annealed draws an epoch
KEPT = 16  # epochs of them


def started_flow(x: Tensor, held_out: Tensor, settings: Mapping[str, Any], generator: torch.Generator) -> Flow:
    """A coupling flow on the base, a normal or a mixture of normals, of the best held-out likelihood before training."""
    best: Flow | None = None
    best_score = -np.inf
    for components in COMPONENTS:
        if components > 1 and 2 * components * x.shape[1] * LEAST_ROWS > len(x):
            break
        base: Any = "normal" if components == 1 else {"name": "mixture", "components": components}
        flow = nsf(x.shape[1], autoregressive=False, base=base, generator=generator, **settings)
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


def by_likelihood(flow: Flow, x: Tensor, held_out: Tensor, n_steps: int, learning_rate: float, generator, progress: bool) -> FitHistory:
    """Maximum likelihood on draws of the target, the best weights chosen on those held out."""
    rows = torch.cat([x, held_out])
    steps = max(1, round(len(x) / BATCH))
    return train(
        flow,
        ArraySource(rows, train_rows=np.arange(len(x)), validation_rows=np.arange(len(x), len(rows))),
        batch_size=BATCH,
        max_epochs=max(1, round(n_steps / steps)),
        learning_rate=learning_rate,
        weight_decay=0.0,
        random_state=generator,
        progress=progress,
    )


def by_annealing(
    flow: Flow, target: Target, n_steps: int, learning_rate: float, callbacks: Sequence, generator, progress: bool
) -> FitHistory:
    """Least alpha = 2 divergence, on annealed draws of the flow kept in a buffer."""
    source = ReplayBuffer(AnnealedDraws(target, flow), BATCH * STEPS_AN_EPOCH, FRESH, KEPT * FRESH)
    return train(
        flow,
        source,
        loss=alpha_two,
        batch_size=BATCH,
        max_epochs=max(1, round(n_steps / STEPS_AN_EPOCH)),
        learning_rate=learning_rate,
        weight_decay=0.0,
        callbacks=callbacks,
        random_state=generator,
        progress=progress,
    )
