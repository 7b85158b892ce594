"""Densities of discrete and continuous columns together: the discrete ones one after another, then a flow given them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from sbi_flows._random import rand
from sbi_flows.bijections.support import parse_support
from sbi_flows.flows.base import Flow
from sbi_flows.flows.partly_discrete import PartlyDiscrete, continuous_part
from sbi_flows.nn import ResidualNet

_SAME = 1e-6  # a value is a category when it is this near to it, in units of the distance between categories
_MOST = 1000  # categories of one column


class MixedFlow(PartlyDiscrete):
    """A density over discrete and continuous columns; :func:`mixed` makes one.

    It factors as p(k_1) p(k_2 | k_1) ... p(y | k), where k are the discrete columns in their order and y the continuous ones. Its value
    is a probability of the former times a density of the latter: it sums and integrates to one.

    Parameters
    ----------
    features, context : int
    discrete : mapping of int to sequence of float
        The values of each discrete column.
    continuous : Flow or None
        Of the other columns, given the context and a column of zeros and ones for each category.
    hidden : sequence of int
    spec : dict
    generator : torch.Generator, optional

    Attributes
    ----------
    features, context_features : int
    spec : dict
    columns : tuple of ColumnSupport
        Where the columns live; discrete ones count as real.
    discrete : list of int
        The discrete columns.
    """

    def __init__(
        self,
        features: int,
        context: int,
        discrete: Mapping[int, Sequence[float]],
        continuous: Flow | None,
        hidden: Sequence[int],
        spec: Mapping[str, Any],
        generator: torch.Generator | None = None,
    ):
        super().__init__(features, context, discrete, continuous, spec)
        self.discrete = list(discrete)
        self.values = [tuple(values) for values in discrete.values()]
        sizes = [len(values) for values in self.values]
        nets = [ResidualNet(sum(sizes[:i]), size, hidden, context, generator) for i, size in enumerate(sizes)]
        self.nets = cast(Sequence[ResidualNet], nn.ModuleList(nets))

    def fit_scaling(
        self, x: Tensor, context: Tensor | None = None, weights: Tensor | None = None, *, regress: bool = True
    ) -> MixedFlow:
        """Set the standardisation, and start from the frequencies of the categories.

        Parameters
        ----------
        x : Tensor (n, features)
        context : Tensor (n, c), optional
        weights : Tensor (n,), optional
        regress : bool
            As in :meth:`sbi_flows.flows.Flow.fit_scaling`.

        Raises
        ------
        ValueError
            If a discrete column has a value that is none of its categories.
        """
        x = x.double()
        choices = self._choices(x)
        w = torch.ones(len(x), dtype=torch.float64, device=x.device) if weights is None else weights.to(x)
        for j, values, chosen, net in zip(self.discrete, self.values, choices, self.nets, strict=True):
            unknown = torch.nonzero(chosen.sum(1) == 0)[:, 0]
            if len(unknown):
                raise ValueError(
                    f"Expected column {j} to hold {_listed(values)}; got {len(unknown)} other values, the first "
                    f"{float(x[unknown[0], j]):g} in row {int(unknown[0])}. List every value it can have."
                )
            # One more row of each category: what has not been seen is not impossible.
            share = (w[:, None] * chosen).sum(0) + w.mean()
            net.out_bias.data.copy_(torch.log(share / share.sum())[:, None])
        if self.context_scaling is not None and context is not None:
            self.context_scaling.fit(context.double(), None if weights is None else w)
        if self.continuous is not None:
            given = self._given(choices, context, len(x))
            self.continuous.fit_scaling(x[:, self.rest], given, weights, regress=regress)
        return self

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log of probability times density ``(n,)``; -inf where a discrete column has another value than its categories."""
        x = x.to(self._device)
        choices = self._choices(x)
        scaled = self._scaled(context)
        total = torch.zeros_like(x[:, 0])
        for i, chosen in enumerate(choices):
            total = total + (self._log_probabilities(i, choices[:i], scaled, len(x)) * chosen).sum(1)
            total = torch.where(chosen.sum(1) > 0, total, -math.inf)
        if self.continuous is None:
            return total
        return total + self.continuous.log_prob(x[:, self.rest], self._given(choices, context, len(x)))

    @torch.no_grad()
    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws and their log density, ``(n, features)`` and ``(n,)``."""
        scaled = self._scaled(context)
        x = torch.empty(n, self.features, dtype=torch.float64, device=self._device)
        total = torch.zeros(n, dtype=torch.float64, device=self._device)
        choices: list[Tensor] = []
        for i, (j, values) in enumerate(zip(self.discrete, self.values, strict=True)):
            log_probabilities = self._log_probabilities(i, choices, scaled, n)
            edges = log_probabilities.exp().cumsum(1)
            u = rand((n, 1), generator, dtype=torch.float64, device=self._device) * edges[:, -1:]
            picked = (u >= edges).sum(1).clamp(max=len(values) - 1)
            choices.append(nn.functional.one_hot(picked, len(values)).double())
            x[:, j] = torch.tensor(values, dtype=torch.float64, device=self._device)[picked]
            total += log_probabilities.gather(1, picked[:, None])[:, 0]
        if self.continuous is not None:
            given = self._given(choices, context, n)
            drawn, log_prob = self.continuous.sample_and_log_prob(n, given, generator=generator, dtype=torch.float64)
            x[:, self.rest] = drawn
            total += log_prob
        return x, total

    def _seen_by_rest(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self._given(self._choices(x), context, len(x))

    def _choices(self, x: Tensor) -> list[Tensor]:
        """For each discrete column ``(n, k)`` ones and zeros; only zeros where the value is no category."""
        found = []
        for j, values in zip(self.discrete, self.values, strict=True):
            tolerance = _SAME * min((b - a for a, b in pairwise(values)), default=1.0)
            found.append(torch.stack([((x[:, j] - value).abs() <= tolerance).double() for value in values], dim=1))
        return found

    def _log_probabilities(self, i: int, before: Sequence[Tensor], scaled: Tensor | None, n: int) -> Tensor:
        """Of the categories of the i-th discrete column given those before it, ``(n, k)`` in float64."""
        dtype = self.nets[i].out_bias.dtype
        given = None if scaled is None else scaled.to(dtype).T
        inputs = torch.cat(list(before), dim=1).to(dtype).T if before else torch.empty(0, n, dtype=dtype, device=self._device)
        return torch.log_softmax(self.nets[i](inputs, given).T.double(), dim=1)

    def _given(self, choices: Sequence[Tensor], context: Tensor | None, n: int) -> Tensor:
        """The context of the continuous part."""
        parts = list(choices)
        if context is not None:
            parts = [context.to(choices[0]).expand(n, -1), *parts]
        return torch.cat(parts, dim=1)


def mixed(
    features: int,
    context: int = 0,
    *,
    discrete: Any,
    flow: str = "nsf",
    layers: int = 5,
    hidden: Sequence[int] = (64, 64),
    support=None,
    generator: torch.Generator | None = None,
) -> MixedFlow:
    """Discrete columns, autoregressive, and a flow of the other columns given them.

    Parameters
    ----------
    features, context : int
        Columns of x, and of the context (0 for none).
    discrete : mapping of int to int or sequence of float
        For each discrete column its values, or how many there are (0, 1, 2, ... then). Pairs will do, as in a spec.
    flow : {"nsf", "maf", "realnvp"}
        The continuous part.
    layers, hidden
        Of the continuous part; ``hidden`` of the discrete part as well.
    support : optional
        Of all columns, see :func:`sbi_flows.bijections.support.parse_support`; what it says of discrete columns is not used.
    generator : torch.Generator, optional

    Raises
    ------
    ValueError
        If there is no discrete column (use the flow itself), or one has fewer than two categories or repeats one.

    Examples
    --------
    >>> flow = mixed(2, discrete={0: 3})
    >>> flow.sample(4).shape
    torch.Size([4, 2])
    """
    categories = _categories(dict(discrete), features)
    columns = parse_support(support, features)
    seen = context + sum(len(values) for values in categories.values())
    settings = {"layers": layers, "hidden": hidden, "generator": generator}
    continuous = continuous_part(flow, columns, categories, seen, settings)
    spec = {
        "architecture": "mixed",
        "features": features,
        "context": context,
        "discrete": [[j, list(values)] for j, values in categories.items()],
        "flow": flow,
        "layers": layers,
        "hidden": [int(width) for width in hidden],
        "support": [column.entry for column in columns],
    }
    return MixedFlow(features, context, categories, continuous, hidden, spec, generator)


@dataclass(frozen=True)
class MixedDensity:
    """The parameter ``flow`` of an estimator whose columns are partly discrete: ``ConditionalFlow(flow=MixedDensity({0: 3}))``.

    Layers, hidden widths and support are those of the estimator.

    Parameters
    ----------
    discrete : mapping of int to int or sequence of float
        As in :func:`mixed`.
    flow : {"nsf", "maf", "realnvp"}
        The continuous part.

    Examples
    --------
    >>> MixedDensity({0: 3})(2, 5).context_features
    5
    """

    discrete: Mapping[int, int | Sequence[float]]
    flow: str = "nsf"

    def __call__(
        self,
        features: int,
        context: int,
        *,
        layers: int = 5,
        hidden: Sequence[int] = (64, 64),
        support=None,
        generator: torch.Generator | None = None,
    ) -> MixedFlow:
        """The density, with fresh weights."""
        settings: dict[str, Any] = {"layers": layers, "hidden": hidden, "support": support, "generator": generator}
        return mixed(features, context, discrete=self.discrete, flow=self.flow, **settings)


def _categories(discrete: Mapping[int, Any], features: int) -> dict[int, tuple[float, ...]]:
    if not discrete:
        raise ValueError("Expected at least one discrete column; got none. Use nsf(), maf() or realnvp() for continuous columns alone.")
    found = {}
    for j in sorted(discrete):
        values = discrete[j]
        listed = sorted(float(v) for v in (range(values) if isinstance(values, int) else values))
        if not 0 <= j < features:
            raise ValueError(f"Expected discrete columns from 0 to {features - 1}; got {j!r}.")
        if not 2 <= len(set(listed)) == len(listed) <= _MOST:
            raise ValueError(f"Expected 2 to {_MOST} different categories of column {j}; got {values!r}. A constant has none: drop it.")
        found[int(j)] = tuple(listed)
    return found


def _listed(values: Sequence[float]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:8])
    return shown if len(values) <= 8 else f"{shown}, ... ({len(values)} values)"
