"""The No-U-Turn sampler: trajectories that end where they would turn back, grown by doubling, all chains in step."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sbi_flows._random import rand
from sbi_flows._validation import positive
from sbi_flows.samplers.gradients import GradientKernel, GradientState, start_phase
from sbi_flows.samplers.kernel import MAX_ENERGY_ERROR, Info
from sbi_flows.samplers.leapfrog import Dynamics, Phase, holes
from sbi_flows.targets import Target


class NUTS(GradientKernel):
    """Trajectories of the length each chain needs, with step size and metric learned in warm-up from all chains together.

    The points of a trajectory are drawn from in proportion to their density, later doublings preferred. Chains whose trajectory has ended
    drop out; the others go on sharing one gradient call a leapfrog.

    Parameters
    ----------
    max_depth : int
        Most doublings of a trajectory; ``Info.saturated`` says where it was met.
    step_size : float or "auto"
        Where warm-up starts from; what it stays at with ``n_warmup=0``. "auto" finds it by a few trial steps.
    target_acceptance : float
        Mean acceptance along trajectories that warm-up tunes the step size to; raise it against divergences.
    metric : {"auto", "dense", "diagonal"}
        Whether correlations are learned: "auto" where there are draws enough for it.
    check : bool
        Whether the gradient is compared with finite differences before the first step, which costs some ten evaluations a column.

    Examples
    --------
    >>> from sbi_flows.samplers import run_chains
    >>> from sbi_flows.targets import from_log_prob
    >>> target = from_log_prob(lambda x: -0.5 * x.square().sum(-1), 2)
    >>> run_chains(NUTS(), target, torch.randn(8, 2), n_steps=100, n_warmup=100, random_state=0).samples.shape
    (8, 100, 2)

    Behind a flow fitted to earlier draws the geometry is nearly that of a normal, whatever the target's; draws come back in the user's own
    parameters, and ``HMC`` and ``MALA`` run there in the same way:

    >>> from sbi_flows.flows import realnvp
    >>> from sbi_flows.targets import pulled_back
    >>> flow = realnvp(2)
    >>> run_chains(NUTS(), pulled_back(target, flow), torch.randn(8, 2), n_steps=20, n_warmup=20, random_state=0).names
    ('x0', 'x1')

    References
    ----------
    Hoffman & Gelman 2014, "The No-U-Turn Sampler", arXiv:1111.4246; Betancourt 2017, "A conceptual introduction to Hamiltonian Monte
    Carlo", arXiv:1701.02434, appendix A (multinomial sampling, the criterion by the sum of momenta).
    """

    def __init__(
        self,
        *,
        max_depth: int = 10,
        step_size: float | str = "auto",
        target_acceptance: float = 0.8,
        metric: str = "auto",
        check: bool = True,
    ):
        super().__init__(step_size, target_acceptance, metric, check)
        self.max_depth = positive("max_depth", max_depth, integer=True)

    def step(self, state: GradientState, target: Target, generator: torch.Generator) -> tuple[GradientState, Info]:
        start = start_phase(state, generator)
        dynamics = Dynamics(target, state.learned.factor)
        tally = _Tally(len(start.log_prob), start.log_prob.device)
        chosen = Phase(*(value.clone() for value in start))
        tree = _Tree(start, start, start, torch.zeros_like(start.log_prob), start.momentum, start.energy, tally.rows)
        for depth in range(self.max_depth):
            right = rand(tree.rows.shape, generator, device=tree.rows.device) < 0.5
            step = torch.where(right, state.learned.step_size, -state.learned.step_size)[:, None]
            branch = _branch(_where(right, tree.right, tree.left), step, 2**depth, tree, dynamics, tally, generator)
            if len(branch.rows) < len(tree.rows):
                tree, right = _pick(tree, branch.rows), right[branch.rows]
            if not len(tree.rows):
                break
            tree = _joined(tree, branch, right, generator)
            for whole, part in zip(chosen, tree.proposal, strict=True):
                whole[tree.rows] = part
            turned = _turns(tree.left.momentum, tree.right.momentum, tree.momentum_sum, dynamics, state.learned.step_size)
            if bool(turned.any()):
                tree = _pick(tree, (~turned).nonzero()[:, 0])
            if not len(tree.rows):
                break
        info = tally.info(start, chosen, tree.rows)
        return state._replace(position=chosen.position, log_prob=chosen.log_prob, gradient=chosen.gradient), info


class _Tree(NamedTuple):
    """Trajectories of the chains that are still growing: their ends, the point drawn from them, ln of their mass, their sum of momenta."""

    left: Phase
    right: Phase
    proposal: Phase
    log_mass: Tensor
    momentum_sum: Tensor
    start_energy: Tensor
    rows: Tensor


class _Branch(NamedTuple):
    """A doubling in the making, of those chains of the tree (``rows``) where it has not failed."""

    end: Phase
    proposal: Phase
    log_mass: Tensor
    momentum_sum: Tensor
    acceptance: Tensor
    start_energy: Tensor
    step: Tensor
    rows: Tensor


class _Tally:
    """What is counted of a step, one entry a chain."""

    def __init__(self, n: int, device: torch.device):
        self.rows = torch.arange(n, device=device)
        self.acceptance = torch.zeros(n, dtype=torch.float64, device=device)
        self.leaves = torch.zeros(n, dtype=torch.int64, device=device)
        self.invalid = torch.zeros(n, dtype=torch.bool, device=device)
        self.divergent = torch.zeros(n, dtype=torch.bool, device=device)

    def add(self, rows: Tensor, acceptance: Tensor, leaves: int) -> None:
        self.acceptance[rows] += acceptance
        self.leaves[rows] += leaves

    def info(self, start: Phase, chosen: Phase, growing: Tensor) -> Info:
        saturated = torch.zeros_like(self.divergent)
        saturated[growing] = True
        return Info(
            acceptance=self.acceptance / self.leaves,
            accepted=(chosen.position != start.position).any(-1),
            invalid=self.invalid,
            n_evaluations=self.leaves,
            n_gradients=self.leaves,
            energy_error=chosen.energy - start.energy,
            divergent=self.divergent,
            saturated=saturated,
        )


def _branch(
    start: Phase, step: Tensor, n_leaves: int, tree: _Tree, dynamics: Dynamics, tally: _Tally, generator: torch.Generator
) -> _Branch:
    """``n_leaves`` leapfrogs on from one end of each trajectory; rows in which some subtree turns, or the energy fails, drop out."""
    local = torch.arange(len(tree.rows), device=tree.rows.device)
    nothing = torch.full_like(start.log_prob, -torch.inf)
    zero = torch.zeros_like(start.log_prob)
    branch = _Branch(start, start, nothing, torch.zeros_like(start.momentum), zero, tree.start_energy, step, local)
    # Of every subtree that has begun and not ended: the momentum of its first leaf, and the sum of those before it, by that leaf's number.
    begun: dict[int, tuple[Tensor, Tensor]] = {}
    for leaf in range(n_leaves):
        before = branch.momentum_sum
        branch, failed = _grown(branch, dynamics, generator)
        if bool(failed.any()):
            lost = tree.rows[branch.rows]
            undefined = holes(branch.end)
            tally.invalid[lost] |= failed & undefined
            tally.divergent[lost] |= failed & ~undefined
        if leaf % 2 == 0:
            begun[leaf] = branch.end.momentum, before
        else:
            failed = failed | _ended_subtrees_turn(begun, leaf, branch, dynamics)
        if bool(failed.any()):
            tally.add(tree.rows[branch.rows[failed]], branch.acceptance[failed], leaf + 1)
            alive = (~failed).nonzero()[:, 0]
            branch = _pick(branch, alive)
            begun = {number: (first[alive], earlier[alive]) for number, (first, earlier) in begun.items()}
            if not len(alive):
                return branch
    tally.add(tree.rows[branch.rows], branch.acceptance, n_leaves)
    return branch


def _grown(branch: _Branch, dynamics: Dynamics, generator: torch.Generator) -> tuple[_Branch, Tensor]:
    """One leaf more; and where the energy has failed."""
    leaf = dynamics.advance(branch.end, branch.step)
    error = leaf.energy - branch.start_energy
    failed = ~((error < MAX_ENERGY_ERROR) & (error > -torch.inf))
    log_mass = torch.where(failed, -torch.inf, -error)
    total = torch.logaddexp(branch.log_mass, log_mass)
    chance = torch.where(failed, 0.0, (log_mass - total).exp())
    taken = rand(chance.shape, generator, dtype=chance.dtype, device=chance.device) < chance
    return branch._replace(
        end=leaf,
        proposal=_where(taken, leaf, branch.proposal),
        log_mass=total,
        momentum_sum=branch.momentum_sum + leaf.momentum,
        acceptance=branch.acceptance + log_mass.clamp(max=0.0).exp(),
    ), failed


def _ended_subtrees_turn(
    begun: dict[int, tuple[Tensor, Tensor]], leaf: int, branch: _Branch, dynamics: Dynamics
) -> Tensor:
    """Whether one of the balanced subtrees whose last leaf is this (odd) one turns back; those never asked for again are forgotten."""
    turned = torch.zeros_like(branch.rows, dtype=torch.bool)
    size = 2
    while (leaf + 1) % size == 0:
        first = leaf + 1 - size
        momentum, before = begun[first]
        turned = turned | _turns(momentum, branch.end.momentum, branch.momentum_sum - before, dynamics, branch.step)
        if first % (2 * size):
            del begun[first]
        size *= 2
    return turned


def _turns(one_end: Tensor, other_end: Tensor, momentum_sum: Tensor, dynamics: Dynamics, step: Tensor) -> Tensor:
    """Whether either end moves against the way between them, which the sum of momenta measures by the trapezoid rule; ``(n,)`` bool.

    On a circle one can go on without ever turning: there, half way round is as far as one gets.
    """
    way = momentum_sum - 0.5 * (one_end + other_end)
    turned = ((one_end * way).sum(-1) <= 0) | ((other_end * way).sum(-1) <= 0)
    round_ = dynamics.goes_round(step * way)
    return turned if round_ is None else turned | round_


def _joined(tree: _Tree, branch: _Branch, right: Tensor, generator: torch.Generator) -> _Tree:
    """The trajectories with their new halves; the point drawn moves into the new half where that has more mass, else by their ratio."""
    chance = (branch.log_mass - tree.log_mass).clamp(max=0.0).exp()
    taken = rand(chance.shape, generator, dtype=chance.dtype, device=chance.device) < chance
    return tree._replace(
        left=_where(right, tree.left, branch.end),
        right=_where(right, branch.end, tree.right),
        proposal=_where(taken, branch.proposal, tree.proposal),
        log_mass=torch.logaddexp(tree.log_mass, branch.log_mass),
        momentum_sum=tree.momentum_sum + branch.momentum_sum,
    )


def _where(mask: Tensor, yes: Phase, no: Phase) -> Phase:
    column = mask[:, None]
    return Phase(*(torch.where(column if a.ndim == 2 else mask, a, b) for a, b in zip(yes, no, strict=True)))


def _pick(record: Any, rows: Tensor) -> Any:
    """The rows of every tensor in a record of records."""
    parts = (value[rows] if isinstance(value, Tensor) else _pick(value, rows) for value in record)
    return type(record)(*parts)
