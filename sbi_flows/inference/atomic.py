"""Further rounds of an ``NPE`` from simulations of parameters that were not drawn from its prior."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_flows._random import seed_from
from sbi_flows._validation import as_float, positive
from sbi_flows.estimators.base import peak_rate, split_rows
from sbi_flows.estimators.ensemble import FlowEnsemble
from sbi_flows.inference.npe import NPE
from sbi_flows.inference.simulations import in_order, read_simulations
from sbi_flows.losses.atomic import atomic
from sbi_flows.training import ArraySource, train


def go_on_by_atoms(npe: NPE, theta: Any, x: Any, n_atoms: int) -> NPE:
    """Add simulations of any parameters to a fitted ``NPE`` and go on from its weights with the atomic loss, in place.

    Raises
    ------
    ValueError
        For an ensemble, or a continuous flow.
    """
    estimator = npe.estimator_
    if isinstance(estimator.flow_, FlowEnsemble) or estimator.flow in ("cnf", "score"):
        raise ValueError(
            "Expected an NPE of one spline or affine flow for the atomic loss. Use truncated proposals with ensembles and continuous flows."
        )
    positive("n_atoms", n_atoms, integer=True)
    new = read_simulations(theta, in_order(x, npe._x_names, "x"), npe.prior_, npe.theta_names_, from_prior=False)
    # One that misses what none before did says nothing about an observation that does not.
    new = new.only(npe.observations_.readable(new.x))
    simulations = new if npe._simulations is None else npe._simulations.followed_by(new)
    rows = npe.observations_.transform(simulations.x)
    # As the estimator's own fits do, so that held-out rows stay held out.
    seeds = np.random.SeedSequence(seed_from(estimator.random_state)).generate_state(3)

    def log_prior(points: Tensor) -> Tensor:
        with torch.no_grad():
            return npe.prior_.log_prob(points.detach().cpu()).to(points.device)

    flow = copy.deepcopy(estimator.flow_).requires_grad_(True).train()
    training, validation = split_rows(simulations.theta, estimator.validation_fraction, int(seeds[0]))
    source = ArraySource(as_float(simulations.theta, "theta"), as_float(rows, "x"), train_rows=training, validation_rows=validation)
    history = train(
        flow,
        source,
        loss=atomic(log_prior, n_atoms),
        max_epochs=estimator.max_epochs,
        batch_size=estimator.batch_size,
        learning_rate=peak_rate(estimator.learning_rate, flow),
        schedule=estimator.schedule,
        patience=estimator.patience,
        random_state=int(seeds[1]),
    )
    estimator.flow_ = flow.requires_grad_(False).eval()
    estimator.history_, estimator.held_out_ = history, validation
    npe._simulations, npe.n_simulations_ = simulations, len(simulations)
    npe.history_ = npe._with_remarks(history, simulations)
    return npe
