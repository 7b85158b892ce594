"""emcee's stretch move, by emcee itself."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sbi_flows._random import seed_from
from sbi_flows._validation import positive
from sbi_flows.samplers.kernel import Info
from sbi_flows.targets import Target, circular_columns, wrap_angles


class StretchState(NamedTuple):
    """The ensemble.

    Attributes
    ----------
    position : Tensor (n, d)
    log_prob : Tensor (n,)
    """

    position: Tensor
    log_prob: Tensor


class Stretch:
    """One update of every walker by ``emcee.moves.StretchMove``: half of them along lines through the others, then the other half.

    The chains are walkers of one ensemble, so they are not independent of each other, and ``Chains.ensemble`` says so. Nothing is learned.
    Angles stay in one period, whose ends are walls: a point carried round has another line through its partner, and the move would not
    leave the target as it is.

    Parameters
    ----------
    a : float
        Largest stretch.

    Examples
    --------
    >>> from sbi_flows.samplers import run_chains
    >>> from sbi_flows.targets import from_log_prob
    >>> target = from_log_prob(lambda x: -0.5 * x.square().sum(-1), 2)
    >>> chains = run_chains(Stretch(), target, torch.randn(8, 2), n_steps=50, n_warmup=50, random_state=0)
    >>> chains.ensemble
    True

    References
    ----------
    Goodman & Weare 2010, "Ensemble samplers with affine invariance", CAMCoS 5; Foreman-Mackey, Hogg, Lang & Goodman 2013, "emcee: the
    MCMC hammer", arXiv:1202.3665.
    """

    ensemble = True

    def __init__(self, *, a: float = 2.0):
        self.a = positive("a", a)
        if a <= 1:
            raise ValueError(f"Expected a stretch a above 1; got {a!r}. emcee's own default is 2.")

    def init(self, x: Tensor, target: Target) -> StretchState:
        n, d = x.shape
        if n % 2 or n < 2 * d:
            raise ValueError(
                f"Expected an even number of walkers, at least twice the {d} parameters, for the stretch move; got {n}. "
                "Start more chains, or use RandomWalk()."
            )
        if np.linalg.matrix_rank((x - x[0]).cpu().numpy()) < d:
            raise ValueError(
                f"Expected walkers that span all {d} directions, as stretches never leave their span. Start them at different points, "
                "such as draws of the prior."
            )
        return StretchState(x, target.log_prob(x))

    def step(self, state: StretchState, target: Target, generator: torch.Generator) -> tuple[StretchState, Info]:
        from emcee.model import Model
        from emcee.moves import StretchMove
        from emcee.state import State

        circular = circular_columns(target)
        undefined = torch.zeros(len(state.position), dtype=torch.bool)
        seen = 0

        def log_prob(coords: np.ndarray) -> tuple[np.ndarray, None]:
            nonlocal seen
            x = torch.from_numpy(coords)
            wrapped = wrap_angles(x, circular)
            beyond = ((wrapped - x).abs() > 1e-9).any(dim=1)
            values = target.log_prob(wrapped).masked_fill(beyond, -torch.inf)
            holes = torch.isnan(values) | (values == torch.inf)
            # emcee asks for one half after the other, and does not say for whom: holes are counted, not placed.
            undefined[seen : seen + len(values)] = holes
            seen += len(values)
            return torch.where(holes, -torch.inf, values).numpy(), None

        random = np.random.RandomState(seed_from(generator) % 2**32)
        before = State(state.position.numpy(), log_prob=state.log_prob.numpy(), copy=True)
        after, accepted = StretchMove(a=self.a).propose(Model(log_prob, log_prob, map, random), before)
        moved = torch.from_numpy(accepted)
        once = torch.ones(len(accepted), dtype=torch.int64)
        info = Info(moved.double(), moved, undefined, n_evaluations=once, n_gradients=torch.zeros_like(once))
        return StretchState(torch.from_numpy(after.coords), torch.from_numpy(after.log_prob)), info

    def adapt(self, state: StretchState, info: Info, target: Target, done: float) -> StretchState:
        return state

    def relocate(self, state: StretchState, x: Tensor, log_prob: Tensor, target: Target) -> tuple[StretchState, Tensor]:
        return StretchState(x, log_prob), torch.zeros(len(x), dtype=torch.int64)
