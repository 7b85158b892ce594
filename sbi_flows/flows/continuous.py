"""Continuous flows: :func:`cnf`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sbi_flows.bijections.continuous import Continuous
from sbi_flows.bijections.support import parse_support
from sbi_flows.bijections.velocity import VelocityNet
from sbi_flows.flows.base import Flow
from sbi_flows.flows.parts import base_for, spec_of

OBJECTIVES = ("matching", "likelihood")
COUPLING_NAMES = ("independent", "ot", "c2ot", "gibbs")


def cnf(
    features: int,
    context: int = 0,
    *,
    layers: int = 2,
    hidden: Sequence[int] = (128, 128),
    embedding: int = 64,
    path: str = "straight",
    coupling: str = "independent",
    objective: str = "matching",
    steps: int = 8,
    tolerance: float | None = 1e-3,
    support=None,
    scaling: str = "whiten",
    generator: torch.Generator | None = None,
) -> Flow:
    """A continuous flow: data are carried to a normal (angles: to the uniform torus) along the velocity field of a network.

    Train it by :func:`sbi_flows.losses.flow_matching`, which needs no integration, or by likelihood. ``log_prob`` is exact up to an
    integration error that :meth:`Flow.log_prob_error` reports: the divergence is computed, not estimated from noise, at a cost that
    does not grow with the number of columns.

    Parameters
    ----------
    features, context : int
        Columns of x, and of the context (0 for none).
    layers : int
        Blocks of two hidden layers, side by side; their velocities add up.
    hidden : (int, int)
        Widths of the two hidden layers of a block.
    embedding : int
        Width of the joint embedding of time and context.
    path : {"straight", "variance-preserving"}
        Path from noise to data that the network is trained along.
    coupling : {"independent", "ot", "c2ot", "gibbs"}
        Which noise flow matching pairs with which data (:mod:`sbi_flows.losses.couplings`). "ot", for flows without context, and "c2ot",
        with one, give straighter paths and so faster draws, if batches are large.
    objective : {"matching", "likelihood"}
        How estimators train it. Likelihood goes through the solver (:func:`sbi_flows.losses.nll_through_solver`): a step costs some 25
        times as much, so it is for small problems or few epochs.
    steps : int
        Integration steps until :meth:`Flow.choose_steps` chooses.
    tolerance : float or None
        Error aimed at in the log-density, in nats: rows above it are integrated with more steps. None keeps to ``steps``.
    support, scaling, generator
        As in :func:`sbi_flows.flows.nsf`.

    Examples
    --------
    >>> flow = cnf(2, support=["real", "circular"])
    >>> flow.log_prob(flow.sample(5)).shape
    torch.Size([5])

    References
    ----------
    Lipman et al. 2023, "Flow matching for generative modeling", arXiv:2210.02747; Chen & Lipman 2024, "Flow matching on general
    geometries", arXiv:2302.03660 (angles).
    """
    if coupling not in COUPLING_NAMES:
        raise ValueError(f"Expected coupling {', '.join(map(repr, COUPLING_NAMES))}; got {coupling!r}.")
    if objective not in OBJECTIVES:
        raise ValueError(f"Expected objective {' or '.join(map(repr, OBJECTIVES))}; got {objective!r}.")
    spec = spec_of(cnf, locals())
    columns = parse_support(spec["support"], features)
    circular = [i for i, column in enumerate(columns) if column.kind == "circular"]
    real = [i for i in range(features) if i not in circular]
    net = VelocityNet(
        features, context, blocks=layers, hidden=spec["hidden"], circular=circular, embedding=embedding, generator=generator
    )
    bijection = Continuous(net, circular, path=path, steps=steps, tolerance=tolerance)
    return Flow(columns, bijection, base_for("normal", features, real, generator), context=context, scaling=scaling, spec=spec)
