"""Flows of finitely many layers: :func:`realnvp`, :func:`maf` and :func:`nsf`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sbi_flows.bijections.affine import Affine
from sbi_flows.bijections.autoregressive import Autoregressive
from sbi_flows.bijections.base import Bijection, Chain, Transformer
from sbi_flows.bijections.coupling import Coupling
from sbi_flows.bijections.linear import LULinear
from sbi_flows.bijections.spline import CircularSpline, Spline
from sbi_flows.bijections.support import parse_support
from sbi_flows.flows.base import Flow
from sbi_flows.flows.parts import base_for, spec_of


def realnvp(
    features: int,
    context: int = 0,
    *,
    layers: int = 8,
    hidden: Sequence[int] = (64, 64),
    bins: int = 8,
    support=None,
    base: str | Mapping[str, Any] = "normal",
    scaling: str = "whiten",
    generator: torch.Generator | None = None,
) -> Flow:
    """Affine couplings with LU mixing: fast in both directions, the least expressive.

    Parameters
    ----------
    features, context : int
        Columns of x, and of the context (0 for none).
    layers : int
    hidden : sequence of int
        Widths of each conditioner's hidden layers.
    bins : int
        Bins of the circular splines that angles get in place of the affine map.
    support : optional
        See :func:`sbi_flows.bijections.support.parse_support`.
    base : str or dict
        "normal", "student-t" or "mixture", or a dict with its ``name`` and parameters: ``{"name": "student-t", "df": 3}``.
    scaling : str
        "whiten", "standard" or "none".
    generator : torch.Generator, optional
        Draws the initial weights.

    Examples
    --------
    >>> flow = realnvp(3)
    >>> flow.log_prob(torch.zeros(2, 3)).shape
    torch.Size([2])
    """
    spec = spec_of(realnvp, locals())
    return _assemble(spec, Affine(), autoregressive=False, generator=generator)


def maf(
    features: int,
    context: int = 0,
    *,
    layers: int = 5,
    hidden: Sequence[int] = (64, 64),
    bins: int = 8,
    support=None,
    base: str | Mapping[str, Any] = "normal",
    scaling: str = "whiten",
    generator: torch.Generator | None = None,
) -> Flow:
    """Affine autoregressive flow with LU mixing; parameters as :func:`realnvp`.

    Examples
    --------
    >>> maf(2, context=1).sample(4, torch.zeros(1, 1)).shape
    torch.Size([4, 2])
    """
    spec = spec_of(maf, locals())
    return _assemble(spec, Affine(), autoregressive=True, generator=generator)


def nsf(
    features: int,
    context: int = 0,
    *,
    layers: int = 5,
    hidden: Sequence[int] = (64, 64),
    bins: int = 8,
    autoregressive: bool = True,
    bound: float = 5.0,
    support=None,
    base: str | Mapping[str, Any] = "normal",
    scaling: str = "whiten",
    generator: torch.Generator | None = None,
) -> Flow:
    """Rational-quadratic spline flow with LU mixing: the default.

    Parameters
    ----------
    bins : int
        Bins of each spline.
    autoregressive : bool
        Autoregressive layers (the better fit a layer), or couplings (faster draws in many dimensions).
    bound : float
        Splines act on [-bound, bound] standard deviations and are linear beyond.
    features, context, layers, hidden, support, base, scaling, generator
        As in :func:`realnvp`.

    Examples
    --------
    >>> flow = nsf(2, support=[(0, 1), "circular"])
    >>> flow.sample(5).shape
    torch.Size([5, 2])
    """
    spec = spec_of(nsf, locals())
    return _assemble(spec, Spline(bins, bound), autoregressive=autoregressive, generator=generator)


def _assemble(spec: dict[str, Any], transformer: Transformer, autoregressive: bool, generator) -> Flow:
    features, context = spec["features"], spec["context"]
    support = parse_support(spec["support"], features)
    real = [i for i, column in enumerate(support) if column.kind != "circular"]
    circle = CircularSpline(spec["bins"])
    each = [circle if column.kind == "circular" else transformer for column in support]
    chain: list[Bijection] = []
    for layer in range(spec["layers"]):
        if layer and len(real) > 1:
            chain.append(LULinear(features, real))
        if autoregressive:
            order = list(range(features)) if layer % 2 == 0 else list(reversed(range(features)))
            chain.append(Autoregressive(each, features, context, hidden=spec["hidden"], order=order, generator=generator))
        else:
            half = range(features // 2, features) if layer % 2 == 0 or features == 1 else range(features // 2)
            chain.append(Coupling(each, features, context, active=half, hidden=spec["hidden"], generator=generator))
    base = base_for(spec["base"], features, real, generator)
    return Flow(support, Chain(chain), base, context=context, scaling=spec["scaling"], spec=spec)
