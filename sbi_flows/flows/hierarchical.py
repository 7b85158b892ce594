"""A flow for hierarchical models: parameters that all objects share, and a few of each object's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sbi_flows.bijections.autoregressive import Autoregressive
from sbi_flows.bijections.base import Bijection, Chain
from sbi_flows.bijections.hierarchical import Hierarchical
from sbi_flows.bijections.linear import LULinear
from sbi_flows.bijections.spline import Spline
from sbi_flows.bijections.support import parse_support
from sbi_flows.flows.base import Flow
from sbi_flows.flows.parts import base_for, spec_of


def hierarchical(
    features: int,
    context: int = 0,
    *,
    objects: int,
    columns: int = 1,
    layers: int = 3,
    hidden: Sequence[int] = (64, 64),
    bins: int = 8,
    bound: float = 5.0,
    support=None,
    base: str | Mapping[str, Any] = "normal",
    scaling: str = "standard",
    generator: torch.Generator | None = None,
) -> Flow:
    """Spline flow of shared columns, then of every object's columns given these: one set of weights for all objects.

    Parameters
    ----------
    features : int
        Shared columns, at least one, followed by ``columns`` of each object in turn.
    context : int
        0, or a multiple of ``objects + 1``: equal parts for the shared columns and for each object, as
        :class:`sbi_flows.embeddings.ObjectEmbedding` gives.
    objects, columns : int
        How many objects, and columns of each.
    layers, hidden, bins, bound, support, base, generator
        As in :func:`nsf`; angles are not supported.
    scaling : str
        "standard" or "none"; whitening would mix the objects.

    Examples
    --------
    >>> flow = hierarchical(7, 16, objects=3, columns=2)
    >>> flow.sample(4, torch.zeros(1, 16)).shape
    torch.Size([4, 7])
    """
    spec = spec_of(hierarchical, locals())
    shared = features - objects * columns
    if objects < 1 or columns < 1 or shared < 1 or context % (objects + 1):
        raise ValueError(
            f"Expected features = shared + objects x columns with at least one shared, and a context of objects + 1 equal parts; got "
            f"features={features}, objects={objects}, columns={columns}, context={context}."
        )
    parsed = parse_support(spec["support"], features)
    if scaling == "whiten" or any(column.kind == "circular" for column in parsed):
        raise ValueError(f"Expected no angles and scaling 'standard' or 'none'; got scaling={scaling!r} and support={spec['support']}.")
    width = context // (objects + 1)
    first = _chain(shared, width, spec, generator)
    each = _chain(columns, width + shared, spec, generator)
    bijection = Hierarchical(first, each, shared=shared, objects=objects, columns=columns, width=width)
    return Flow(
        parsed,
        bijection,
        base_for(spec["base"], features, list(range(features)), generator),
        context=context,
        scaling=scaling,
        spec=spec,
    )


def _chain(features: int, context: int, spec: Mapping[str, Any], generator: torch.Generator | None) -> Bijection:
    chain: list[Bijection] = []
    for layer in range(spec["layers"]):
        if layer and features > 1:
            chain.append(LULinear(features))
        order = list(range(features)) if layer % 2 == 0 else list(reversed(range(features)))
        spline = Spline(spec["bins"], spec["bound"])
        chain.append(Autoregressive(spline, features, context, hidden=spec["hidden"], order=order, generator=generator))
    return Chain(chain)
