"""Training without integration: regress the velocity, or the noise, at random times of random paths from noise to data."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sbi_flows._random import rand
from sbi_flows.bijections.spline import wrap
from sbi_flows.losses.alignment import aligned
from sbi_flows.losses.base import Batch
from sbi_flows.losses.couplings import Coupling, matched


def flow_matching(
    flow: Any, batch: Batch, generator: torch.Generator, time_exponent: float = 0.0, coupling: str | Coupling | None = None
) -> Tensor:
    """Squared error of the velocity on paths from noise to data, mean over columns, ``(n,)``.

    The path is the flow's own (``cnf(path=...)``); angles move along the shorter arc at constant speed. Its minimum is the mean spread of
    velocities where paths cross, not zero. Times are stratified over the batch.

    Parameters
    ----------
    flow : Flow
        From :func:`sbi_flows.flows.cnf`, or with such a flow inside.
    batch : Batch
        Rows ``x (n, d)`` inside the support, and their ``context (n, c)`` or None.
    generator : torch.Generator
        Draws times and noise.
    time_exponent : float
        Times have the density ``(1 + a) t^a``: above 0 it favours late times, where sharp densities take shape.
    coupling : {"independent", "ot", "c2ot", "gibbs"}, callable or None
        Which noise goes with which row, see :mod:`sbi_flows.losses.couplings`; None for the flow's own word, ``cnf(coupling=...)``. All but
        the first straighten paths, for draws in few steps; of large batches, as they match within the batch.

    Examples
    --------
    >>> from sbi_flows.flows import cnf
    >>> flow_matching(cnf(2), Batch(torch.zeros(4, 2)), torch.Generator()).shape
    torch.Size([4])

    References
    ----------
    Lipman et al. 2023, "Flow matching for generative modeling", arXiv:2210.02747; Dax et al. 2023, "Flow matching for scalable
    simulation-based inference", arXiv:2305.17161 (time exponent); Kingma et al. 2021, arXiv:2107.00630 (stratified times).
    """
    inner, context = flow.conditioned(batch.context)
    data = inner.to_unconstrained(batch.x, context)
    t = stratified_times(data, generator, time_exponent)
    noise = inner.base.sample(len(data), generator).to(data)
    if coupling is None and inner.spec.get("coupling") == "aligned":
        coupling = aligned(inner.continuous.net)
    noise, weights = matched(inner, noise, data, context, coupling, generator)
    point, velocity = on_path(inner.continuous, t, data, noise)
    losses = (inner.velocity(t, point, context) - velocity).square().mean(-1)
    return losses if weights is None else losses * weights


def denoising_score_matching(flow: Any, batch: Batch, generator: torch.Generator, time_exponent: float = 0.0) -> Tensor:
    """Squared error of the noise predicted from noisy data, mean over columns, ``(n,)``.

    The score at time t is minus the expected noise over sigma(t), and the velocity of the probability-flow equation is a linear
    function of point and score: the same network serves, so a flow trained by this loss has ``log_prob`` and ``sample`` as any other. It
    weights early times less than :func:`flow_matching` does. Parameters are those of :func:`flow_matching`.

    Raises
    ------
    ValueError
        If the flow has angles: they have no such linear path.

    Examples
    --------
    >>> from sbi_flows.flows import cnf
    >>> denoising_score_matching(cnf(2, path="variance-preserving"), Batch(torch.zeros(4, 2)), torch.Generator()).shape
    torch.Size([4])

    References
    ----------
    Vincent 2011, "A connection between score matching and denoising autoencoders"; Song et al. 2021, "Score-based generative modeling
    through stochastic differential equations", arXiv:2011.13456; Geffner, Papamakarios & Mnih 2023, arXiv:2209.14249 (posteriors).
    """
    inner, context = flow.conditioned(batch.context)
    if inner.continuous.circular:
        raise ValueError(f"Expected no circular columns for score matching; got columns {inner.continuous.circular}. Use flow_matching.")
    data = inner.to_unconstrained(batch.x, context)
    t = stratified_times(data, generator, time_exponent)
    noise = inner.base.sample(len(data), generator).to(data)
    point, _ = on_path(inner.continuous, t, data, noise)
    velocity = inner.velocity(t, point, context)
    alpha, sigma, d_alpha, d_sigma = (part[:, None] for part in inner.continuous.path.coefficients(t))
    # velocity = d_alpha data + d_sigma noise and point = alpha data + sigma noise, solved for the noise.
    predicted = (d_alpha * point - alpha * velocity) / (d_alpha * sigma - alpha * d_sigma)
    return (predicted - noise).square().mean(-1)


def stratified_times(x: Tensor, generator: torch.Generator, exponent: float = 0.0) -> Tensor:
    """``(n,)`` in [0, 1], one in each of n equal parts before the exponent; rows are shuffled already."""
    if exponent < 0:
        raise ValueError(f"Expected time_exponent >= 0; got {exponent}.")
    n = x.shape[0]
    offset = rand((1,), generator, dtype=x.dtype, device=x.device)
    even = torch.remainder(torch.arange(n, dtype=x.dtype, device=x.device) * _SPREAD + offset, 1.0)
    return even if exponent == 0 else even.pow(1 / (1 + exponent))


# Neighbouring rows get distant times, whatever the order of the rows: multiples of the golden ratio fill the circle evenly.
_SPREAD = 0.5 * (math.sqrt(5) - 1)


def on_path(bijection: Any, t: Tensor, data: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Where the path is at times ``t (n,)``, and how fast it moves, both ``(n, d)``."""
    alpha, sigma, d_alpha, d_sigma = (part[:, None] for part in bijection.path.coefficients(t))
    point, velocity = alpha * data + sigma * noise, d_alpha * data + d_sigma * noise
    if not bijection.circular:
        return point, velocity
    real = bijection.net.is_real.mT > 0
    arc = wrap(data - noise)
    return torch.where(real, point, wrap(noise + t[:, None] * arc)), torch.where(real, velocity, arc)
