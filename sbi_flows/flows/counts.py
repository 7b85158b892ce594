"""Densities of whole numbers and continuous columns together: probabilities of cells one number after another, then a flow given them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sbi_flows._random import rand
from sbi_flows._validation import choose
from sbi_flows.bijections.linear import Whiten
from sbi_flows.bijections.support import parse_support
from sbi_flows.flows.base import Flow
from sbi_flows.flows.partly_discrete import PartlyDiscrete, continuous_part
from sbi_flows.nn import MaskedNet

UNIT, SQUARE_ROOT, LOGARITHM = "unit", "root", "log"
_SCALES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    UNIT: (lambda k: k, lambda g: g),
    SQUARE_ROOT: (torch.sqrt, torch.square),
    LOGARITHM: (torch.log1p, torch.expm1),
}
_COMPONENTS = 8
_START_WIDTH = 0.4  # of a component, in standard deviations; nine of them so wide, at normal quantiles, are nearly normal
_NARROWEST = 7.0  # soft bound on the logarithm of a width in units of the start


@dataclass(frozen=True)
class CountColumn:
    """A column of whole numbers.

    Parameters
    ----------
    scale : {"unit", "root", "log"}
        The cell of k is ``[g(k), g(k + 1))``, where g is the identity, the square root or ``log(1 + k)``. Counts scatter by about half a
        unit of the root, whatever their rate; the logarithm is for numbers over many orders of magnitude. Both are for numbers from zero.
    lowest, highest : int or None
        Ends beyond which no number lies; their cells reach to infinity, so that probabilities sum to one.

    Examples
    --------
    >>> CountColumn("root", lowest=0)
    CountColumn(scale='root', lowest=0, highest=None)
    """

    scale: str = UNIT
    lowest: int | None = None
    highest: int | None = None


class CountFlow(PartlyDiscrete):
    """A density over columns of whole numbers and continuous ones; :func:`counted` makes one.

    It factors as p(k_1) p(k_2 | k_1) ... p(y | k). The probability of a number is that of its cell under a mixture of logistic densities,
    in closed form: nothing is made continuous by noise, cells of any size are right, and neighbouring numbers learn from one another.

    Parameters
    ----------
    features, context : int
    counts : mapping of int to CountColumn
    continuous : Flow or None
        Of the other columns, given the context and the numbers.
    hidden : sequence of int
    spec : dict
    generator : torch.Generator, optional

    Attributes
    ----------
    features, context_features : int
    spec : dict
    columns : tuple of ColumnSupport
        Where the columns live; whole numbers count as real.
    whole, rest : list of int
        The columns of whole numbers, and the others.

    References
    ----------
    Salimans, Karpathy, Chen & Kingma 2017, "PixelCNN++", arXiv:1701.05517 (mixtures of discretised logistics).
    """

    def __init__(
        self,
        features: int,
        context: int,
        counts: Mapping[int, CountColumn],
        continuous: Flow | None,
        hidden: Sequence[int],
        spec: Mapping[str, Any],
        generator: torch.Generator | None = None,
    ):
        super().__init__(features, context, counts, continuous, spec)
        self.whole = list(counts)
        self._counts = list(counts.values())
        k = len(self.whole)
        degrees = [i + 1 for i in range(k)]
        self.net = MaskedNet(degrees, [degree for degree in degrees for _ in range(3 * _COMPONENTS)], hidden, context, generator)
        self.whiten = Whiten(k, context=context)
        with torch.no_grad():
            quantiles = torch.special.ndtri((torch.arange(_COMPONENTS) + 0.5) / _COMPONENTS)
            start = torch.stack([torch.zeros(_COMPONENTS), quantiles, torch.zeros(_COMPONENTS)])
            self.net.out_bias.copy_(start.flatten().repeat(k)[:, None])

    def fit_scaling(
        self, x: Tensor, context: Tensor | None = None, weights: Tensor | None = None, *, regress: bool = True
    ) -> CountFlow:
        """Set the standardisation from rows ``x (n, features)``: regression on the context and on the numbers before, on their scales.

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
            If a column of whole numbers holds another value, or one beyond its ends.
        """
        x = x.double()
        for j, column in zip(self.whole, self._counts, strict=True):
            strange = torch.nonzero(~_possible(x[:, j], *_ends(column)))[:, 0]
            if len(strange):
                raise ValueError(
                    f"Expected column {j} to hold whole numbers {_span(column)}; got {float(x[strange[0], j]):g} in row {int(strange[0])}."
                )
        own = None if weights is None else weights.double()
        scaled = None
        if self.context_scaling is not None and context is not None:
            self.context_scaling.fit(context.double(), own)
            scaled = self._scaled(context)
        low, width = self._cells(x)
        self.whiten.fit(low + width / 2, own, scaled if regress else None)
        if self.continuous is not None:
            given = self._given(x, self._heights(low + width / 2, scaled), context)
            self.continuous.fit_scaling(x[:, self.rest], given, weights, regress=regress)
        return self

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log of probability times density ``(n,)``; -inf where a number is not whole or beyond its ends."""
        x = x.to(self._device, torch.float64)
        scaled = self._scaled(context)
        low, width = self._cells(x)
        heights = self._heights(low + width / 2, scaled)
        total = self._log_mass(x, width * self.whiten.matrix.diagonal(), heights, self._mixtures(heights, scaled)).sum(1)
        if self.continuous is None:
            return total
        return total + self.continuous.log_prob(x[:, self.rest], self._given(x, heights, context))

    @torch.no_grad()
    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws and their log density, ``(n, features)`` and ``(n,)``."""
        x = torch.zeros(n, self.features, dtype=torch.float64, device=self._device)
        context = None if context is None else context.to(x.device).expand(n, -1)
        scaled = self._scaled(context)
        middles = torch.zeros(n, len(self.whole), dtype=torch.float64, device=self._device)
        for i, (j, column) in enumerate(zip(self.whole, self._counts, strict=True)):
            heights = self._heights(middles, scaled)
            logits, centres, widths = (part[:, i] for part in self._mixtures(heights, scaled))
            u = rand((n, 2), generator, dtype=torch.float64, device=self._device)
            edges = torch.softmax(logits, dim=1).cumsum(1)
            picked = (u[:, :1] * edges[:, -1:] >= edges).sum(1, keepdim=True).clamp(max=_COMPONENTS - 1)
            drawn = (centres.gather(1, picked) + widths.gather(1, picked) * torch.logit(u[:, 1:], eps=1e-12))[:, 0]
            # So far this column's own place is at zero: what its height lacks is its own.
            value = (drawn - heights[:, i]) / self.whiten.matrix[i, i]
            from_scale = _SCALES[column.scale][1]
            number = torch.floor(from_scale(value if column.scale == UNIT else value.clamp(min=0)))
            x[:, j] = number.clamp(*_ends(column))
            low, width = self._cells(x)
            middles[:, i] = (low + width / 2)[:, i]
        if self.continuous is not None:
            given = self._given(x, self._heights(middles, scaled), context)
            x[:, self.rest] = self.continuous.sample(n, given, generator=generator, dtype=torch.float64)
        return x, self.log_prob(x, context)

    def _seen_by_rest(self, x: Tensor, context: Tensor | None) -> Tensor:
        low, width = self._cells(x)
        return self._given(x, self._heights(low + width / 2, self._scaled(context)), context)

    def _cells(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Lower ends and widths of the cells on their scales, ``(n, k)`` each."""
        low, high = [], []
        for j, column in zip(self.whole, self._counts, strict=True):
            number = x[:, j] if column.scale == UNIT else x[:, j].clamp(min=0)
            to_scale = _SCALES[column.scale][0]
            low.append(to_scale(number))
            high.append(to_scale(number + 1))
        lower = torch.stack(low, dim=1)
        return lower, torch.stack(high, dim=1) - lower

    def _heights(self, middles: Tensor, scaled: Tensor | None) -> Tensor:
        """Middles of cells ``(n, k)`` less what the context and the numbers before explain of them, in units of the scatter left."""
        return self.whiten.forward_and_log_det(middles, scaled)[0]

    def _mixtures(self, heights: Tensor, scaled: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, centres and widths of the components ``(n, k, components)``, in float64."""
        dtype = self.net.out_bias.dtype
        out = self.net(heights.to(dtype).mT, None if scaled is None else scaled.to(dtype).mT).mT.double()
        logits, centres, log_widths = out.unflatten(-1, (len(self.whole), 3, _COMPONENTS)).unbind(-2)
        return logits, centres, _START_WIDTH * torch.exp(_NARROWEST * torch.tanh(log_widths / _NARROWEST))

    def _log_mass(self, x: Tensor, cell_widths: Tensor, heights: Tensor, mixtures: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """ln of the probability of each cell, ``(n, k)``."""
        logits, centres, widths = mixtures
        numbers = x[:, self.whole]
        ends = numbers.new_tensor([_ends(column) for column in self._counts])
        at_low, at_high = (numbers == ends[:, 0])[..., None], (numbers == ends[:, 1])[..., None]
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), of which a cell without an end keeps one factor.
        a = (heights[..., None] - cell_widths[..., None] / 2 - centres) / widths
        b = (heights[..., None] + cell_widths[..., None] / 2 - centres) / widths
        size = cell_widths[..., None] / widths
        below, above = torch.where(at_low, 0.0, logsigmoid(-a)), torch.where(at_high, 0.0, logsigmoid(b))
        between = torch.where(at_low | at_high, 0.0, torch.log(-torch.expm1(-size)))
        mass = torch.logsumexp(torch.log_softmax(logits, dim=-1) + below + above + between, dim=-1)
        return torch.where(_possible(numbers, ends[:, 0], ends[:, 1]), mass, -math.inf)

    def _given(self, x: Tensor, heights: Tensor, context: Tensor | None) -> Tensor:
        """The context of the continuous part: counts also as they are, as what adds up follows them and not their roots."""
        parts = [] if context is None else [context.to(heights).expand(len(heights), -1)]
        return torch.cat([*parts, heights, x[:, _plain(self.whole, self._counts)]], dim=1)


def counted(
    features: int,
    context: int = 0,
    *,
    counts: Any,
    flow: str = "nsf",
    layers: int = 5,
    hidden: Sequence[int] = (64, 64),
    bins: int = 8,
    support=None,
    generator: torch.Generator | None = None,
) -> CountFlow:
    """Columns of whole numbers, autoregressive, and a flow of the other columns given them.

    Parameters
    ----------
    features, context : int
        Columns of x, and of the context (0 for none).
    counts : mapping of int to CountColumn
        What is known of each column of whole numbers. Pairs of an index and the three values will do, as in a spec.
    flow : {"nsf", "maf", "realnvp"}
        The continuous part.
    layers, hidden, bins
        Of the continuous part; ``hidden`` of the probabilities as well.
    support : optional
        Of all columns, see :func:`sbi_flows.bijections.support.parse_support`; what it says of whole numbers is not used.
    generator : torch.Generator, optional

    Raises
    ------
    ValueError
        If there is no column of whole numbers, or what is said of one contradicts itself.

    Examples
    --------
    >>> flow = counted(1, counts={0: CountColumn("root", lowest=0)})
    >>> numbers = torch.arange(30.0)[:, None]
    >>> round(flow.log_prob(numbers).exp().sum().item(), 6)
    1.0
    """
    columns = {int(j): _column(features, int(j), told) for j, told in sorted(dict(counts).items())}
    if not columns:
        raise ValueError("Expected at least one column of whole numbers; got none. Use nsf(), maf() or realnvp() for continuous columns.")
    places = parse_support(support, features)
    settings: dict[str, Any] = {"layers": layers, "hidden": hidden, "generator": generator}
    if flow == "nsf":
        settings["bins"] = bins
    seen = context + len(columns) + len(_plain(list(columns), list(columns.values())))
    continuous = continuous_part(flow, places, columns, seen, settings)
    spec = {
        "architecture": "counted",
        "features": features,
        "context": context,
        "counts": [[j, [column.scale, column.lowest, column.highest]] for j, column in columns.items()],
        "flow": flow,
        "layers": layers,
        "hidden": [int(width) for width in hidden],
        "bins": bins,
        "support": [place.entry for place in places],
    }
    return CountFlow(features, context, columns, continuous, hidden, spec, generator)


@dataclass(frozen=True)
class CountDensity:
    """The parameter ``flow`` of an estimator that models whole numbers: ``ConditionalFlow(flow=CountDensity({0: CountColumn()}))``.

    Layers, hidden widths, bins and support are those of the estimator.

    Parameters
    ----------
    counts : mapping of int to CountColumn
        As in :func:`counted`.
    flow : {"nsf", "maf", "realnvp"}
        The continuous part.

    Examples
    --------
    >>> CountDensity({0: CountColumn("root", lowest=0)})(2, 5).context_features
    5

    References
    ----------
    Salimans, Karpathy, Chen & Kingma 2017, "PixelCNN++: improving the PixelCNN with discretized logistic mixture likelihood and other
    modifications", arXiv:1701.05517.
    """

    counts: Mapping[int, CountColumn]
    flow: str = "nsf"

    def __call__(
        self,
        features: int,
        context: int,
        *,
        layers: int = 5,
        hidden: Sequence[int] = (64, 64),
        bins: int = 8,
        support=None,
        generator: torch.Generator | None = None,
    ) -> CountFlow:
        """The density, with fresh weights."""
        settings: dict[str, Any] = {"layers": layers, "hidden": hidden, "bins": bins, "support": support, "generator": generator}
        return counted(features, context, counts=self.counts, flow=self.flow, **settings)


def _column(features: int, j: int, told: Any) -> CountColumn:
    column = told if isinstance(told, CountColumn) else CountColumn(*told)
    choose("scale", column.scale, list(_SCALES))
    if not 0 <= j < features:
        raise ValueError(f"Expected columns of whole numbers from 0 to {features - 1}; got {j!r}.")
    low, high = column.lowest, column.highest
    if column.scale != UNIT and low != 0:
        raise ValueError(f"Expected lowest=0 on the scale {column.scale!r}, which is for numbers from zero; got {low!r} for column {j}.")
    if low is not None and high is not None and low >= high:
        raise ValueError(f"Expected lowest below highest for column {j}; got {low} and {high}. A constant has no density: drop it.")
    return column


def _plain(places: Sequence[int], columns: Sequence[CountColumn]) -> list[int]:
    return [j for j, column in zip(places, columns, strict=True) if column.scale == SQUARE_ROOT]


def _ends(column: CountColumn) -> tuple[float, float]:
    return -math.inf if column.lowest is None else column.lowest, math.inf if column.highest is None else column.highest


def _possible(numbers: Tensor, low: Any, high: Any) -> Tensor:
    return (numbers == torch.round(numbers)) & (numbers >= low) & (numbers <= high)


def _span(column: CountColumn) -> str:
    low = "" if column.lowest is None else f"from {column.lowest} "
    return (low + ("" if column.highest is None else f"to {column.highest}")).strip() or "of any size"
