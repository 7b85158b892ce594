"""Coupling bijections: half of the columns transformed given the other half."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sbi_flows.bijections.autoregressive import Inputs
from sbi_flows.bijections.base import Bijection, Columnwise, Rows, Transformer, circular_columns, merge_rows
from sbi_flows.nn import ResidualNet


class Coupling(Bijection):
    """Some columns transformed given the others: both directions cost one pass of the conditioner.

    Parameters
    ----------
    transformer : Transformer or sequence of Transformer
        One for all columns or one a column (of all ``features``); circular ones mark angles.
    features, context : int
        Columns of x, and of the context. A single column is transformed given the context alone.
    active : sequence of int, optional
        The columns transformed; the second half by default.
    hidden : sequence of int
        Widths of the conditioner's hidden layers.
    generator : torch.Generator, optional
        Draws the initial weights.

    Examples
    --------
    >>> import torch
    >>> from sbi_flows.bijections.affine import Affine
    >>> z, log_det = Coupling(Affine(), 4).forward_and_log_det(torch.randn(10, 4))

    References
    ----------
    Dinh, Sohl-Dickstein & Bengio 2017, "Density estimation using Real NVP", arXiv:1605.08803.
    """

    stackable = True

    def __init__(
        self,
        transformer: Transformer | Sequence[Transformer],
        features: int,
        context: int = 0,
        *,
        active: Sequence[int] | None = None,
        hidden: Sequence[int] = (64, 64),
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        chosen = sorted(range(features // 2, features) if active is None else active)
        if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(range(features)):
            raise ValueError(f"Expected active to name some of the columns 0..{features - 1}, each once; got {chosen}.")
        each = [transformer] * features if isinstance(transformer, Transformer) else list(transformer)
        circular = circular_columns(each, features)
        self._passive = Rows([c for c in range(features) if c not in chosen])
        self._columnwise = Columnwise([each[c] for c in chosen], chosen)
        self._inputs = Inputs(circular, self._passive.columns)
        self.net = ResidualNet(len(self._inputs.owners), self._columnwise.n_params, hidden, context, generator)

    def forward_and_log_det(self, x, context=None):
        return self._apply_transformers("forward", x, context)

    def inverse_and_log_det(self, z, context=None):
        return self._apply_transformers("inverse", z, context)

    def forward_with_score(self, x, score, context=None):
        return self._with_score("forward", x, score, context)

    def inverse_with_score(self, z, score, context=None):
        return self._with_score("inverse", z, score, context)

    def _with_score(self, method, x, score, context):
        """One pass of the conditioner: what it says of the way there is what it would say of the way back."""
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            xt = x.mT
            params = self.net(self._inputs(xt), None if context is None else context.mT)
            blocks, log_det = self._columnwise.apply(method, xt, params)
            pulled, weights = self._columnwise.pull(method, xt, params, blocks, score.mT)
            if len(self._passive):
                (through,) = torch.autograd.grad(params, x, weights, retain_graph=True)
                pulled.append((self._passive, self._passive.take(through.mT) + self._passive.take(score.mT)))
                blocks.append((self._passive, self._passive.take(xt)))
        return merge_rows(blocks).mT, log_det, merge_rows(pulled).mT

    def _apply_transformers(self, method, x, context):
        xt = x.mT
        params = self.net(self._inputs(xt), None if context is None else context.mT)
        blocks, log_det = self._columnwise.apply(method, xt, params)
        if len(self._passive):
            blocks.append((self._passive, self._passive.take(xt)))
        return merge_rows(blocks).mT, log_det
