"""Several flows of one architecture as one: their parameters in a single (members, P) tensor, their losses in one call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from sbi_flows.flows import Flow, Together, can_go_together
from sbi_flows.losses import Batch, Loss, nll
from sbi_flows.training.sources import ArraySource, BatchSource

# On a CPU vmap costs more for two members than calling them in turn, and less from three on (benchmarks/ensembles.py).
_FEW_FOR_VMAP_ON_CPU = 2


class StackedFlows:
    """The trainable parameters of ``members`` flows as one matrix, so that clipping, skipping and optimising are single kernels.

    Parameters
    ----------
    flows : sequence of nn.Module
        Same architecture, dtype and device. They belong to this object until ``release``.
    loss : callable
        ``loss(flow, batch, generator) -> (n,)``.

    Attributes
    ----------
    values : Tensor (members, P)
        All trainable parameters.
    gradient : Tensor (members, P)
        Where ``backward`` puts its result.
    members : int
    how : str
        "together" (as one flow with stacked weights), "vmap" (the same for any module) or "in turn".
    """

    def __init__(self, flows: Sequence[nn.Module], loss: Loss):
        self.flows = list(flows)
        self._check_alike()
        self._names = [name for name, p in self.flows[0].named_parameters() if p.requires_grad]
        first = dict(self.flows[0].named_parameters())
        self._shapes = [first[name].shape for name in self._names]
        self.values = torch.stack([self._flatten(flow) for flow in self.flows])
        self.gradient = torch.zeros_like(self.values)
        self.members = len(self.flows)
        self._loss = loss
        self._entered = False
        self._leaves = self._prepare()

    def losses(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Loss of every row under every member, ``(members, n)``.

        Rows of ``batch`` are shared by all members, or have a leading axis of members (which one flow alone has not).
        """
        if self.how == "together":
            rows, context = (batch.x, batch.context) if self._entered else self._entering(batch.x, batch.context)
            return -self._together.log_prob(rows, context)
        if self.how == "in turn":
            own = _split(batch, self.members) if batch.x.dim() > 2 else [batch] * self.members
            return torch.stack([self._loss(flow, rows, generator) for flow, rows in zip(self.flows, own, strict=True)])
        axes = tuple(0 if part is not None and batch.x.dim() > 2 else None for part in batch)
        call = vmap(self._member_loss, in_dims=(0, 0, axes, None), randomness="different")
        parameters = dict(zip(self._keys, self._leaves, strict=True))
        return call(parameters, self._constants, tuple(batch), generator)

    def entering(self, source: BatchSource) -> BatchSource:
        """``source`` with supports and standardisation applied to its rows once for all, where it keeps them and members go together."""
        self._entered = self.how == "together" and isinstance(source, ArraySource)
        return source.mapped(self._together.entered) if self._entered and isinstance(source, ArraySource) else source

    def _entering(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        rows, given = self._together.entered(x.flatten(0, -2), None if context is None else context.flatten(0, -2))
        return rows.view(*x.shape[:-1], -1), None if given is None else given.view(*x.shape[:-1], -1)

    def multiply_adds(self, batch: Batch) -> int:
        """The size of one evaluation of ``batch`` by all members, roughly: one multiply-add a row and parameter."""
        return batch.x.shape[-2] * self.values.numel()

    def backward(self, losses: Tensor) -> None:
        """Put the gradient of each member's own loss, ``losses (members,)``, into its row of ``gradient``."""
        gradients = torch.autograd.grad(losses.sum(), self._leaves, allow_unused=True, materialize_grads=True)
        if self.how != "in turn":
            torch.cat([g.reshape(self.members, -1) for g in gradients], dim=1, out=self.gradient)
        else:
            torch.cat([g.reshape(-1) for g in gradients], out=self.gradient.view(-1))

    @contextmanager
    def holding(self, values: Tensor) -> Iterator[None]:
        """The flows with other ``values (members, P)`` for a while."""
        own = self.values.detach().clone()
        with torch.no_grad():
            self.values.copy_(values)
        try:
            yield
        finally:
            with torch.no_grad():
                self.values.copy_(own)

    @torch.no_grad()
    def write(self, values: Tensor) -> None:
        """Give every flow the parameters in its row of ``values (members, P)``."""
        self.values.copy_(values)
        if self.how != "in turn":
            for m, flow in enumerate(self.flows):
                own = dict(flow.named_parameters())
                for name, leaf in zip(self._names, self._leaves, strict=True):
                    own[name].copy_(leaf[m])

    def release(self) -> None:
        """Give the flows parameters of their own again."""
        if self.how == "in turn":
            for flow in self.flows:
                own = dict(flow.named_parameters())
                for name in self._names:
                    own[name].data = own[name].data.clone()

    def constants(self) -> dict[str, Tensor]:
        """Buffers and frozen parameters of all members, ``member.name`` to tensor: what a checkpoint needs besides ``values``."""
        return {f"{m}.{name}": value for m, flow in enumerate(self.flows) for name, value in self._constants_of(flow).items()}

    def refresh_constants(self) -> None:
        """Read the flows' buffers again, after they were changed in place."""
        if self.how == "vmap":
            self._stack_constants()

    def _check_alike(self) -> None:
        def signature(flow: nn.Module) -> dict:
            return {name: (value.shape, value.dtype, value.device) for name, value in flow.state_dict().items()}

        first = signature(self.flows[0])
        for m, flow in enumerate(self.flows[1:], 1):
            if signature(flow) != first:
                raise ValueError(
                    f"Expected flows of one architecture, dtype and device to train together; flow {m} differs from flow 0. "
                    "Build them by the same call, or train them one by one."
                )
        dtypes = {p.dtype for p in self.flows[0].parameters() if p.requires_grad}
        if len(dtypes) != 1:
            raise ValueError(f"Expected a flow with trainable parameters of one dtype; got {sorted(map(str, dtypes)) or 'none'}.")

    def _flatten(self, flow: nn.Module) -> Tensor:
        own = dict(flow.named_parameters())
        return torch.cat([own[name].detach().reshape(-1) for name in self._names])

    def _views(self, matrix: Tensor) -> list[Tensor]:
        parts = matrix.detach().split([shape.numel() for shape in self._shapes], dim=1)
        return [part.unflatten(1, shape) if shape else part[:, 0] for part, shape in zip(parts, self._shapes, strict=True)]

    def _constants_of(self, flow: nn.Module) -> dict[str, Tensor]:
        frozen = {name: p.detach() for name, p in flow.named_parameters() if not p.requires_grad}
        return {**frozen, **dict(flow.named_buffers())}

    def _prepare(self) -> list[Tensor]:
        """Choose how members are called; their parameters, which gradients are taken for."""
        few = _FEW_FOR_VMAP_ON_CPU if self.values.device.type == "cpu" else 1
        if self._loss is nll and can_go_together(self.flows):
            self.how = "together"
            leaves = [nn.Parameter(view) for view in self._views(self.values)]
            self._together = Together(cast(list[Flow], self.flows), dict(zip(self._names, leaves, strict=True)))
            return list(leaves)
        self.how = "vmap" if self.members > few else "in turn"
        return self._prepare_vmap() if self.how == "vmap" else self._attach()

    def _attach(self) -> list[Tensor]:
        """Let the flows' parameters live in ``values``: then each is called as it is, with no stacking and no vmap."""
        leaves: list[Tensor] = []
        for m, flow in enumerate(self.flows):
            own = dict(flow.named_parameters())
            for name, view in zip(self._names, self._views(self.values), strict=True):
                own[name].data = view[m]
                leaves.append(own[name])
        return leaves

    def _prepare_vmap(self) -> list[Tensor]:
        skeleton = _LossModule(self.flows[0], self._loss)
        self._keys = [f"flow.{name}" for name in self._names]
        self._stack_constants()

        def member_loss(parameters: dict, constants: dict, batch: tuple, generator: torch.Generator) -> Tensor:
            return functional_call(skeleton, (parameters, constants), (batch, generator))

        self._member_loss = member_loss
        return [view.requires_grad_() for view in self._views(self.values)]

    def _stack_constants(self) -> None:
        per_flow = [self._constants_of(flow) for flow in self.flows]
        self._constants = {f"flow.{name}": torch.stack([constants[name] for constants in per_flow]) for name in per_flow[0]}


def _split(batch: Batch, members: int) -> list[Batch]:
    """The rows of each member, from parts with a leading axis of members."""
    parts = [[None] * members if part is None else part.unbind(0) for part in batch]
    return [Batch(*own) for own in zip(*parts, strict=True)]


class _LossModule(nn.Module):
    """A loss as a module's ``forward``, the form that ``functional_call`` takes."""

    def __init__(self, flow: nn.Module, loss: Loss):
        super().__init__()
        self.flow = flow
        self._loss = loss

    def forward(self, batch: tuple, generator: torch.Generator) -> Tensor:
        return self._loss(self.flow, Batch(*batch), generator)
