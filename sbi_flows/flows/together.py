"""Several flows of one architecture as one batched density, for training."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sbi_flows.bijections.base import Bijection
from sbi_flows.flows.base import Flow, rows_at_once
from sbi_flows.nn import MaskedNet, ResidualNet

_CONTAINERS = (nn.ModuleList, nn.ParameterList, MaskedNet, ResidualNet)


class Together(nn.Module):
    """Flows that differ in their trainable parameters only, evaluated by the same few operations as one of them.

    ``vmap`` gives the same for any module, at several times the cost of a step of small networks.

    Parameters
    ----------
    flows : sequence of Flow
        For which :func:`can_go_together` is true.
    parameters : dict of str to Tensor (members, *shape)
        By the names that ``flows[0].named_parameters()`` has; used in place, not copied.
    """

    def __init__(self, flows: Sequence[Flow], parameters: dict[str, nn.Parameter]):
        super().__init__()
        self.members = len(flows)
        # What every member does alike is done by the first one, for all rows together; it is not a submodule of this one.
        self._common = [flows[0]]
        self.bijection = copy.deepcopy(flows[0].bijection)
        for name, stacked in parameters.items():
            path, _, own = name.removeprefix("bijection.").rpartition(".")
            self.bijection.get_submodule(path)._parameters[own] = stacked

    def entered(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What training leaves as it is, done once for all its rows ``(n, d)``.

        Returns
        -------
        rows : Tensor (n, d + 1)
            What the trainable bijections see, and beside it the log-determinant of what came before: -inf outside the support.
        context : Tensor (n, c) or None
            As they see it.
        """
        (flow,) = self._common
        with torch.no_grad():
            outside, y, log_boundary, given = flow.enter(x, context)
        log_boundary = torch.where(outside, -math.inf, log_boundary)
        return torch.cat([y, log_boundary[:, None].to(y.dtype)], dim=1), given

    def log_prob(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        """``(members, n)`` of rows as :meth:`entered` makes them, ``(members, n, d + 1)`` or ``(n, d + 1)`` shared by all members."""
        if torch.is_grad_enabled():
            return self._log_prob(rows, context)
        size = max(1, rows_at_once(rows) // self.members)
        return torch.cat([self._log_prob(*piece) for piece in _pieces(rows, context, size)], dim=1)

    def _log_prob(self, rows: Tensor, context: Tensor | None) -> Tensor:
        columns = rows.expand(self.members, -1, -1).mT.contiguous()
        y, log_boundary = columns[:, :-1].mT, columns[:, -1]
        given = None if context is None else context.expand(self.members, -1, -1)
        z, log_det = self.bijection.forward_and_log_det(y, given)
        log_base = self._common[0].base.log_prob(_flat(z)).view(log_det.shape)
        return (log_base + log_boundary + log_det).to(y.dtype)


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _pieces(x: Tensor, context: Tensor | None, size: int):
    for start in range(0, max(x.shape[-2], 1), size):
        rows = slice(start, start + size)
        yield x[..., rows, :], None if context is None else context[..., rows, :]


def can_go_together(flows: Sequence[nn.Module]) -> bool:
    """Whether all are flows of stackable bijections, on bases without parameters, with the same constants."""
    first = flows[0]
    if not isinstance(first, Flow) or not all(_stackable(module) for module in first.bijection.modules()):
        return False
    if any(not name.startswith("bijection.") or not p.requires_grad for name, p in first.named_parameters()):
        return False
    constants = dict(first.named_buffers())
    return all(torch.equal(value, constants[name]) for flow in flows[1:] for name, value in flow.named_buffers())


def _stackable(module: nn.Module) -> bool:
    return module.stackable if isinstance(module, Bijection) else type(module) in _CONTAINERS
