"""What the support of a density is that came without one: found by drawing, and by walking outwards from the outermost draws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbi_flows.bijections.support import ColumnSupport
from sbi_flows.distributions.base import Distribution

_DRAWS = 4000
_OUTERMOST = 8  # draws from which an end is looked for
# Ends are looked for up to two ranges of the draws beyond them: np.log(pdf) of a normal becomes -inf by underflow at 38 standard
# deviations, which is four ranges beyond.
_REACH = 2.0
_BISECTIONS = 80
_SAME = 1e-9  # ends that differ by less than this share of the range are one end
_FORBIDDEN = -1e20  # some write this for minus infinity
# The outermost 0.5 % of the draws of a density that stops abruptly span a ninth of what the next 4.5 % do; of a normal, 1.2 times as much
# (with 4000 draws, less than 0.3 times in one of 10^5 cases).
_ABRUPT = 0.3
# The farthest of 4000 draws lies about 2.7 interquartile ranges from the median for a normal, 6 for Laplace's distribution (15 in one of
# 10^6 cases), 1000 for Cauchy's.
_HEAVY = 15.0
# Distance from a plane, in interquartile ranges, that is none: draws in float32 are good to 1e-7.
_FLAT = 1e-6
# Rounding may make this share of the differences across half a turn across a full one.
_PERIODIC = 1e-3


@dataclass(frozen=True)
class Edges:
    """What was found.

    Attributes
    ----------
    support : list
        One entry a column.
    notes, warnings : tuple of str
    """

    support: list
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def find_edges(prior: Distribution) -> Edges:
    """Look for ends of the columns that ``prior`` declares real.

    Parameters
    ----------
    prior : Distribution
        4000 draws are made of it, and about as many evaluations.

    Raises
    ------
    ValueError
        If its draws fall where its density is zero or not a number.
    """
    draws = prior.sample(_DRAWS, torch.Generator().manual_seed(0)).double()
    _check_own_draws(prior, draws)
    support: list[Any] = list(prior.support)
    notes, ragged, abrupt = [], [], []
    for j, entry in enumerate(support):
        if entry != "real":
            continue
        label = f"column {j}" if prior.names is None else repr(prior.names[j])
        ends: list[float | None] = [None, None]
        for side, sign in enumerate((-1.0, 1.0)):
            found = _ends(prior, draws, j, sign)
            if len(found) == 0:
                if _stops_abruptly(sign * draws[:, j]):
                    abrupt.append(label)
            elif float(found.max() - found.min()) <= _SAME * (span := float(draws[:, j].max() - draws[:, j].min())):
                end = float((sign * found).max() * sign)
                ends[side] = 0.0 if abs(end) < _SAME * span else end  # bisection approaches zero without reaching it
            else:
                ragged.append(label)
        if ends != [None, None]:
            support[j] = (-float("inf") if ends[0] is None else ends[0], float("inf") if ends[1] is None else ends[1])
            notes.append(f"the prior declares no support; its density ends {label} at {support[j]}, which is taken as its support")
    return Edges(support, tuple(notes), tuple(_messages(ragged, abrupt)))


def heavy_columns(prior: Distribution) -> list[int]:
    """Columns declared real whose draws reach further than those of any distribution with exponential tails do."""
    real = [j for j, entry in enumerate(prior.support) if entry == "real"]
    if not real:
        return []
    draws = prior.sample(_DRAWS, torch.Generator().manual_seed(0)).double()[:, real]
    low, middle, high = torch.quantile(draws, torch.tensor([0.25, 0.5, 0.75], dtype=draws.dtype), dim=0)
    reach = (draws - middle).abs().amax(0) / (high - low)
    return [j for j, far in zip(real, reach.tolist(), strict=True) if far > _HEAVY]


def circular_columns(prior: Distribution) -> dict[int, ColumnSupport]:
    """Columns declared real that are angles: their density repeats after 2 pi, which none on the line can, and their draws do not."""
    draws = prior.sample(_DRAWS, torch.Generator().manual_seed(0)).double()
    here = prior.log_prob(draws)
    found = {}
    for j, entry in enumerate(prior.support):
        low, high = draws[:, j].min().item(), draws[:, j].max().item()
        start = -math.pi if low < 0 else 0.0
        if entry != "real" or low < start - _SAME or high > start + 2 * math.pi + _SAME:
            continue

        def change(turns: float, j: int = j) -> float:
            moved = draws.clone()
            moved[:, j] += 2 * math.pi * turns
            return float((prior.log_prob(moved) - here).abs().max())

        half, full = change(0.5), max(change(1.0), change(-1.0))
        # A density that is flat repeats anyhow. NaN and infinities compare as false.
        if half > _SAME and full <= _PERIODIC * half < math.inf:
            found[j] = ColumnSupport("circular", start, start + 2 * math.pi)
    return found


def lies_flat(prior: Distribution) -> bool:
    """Whether draws lie on a plane of fewer dimensions, where there is no density."""
    draws = prior.sample(_DRAWS, torch.Generator().manual_seed(0)).double()
    low, middle, high = torch.quantile(draws, torch.tensor([0.25, 0.5, 0.75], dtype=draws.dtype), dim=0)
    if prior.features == 1 or not bool((high > low).all()):
        return False
    scaled = (draws - middle) / (high - low)
    # The inner half: a far outlier would make all others look like a point.
    size = scaled.abs().amax(1)
    lengths = torch.linalg.svdvals(scaled[size <= size.median()] - scaled[0])
    return bool(lengths[-1] < _FLAT * lengths[0])


def _check_own_draws(prior: Distribution, draws: Tensor) -> None:
    """A prior's draws are where its density is."""
    values = prior.log_prob(draws)
    lost = ~(values > _FORBIDDEN)
    if lost.any():
        raise ValueError(
            f"Expected a prior whose draws lie where its density is; {int(lost.sum())} of {len(draws)} draws of sample() have "
            f"log_prob -inf or NaN, the first at {draws[lost][0].tolist()}. Check that sample and log_prob describe one distribution."
        )


