"""Which noise goes with which data: couplings of the two ends of a flow's paths.

A coupling gets a batch of noise and one of data and says which rows belong together, so that paths cross less and a few integration
steps suffice. Data and contexts stay in place and the noise is dealt out to them. For every context the noise must still follow
the base density, as draws will start from that: a coupling that does not see the context breaks this.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sbi_flows.bijections.spline import wrap

_TINY = 1e-30
# Squared distances of standardised contexts below this are rounding.
_SAME = 1e-5


class Ends(NamedTuple):
    """The two ends of a batch of paths, as yet unmatched.

    Attributes
    ----------
    noise, data : Tensor (n, d)
        Draws of the base density, and standardised, unconstrained data.
    context : Tensor (n, c) or None
    angles : Tensor (d,) of bool or None
        Which columns are angles; None for none.
    """

    noise: Tensor
    data: Tensor
    context: Tensor | None = None
    angles: Tensor | None = None


class Coupled(NamedTuple):
    """Noise for each row of data.

    Attributes
    ----------
    noise : Tensor (n, d)
    weights : Tensor (n,) or None
        What the losses of the rows are to be multiplied by; of mean one.
    """

    noise: Tensor
    weights: Tensor | None = None


Coupling = Callable[[Ends, torch.Generator], Coupled]


def independent(ends: Ends, generator: torch.Generator) -> Coupled:
    """Noise as it was drawn: right for every conditional flow."""
    return Coupled(ends.noise)


def optimal_transport(ends: Ends, generator: torch.Generator) -> Coupled:
    """The assignment within the batch of least squared distance.

    It straightens paths and lowers the variance of the loss. It does not look at contexts, so that contexts get noise of a kind, which
    draws do not: with a context it warns.

    Parameters
    ----------
    ends : Ends
        Of n rows. The assignment is solved on the CPU, whatever the device, in a time between n^2 and n^3: some ms for 256 rows.
    generator : torch.Generator
        Not used.

    Examples
    --------
    >>> noise = torch.tensor([[0.0], [1.0]])
    >>> optimal_transport(Ends(noise, torch.tensor([[9.0], [8.0]])), torch.Generator()).noise[:, 0]
    tensor([1., 0.])

    References
    ----------
    Tong et al. 2024, "Improving and generalizing flow-based generative models with minibatch optimal transport", arXiv:2302.00482;
    Pooladian et al. 2023, arXiv:2304.14772.
    """
    if ends.context is not None:
        warnings.warn(
            "Optimal transport that does not see the context gives each context noise of its own kind, and draws will not start "
            "from that: conditional densities come out wrong. Use coupling='c2ot' or 'independent'.",
            UserWarning,
            stacklevel=2,
        )
    return Coupled(_dealt(ends.noise, assign(transport_cost(ends))))


def condition_respecting(ends: Ends, generator: torch.Generator, candidates: float = 0.01) -> Coupled:
    """C2OT: optimal transport that pays for moving noise from one context to another.

    Noise and contexts start out paired at random, and the squared distance of contexts (in standard deviations), times w, is added to
    the cost of a match.
    Where contexts are few and repeat, noise stays within its own; where they are continuous it moves between neighbours. A
    pair is a candidate if its cost is below that of the noise's first match; this falls as w grows, pair by pair at a w that can be
    written down, so the w at which a given share of all pairs are candidates is a quantile.

    Parameters
    ----------
    ends : Ends
        Without a context this is :func:`optimal_transport`.
    generator : torch.Generator
        Not used.
    candidates : float
        Share of the n^2 pairs. Small: noise of the right law for every context, and more of the independent coupling's curvature.
        Contexts with many columns have no neighbours, whatever the share: there this coupling is nearly the independent one.

    References
    ----------
    Cheng & Schwing 2025, "The curse of conditions: analyzing and improving optimal transport for conditional flow-based generation",
    arXiv:2503.10636 (which finds w by bisection).
    """
    return Coupled(_dealt(ends.noise, assign(_cost_with_conditions(ends, candidates))))


def gibbs(ends: Ends, generator: torch.Generator, efficiency: float = 0.5) -> Coupled:
    """No matching: pairs are weighted by the Gibbs kernel of entropic transport of normal noise to normal data.

    For real columns the weight is ``N(z; rho x, 1 - rho^2) / N(z; 0, 1)``, a kernel ``exp(-|x - z|^2 / (2 eps))`` with ``1/eps =
    rho / (1 - rho^2)`` times a function of each end; for angles ``exp(k cos(x - z)) / I0(k)``. Its mean over noise is one for
    every x, so data keep their law in every context; noise, which must be normal, keeps its own as far as the standardised data are normal.
    That is a bias: .02 nats on two moons (``benchmarks/refine.py``). It needs no assignment and so no large batch.

    Parameters
    ----------
    ends : Ends
    generator : torch.Generator
        Not used.
    efficiency : float
        Effective share of the rows, in (0, 1]: for normal data ``(1 - rho^2)^d`` by Mehler's formula, which sets rho.

    References
    ----------
    Calvo-Ordonez et al. 2025, "Weighted conditional flow matching", arXiv:2507.22270.
    """
    x, z = ends.data, ends.noise
    rho = (1 - efficiency ** (1 / x.shape[-1])) ** 0.5
    square = 1 - rho * rho
    each = (rho * x * z - 0.5 * rho * rho * (x.square() + z.square())) / square - 0.5 * float(np.log(square))
    if ends.angles is not None:
        k = torch.full((), rho, dtype=x.dtype, device=x.device)
        each = torch.where(ends.angles, k * torch.cos(x - z) - torch.log(torch.special.i0(k)), each)
    # One far row must not be the whole batch. By Markov's inequality the cap takes at most a twentieth off the mean.
    return Coupled(z, each.sum(-1).exp().clamp(max=20 / efficiency))


COUPLINGS: dict[str, Coupling] = {
    "independent": independent,
    "ot": optimal_transport,
    "c2ot": condition_respecting,
    "gibbs": gibbs,
}


def coupling_named(name: str) -> Coupling:
    """The coupling of this name."""
    if name not in COUPLINGS:
        raise ValueError(f"Expected coupling {', '.join(map(repr, COUPLINGS))}; got {name!r}.")
    return COUPLINGS[name]


def matched(
    flow: Any, noise: Tensor, data: Tensor, context: Tensor | None, coupling: str | Coupling | None, generator: torch.Generator
) -> Coupled:
    """Noise dealt out to the standardised ``data`` of a continuous flow, by its own coupling where None is given."""
    if coupling is None:
        coupling = flow.spec.get("coupling", "independent")
    couple = coupling_named(coupling) if isinstance(coupling, str) else coupling
    angles = flow.continuous.net.is_real[:, 0] == 0 if flow.continuous.circular else None
    # Contexts may come from a network that is being trained; which noise they get is not a function to differentiate.
    return couple(Ends(noise, data, None if context is None else context.detach(), angles), generator)


def transport_cost(ends: Ends) -> Tensor:
    """Squared distances ``(n, n)`` of noise (rows) and data (columns); on the circle along the shorter arc."""
    if ends.angles is None:
        return _squared_distances(ends.noise, ends.data)
    difference = ends.noise[:, None] - ends.data[None]
    return torch.where(ends.angles, wrap(difference), difference).square().sum(-1)


def _cost_with_conditions(ends: Ends, candidates: float) -> Tensor:
    cost = transport_cost(ends)
    if ends.context is None:
        return cost
    context = (ends.context - ends.context.mean(0)) / ends.context.std(0, correction=0).clamp(min=_TINY)
    apart = _squared_distances(context, context)
    apart = torch.where(apart <= _SAME, 0.0, apart)
    return cost + condition_weight(cost, apart, candidates) * apart


def condition_weight(cost: Tensor, apart: Tensor, candidates: float) -> Tensor:
    """The w at which a share ``candidates`` of the pairs has ``cost_ij + w apart_ij <= cost_ii``: () from two (n, n).

    Where more pairs than that share a context, a w that keeps noise within its context.
    """
    if not 0 < candidates < 1:
        raise ValueError(f"Expected candidates, a share of the pairs, in (0, 1); got {candidates!r}.")
    n = cost.shape[-1]
    same = apart <= _SAME
    spaced = torch.where(same, 1.0, apart)
    threshold = torch.where(same, torch.inf, (torch.diagonal(cost)[:, None] - cost) / spaced)
    # A first match is no candidate for a change.
    threshold = torch.where(torch.eye(n, dtype=torch.bool, device=cost.device), -torch.inf, threshold)
    rank = min(max(round((1 - candidates) * n * n), 1), n * n)
    weight = threshold.flatten().kthvalue(rank).values.clamp(min=0.0)
    # With this weight one move between contexts costs more than any assignment within them.
    forbidding = n * cost.amax() / torch.where(same, torch.inf, apart).amin()
    return torch.where(torch.isinf(weight), forbidding, weight)


def assign(cost: Tensor) -> Tensor:
    """For every column of ``cost (n, n)`` its row in the assignment of least total cost, ``(n,)``; also under ``vmap``."""
    return _Assignment.apply(cost.detach())


class _Assignment(torch.autograd.Function):
    @staticmethod
    def forward(cost):
        return torch.from_numpy(_assigned(cost)).to(cost.device)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info, in_dims, cost):
        return _Assignment.apply(cost.movedim(in_dims[0], 0)), 0


def _assigned(cost: Tensor) -> np.ndarray:
    matrix = cost.double().cpu().numpy()
    if matrix.ndim > 2:
        return np.stack([_assigned(one) for one in cost])
    # A row that went to infinity is for the loss to report, not for the assignment.
    return linear_sum_assignment(np.nan_to_num(matrix.T, nan=1e30, posinf=1e30))[1]


def _dealt(noise: Tensor, rows: Tensor) -> Tensor:
    return noise.gather(0, rows[:, None].expand(-1, noise.shape[-1]))


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    cross = a @ b.mT
    return (a.square().sum(-1)[:, None] + b.square().sum(-1)[None] - 2 * cross).clamp(min=0.0)
