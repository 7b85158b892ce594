"""The training of a gauge flow: a trivialising map, learned from the action alone."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import torch

from sbi_flows._random import RandomState, torch_generator
from sbi_flows._validation import positive
from sbi_flows.flows import Flow
from sbi_flows.losses import reverse_kl
from sbi_flows.physics.lattice.action import Action
from sbi_flows.physics.lattice.gauge_flow import FluxCoupling, GaugeBijection
from sbi_flows.results import FitHistory, Reliability, WeightedSamples
from sbi_flows.training import SimulatorSource, train

_STEPS_AN_EPOCH = 25
_JUDGED = 2000
_TOGETHER = 0.5


@dataclass(frozen=True)
class Trivialised:
    """How well a flow turns uniform fields into those of a theory.

    Attributes
    ----------
    ess : float
        Effective share of the flow's draws, in (0, 1].
    log_z, log_z_err : float
        ln of the integral of ``exp(-S)``, from the importance weights.
    pareto_k : float
    n_fields : int
        Fields drawn in training; each cost a pass of the flow forth, one back and their gradients.
    seconds : float
    reliability : Reliability
    histories : tuple of FitHistory
        One a stage of the training.
    """

    ess: float
    log_z: float
    log_z_err: float
    pareto_k: float
    n_fields: int
    seconds: float
    reliability: Reliability
    histories: tuple[FitHistory, ...] = field(repr=False)


def trivialise(
    flow: Flow,
    theory: Action,
    *,
    n_steps: int = 600,
    batch_size: int = 32,
    learning_rate: float = 2e-2,
    random_state: RandomState = None,
    progress: bool = False,
) -> Trivialised:
    """Train a flow of :func:`sbi_flows.physics.lattice.gauge_flow`, in place, so that uniform links become fields of the theory.

    By the reverse Kullback-Leibler divergence with path gradients. The finest layer trains first, then the two finest, and so on, all
    of them in the second half: as long as fine layers cannot spread a flux evenly, coarse ones learn to avoid fluxes, and take long
    to forget it. A flow that was trained before, at another coupling or on another lattice, is trained with all layers from the start.

    Parameters
    ----------
    flow : Flow
    theory : Action
        Such as ``U1(8, beta=4.0)``; its fields must be the flow's.
    n_steps : int
        Optimiser steps in all.
    batch_size : int
        Fields of a step.
    learning_rate : float
        Its peak.
    random_state : int, generator or None
    progress : bool
        Show progress bars on standard error.

    Returns
    -------
    Trivialised

    Raises
    ------
    ValueError
        If the flow is of another lattice, or settings are out of range.

    Examples
    --------
    >>> from sbi_flows.physics.lattice import U1, gauge_flow
    >>> flow = gauge_flow(4, block=4, bins=3, hidden=(8,))
    >>> trivialise(flow, U1(4, beta=1.0), n_steps=100, random_state=0).ess > 0.5
    True

    References
    ----------
    Luescher 2010, arXiv:0907.5491; Kanwar et al. 2020, arXiv:2003.06413; Vaitl et al. 2022, arXiv:2207.08219 (path gradients).
    """
    positive("n_steps", n_steps, integer=True)
    positive("batch_size", batch_size, integer=True)
    if flow.features != theory.features or not isinstance(flow.bijection, GaugeBijection):
        raise ValueError(
            f"Expected a flow made by gauge_flow for the {theory.features} numbers of a field of {theory}; got one of {flow.features} "
            f"with a {type(flow.bijection).__name__}. Build gauge_flow(size) of the theory's size, or move one there: resized(flow, size)."
        )
    generator, began = torch_generator(random_state), time.perf_counter()
    loss = reverse_kl(lambda x: -theory.action(x.view(len(x), *theory.shape)))
    histories = []
    for trained, steps in _stages(flow.bijection, n_steps):
        flow.requires_grad_(False)
        for layer in trained:
            layer.requires_grad_(True)
        per_epoch = min(_STEPS_AN_EPOCH, steps)
        source = SimulatorSource(flow.base.sample, batch_size * per_epoch, n_validation=0)
        history = train(
            flow,
            source,
            loss=loss,
            batch_size=batch_size,
            max_epochs=max(1, steps // per_epoch),
            learning_rate=learning_rate,
            weight_decay=0.0,
            random_state=generator,
            progress=progress,
        )
        histories.append(history)
    flow.requires_grad_(False).eval()
    n_fields = batch_size * sum(history.n_steps for history in histories)
    return judge_flow(flow, theory, random_state=generator, histories=tuple(histories), n_fields=n_fields, began=began)


@torch.no_grad()
def judge_flow(
    flow: Flow,
    theory: Action,
    *,
    n_fields: int = 0,
    histories: tuple[FitHistory, ...] = (),
    began: float | None = None,
    random_state: RandomState = None,
) -> Trivialised:
    """The importance weights of a flow's draws, and what they say of it; ``n_fields``, ``histories``, ``began``: of its training."""
    x, log_q = flow.sample_and_log_prob(_JUDGED, generator=torch_generator(random_state), dtype=torch.float64)
    log_weights = -theory.action(x.view(len(x), *theory.shape)) - log_q.double()
    weighted = WeightedSamples(np.empty((_JUDGED, 0)), log_weights.numpy(), ())
    reasons = [*weighted.reliability.reasons, *(reason for history in histories for reason in history.reliability.reasons)]
    return Trivialised(
        ess=weighted.ess / _JUDGED,
        log_z=weighted.log_z,
        log_z_err=weighted.log_z_err,
        pareto_k=weighted.pareto_k,
        n_fields=n_fields,
        seconds=0.0 if began is None else time.perf_counter() - began,
        reliability=Reliability.from_reasons(reasons),
        histories=histories,
    )


def _stages(bijection: GaugeBijection, n_steps: int) -> list[tuple[list[FluxCoupling], int]]:
    """Layers to train and for how many steps, one stage after another."""
    layers = list(bijection.layers)
    untrained = all(bool((layer.net.out_bias == 0).all()) for layer in layers)
    if not untrained or len(layers) == 1:
        return [(layers, n_steps)]
    alone = max(1, round((1 - _TOGETHER) * n_steps / (len(layers) - 1)))
    return [*((layers[-k:], alone) for k in range(1, len(layers))), (layers, max(1, n_steps - alone * (len(layers) - 1)))]
