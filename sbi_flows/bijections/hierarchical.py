"""Columns that all objects share, then the same few columns of every object."""

from __future__ import annotations

import torch
from torch import Tensor

from sbi_flows.bijections.base import Bijection


class Hierarchical(Bijection):
    """Shared columns by one bijection, then the columns of each object by another, the same for all, given the shared ones.

    Given shared columns and context the objects are independent: p(shared | c) times the product over i of p(object_i | shared, c_i).
    The number of weights does not depend on the number of objects.

    Parameters
    ----------
    first : Bijection
        Of the ``shared`` leading columns, given the first part of the context.
    each : Bijection
        Of an object's columns, given its own part of the context and the shared columns, in this order.
    shared, objects, columns : int
        Numbers of shared columns, of objects, and of columns of each object.
    width : int
        Columns of each of the ``objects + 1`` parts of the context; 0 for none.

    Examples
    --------
    >>> from sbi_flows.bijections.affine import Affine
    >>> from sbi_flows.bijections.autoregressive import Autoregressive
    >>> both = Hierarchical(Autoregressive(Affine(), 1), Autoregressive(Affine(), 2, 1), shared=1, objects=3, columns=2)
    >>> both.forward_and_log_det(torch.zeros(5, 7))[0].shape
    torch.Size([5, 7])
    """

    def __init__(self, first: Bijection, each: Bijection, *, shared: int, objects: int, columns: int, width: int = 0):
        super().__init__()
        self.first, self.each = first, each
        self.shared, self.objects, self.columns, self.width = shared, objects, columns, width

    def forward_and_log_det(self, x, context=None):
        above, below = self._parts(x, context)
        z, log_det = self.first.forward_and_log_det(x[:, : self.shared], above)
        rows = x[:, self.shared :].reshape(-1, self.columns)
        given = self._given(x[:, : self.shared], below)
        own, own_log_det = self.each.forward_and_log_det(rows, given)
        return self._joined(z, own), log_det + self._total(own_log_det, x)

    def inverse_and_log_det(self, z, context=None):
        above, below = self._parts(z, context)
        x, log_det = self.first.inverse_and_log_det(z[:, : self.shared], above)
        rows = z[:, self.shared :].reshape(-1, self.columns)
        own, own_log_det = self.each.inverse_and_log_det(rows, self._given(x, below))
        return self._joined(x, own), log_det + self._total(own_log_det, z)

    def _parts(self, x: Tensor, context: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The context of the shared columns ``(n, width)``, and of the objects ``(n objects, width)``."""
        if context is None or not self.width:
            return None, None
        context = context.expand(x.shape[0], -1)
        return context[:, : self.width], context[:, self.width :].reshape(-1, self.width)

    def _given(self, shared: Tensor, own: Tensor | None) -> Tensor:
        repeated = shared[:, None].expand(-1, self.objects, -1).reshape(-1, self.shared)
        return repeated if own is None else torch.cat([own, repeated], dim=-1)

    def _joined(self, shared: Tensor, own: Tensor) -> Tensor:
        return torch.cat([shared, own.reshape(shared.shape[0], -1)], dim=-1)

    def _total(self, log_det: Tensor, x: Tensor) -> Tensor:
        return log_det.reshape(x.shape[0], self.objects).sum(-1)