def _ends(prior: Distribution, draws: Tensor, j: int, sign: float) -> Tensor:
    """Where the density ends on lines along column j from the outermost draws: one number a line, empty if it does not end."""
    order = (sign * draws[:, j]).argsort(descending=True)[:_OUTERMOST]
    rows = draws[order]
    inside = rows[:, j].clone()
    outside = inside + sign * _REACH * (draws[:, j].max() - draws[:, j].min())

    def forbidden(values: Tensor) -> Tensor:
        moved = rows.clone()
        moved[:, j] = values
        return ~(prior.log_prob(moved) > _FORBIDDEN)

    if not bool(forbidden(outside).all()):
        return outside[:0]
    for _ in range(_BISECTIONS):
        middle = 0.5 * (inside + outside)
        out = forbidden(middle)
        inside, outside = torch.where(out, inside, middle), torch.where(out, middle, outside)
    return outside


def _stops_abruptly(values: Tensor) -> bool:
    """Whether draws pile up at their largest value as those of a density with an edge do."""
    middle, late = torch.quantile(values, torch.tensor([0.95, 0.995], dtype=values.dtype)).tolist()
    return float(values.max()) - late < _ABRUPT * (late - middle)


def _messages(ragged: list[str], abrupt: list[str]) -> list[str]:
    messages = []
    if ragged:
        messages.append(
            f"The prior's density ends along {', '.join(dict.fromkeys(ragged))}, but at places that depend on the other parameters: its "
            "support is no box. Draws outside are rejected, which costs time and an error in log_prob; "
            "parameters in which the support is a box avoid both."
        )
    if abrupt:
        messages.append(
            f"The prior's draws seem to end abruptly along {', '.join(dict.fromkeys(abrupt))}, but its log_prob is finite beyond and no "
            "support is declared: posteriors may leak over the edge. Declare it: "
            "from_pair(sample, log_prob, features, support=[(low, high), ...])."
        )
    return messages
