"""Fast draws from continuous flows that are trained: straighter paths by reflow, one-step samplers by mean flows.

Both learn from pairs of noise and draw that the trained flow makes itself, so they need contexts but no data.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sbi_flows._random import RandomState, torch_generator
from sbi_flows._validation import as_float, positive
from sbi_flows.estimators.ensemble import EmbeddedFlow, FlowEnsemble
from sbi_flows.flows import Flow
from sbi_flows.flows.mean import MeanFlow
from sbi_flows.losses import Loss
from sbi_flows.losses.distilling import mean_flow_matching, reflow_matching
from sbi_flows.ode import Derivative, integrate
from sbi_flows.training import ArraySource, train

_ROWS_AT_ONCE = 4096
_HELD_OUT = 0.1


def reflow(
    model: Any,
    X=None,
    *,
    n_pairs: int = 20_000,
    max_epochs: int | str = "auto",
    learning_rate: float = 3e-3,
    random_state: RandomState = None,
) -> Any:
    """A copy of a fitted model whose continuous flow has straighter paths, and so needs fewer integration steps.

    The flow is trained again, from its own weights, on straight lines between noise and the draws it makes of that noise. What comes
    out is a continuous flow with an exact density of its own, close to the parent's; its number of steps is chosen anew.

    Parameters
    ----------
    model : FlowDensity, ConditionalFlow or flow
        Fitted, with ``flow="cnf"`` of the straight path.
    X : array_like (m, c), optional
        Conditions to learn for, such as those of the training data, used in turn; needed by conditional models.
    n_pairs : int
        Pairs of noise and draw, a tenth of them held out.
    max_epochs, learning_rate, random_state
        As in :func:`sbi_flows.training.train`.

    Returns
    -------
    of the type of ``model``

    Raises
    ------
    TypeError
        If the flow is not continuous.
    ValueError
        If a conditional model gets no ``X``, or its path is not straight.

    Examples
    --------
    >>> from sbi_flows.flows import cnf
    >>> reflow(cnf(2), n_pairs=200, max_epochs=1, random_state=0).sample(3).shape
    torch.Size([3, 2])

    References
    ----------
    Liu, Gong & Liu 2023, "Flow straight and fast: learning to generate and transfer data with rectified flow", arXiv:2209.03003.
    """

    def straightened(flow: Flow, context: Tensor | None, generator: torch.Generator) -> Flow:
        if flow.spec.get("path", "straight") != "straight":
            raise ValueError(f"Expected a flow with path='straight' to straighten; got path={flow.spec['path']!r}.")
        pairs, given = _paths(flow, context, n_pairs, 1, generator)
        out = copy.deepcopy(flow).requires_grad_(True)
        _train(out, reflow_matching, pairs, given, max_epochs, learning_rate, generator)
        held_out = slice(None, _n_held_out(n_pairs))
        with torch.no_grad():
            rows = None if given is None else given[held_out]
            x, _ = out.from_base(pairs[held_out, : flow.features].to(next(out.parameters()).dtype), rows, torch.float64)
        return out.requires_grad_(False).choose_steps(x, rows)

    return _changed(model, X, straightened, random_state)


def distil(
    model: Any,
    X=None,
    *,
    n_steps: int = 1,
    n_pairs: int = 20_000,
    max_epochs: int | str = "auto",
    learning_rate: float = 3e-3,
    random_state: RandomState = None,
) -> Any:
    """A copy of a fitted model that draws in one or a few evaluations of a network: a mean flow.

    Its ``log_prob`` is that of the model it was distilled from, which the draws follow approximately: ``flow_.distance`` tells how
    closely. Do not reweight such draws by that density as if it were their own.

    Parameters
    ----------
    model : FlowDensity, ConditionalFlow or flow
        Fitted, with ``flow="cnf"``.
    X : array_like (m, c), optional
        As in :func:`reflow`.
    n_steps : int
        Evaluations a draw takes.
    n_pairs, max_epochs, learning_rate, random_state
        As in :func:`reflow`.

    Returns
    -------
    of the type of ``model``; a ``MeanFlow`` for a flow

    Raises
    ------
    TypeError, ValueError
        As in :func:`reflow`.

    Examples
    --------
    >>> from sbi_flows.flows import cnf
    >>> fast = distil(cnf(2), n_pairs=200, max_epochs=1, random_state=0)
    >>> fast.sample(3).shape, fast.distance < 1e-3  # a flow that is not trained is the identity, which is easy to learn
    (torch.Size([3, 2]), True)

    References
    ----------
    Geng et al. 2025, "Mean flows for one-step generative modeling", arXiv:2505.13447.
    """
    positive("n_steps", n_steps, integer=True)

    def shortened(flow: Flow, context: Tensor | None, generator: torch.Generator) -> MeanFlow:
        paths, given = _paths(flow, context, n_pairs, n_steps, generator)
        sizes = {key: flow.spec[key] for key in ("layers", "hidden", "embedding") if key in flow.spec}
        own = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
        out = MeanFlow(copy.deepcopy(flow), n_steps=n_steps, generator=own, **sizes)
        _train(out, mean_flow_matching, paths, given, max_epochs, learning_rate, generator)
        held_out = paths[: _n_held_out(n_pairs)].to(next(out.parameters()).dtype)
        ends = held_out[:, : flow.features], held_out[:, -flow.features :]
        return out.requires_grad_(False).measure(*ends, None if given is None else given[: len(held_out)])

    return _changed(model, X, shortened, random_state)


def _changed(model: Any, X, change: Callable, random_state: RandomState) -> Any:
    """A copy of ``model`` with every flow in it changed by ``change(flow, context, generator)``."""
    flow = getattr(model, "flow_", model)
    where = next(flow.parameters()).device
    generator = torch_generator(random_state, where)
    context = None
    if flow.context_features:
        if X is None:
            raise ValueError(f"Expected X (m, {flow.context_features}), conditions to learn for, as the model is conditional; got None.")
        context = as_float(X, "X").to(where, torch.float64)
        if context.ndim != 2 or context.shape[1] != flow.context_features or not len(context):
            raise ValueError(f"Expected X of shape (m, {flow.context_features}); got {tuple(context.shape)}.")
    new = _changed_flow(flow, context, change, generator)
    if flow is model:
        return new
    out = copy.copy(model)
    out.flow_ = new
    return out


def _changed_flow(flow: Any, context: Tensor | None, change: Callable, generator: torch.Generator) -> Any:
    if isinstance(flow, FlowEnsemble):
        return FlowEnsemble([_changed_flow(member, context, change, generator) for member in flow.flows])
    if isinstance(flow, EmbeddedFlow) and context is not None:
        out = copy.copy(flow)
        out._modules = dict(flow._modules)
        with torch.no_grad():
            inner, embedded = flow.conditioned(context)
        out.flow = _changed_flow(inner, embedded, change, generator)
        return out
    if not isinstance(flow, Flow):
        raise TypeError(f"Expected a continuous flow, as cnf() builds; got {type(flow).__name__}.")
    _ = flow.continuous  # says what is wrong with a flow of another kind
    return change(flow, context, generator)


@torch.no_grad()
def _paths(flow: Flow, context: Tensor | None, n: int, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Noise and what the flow makes of it at k even times, ``(n, (k + 1) d)``, and the contexts, in turn from those given."""
    positive("n_pairs", n, integer=True)
    given = None
    if context is not None:
        order = torch.cat([torch.randperm(len(context), generator=generator, device=context.device) for _ in range(-(-n // len(context)))])
        given = context[order[:n]]
    # As many steps as log-densities need, which draws do not; a step of a mean flow is at least one of them.
    fine = max(1, math.ceil(flow.continuous.steps / k))
    pieces = []
    for start in range(0, n, _ROWS_AT_ONCE):
        rows = None if given is None else given[start : start + _ROWS_AT_ONCE]
        points = [flow.base.sample(min(_ROWS_AT_ONCE, n - start), generator)]
        for step in range(k):
            times = [(step + i / fine) / k for i in range(fine + 1)]
            (end,) = integrate(_velocity(flow, rows, points[-1]), (points[-1].mT,), times)
            points.append(flow.continuous.wrapped(end.mT))
        pieces.append(torch.cat(points, dim=-1).double())
    return torch.cat(pieces), given


def _velocity(flow: Flow, context: Tensor | None, like: Tensor) -> Derivative:
    return lambda t, state: (flow.velocity(like.new_full((), t), state[0].mT, context).mT,)


def _n_held_out(n: int) -> int:
    return max(1, round(_HELD_OUT * n))


def _train(flow: Any, loss: Loss, pairs: Tensor, context: Tensor | None, max_epochs, learning_rate: float, generator) -> None:
    rows = torch.arange(len(pairs))
    cut = _n_held_out(len(pairs))
    source = ArraySource(pairs, context, train_rows=rows[cut:], validation_rows=rows[:cut])
    train(flow, source, loss=loss, max_epochs=max_epochs, learning_rate=learning_rate, random_state=generator)
