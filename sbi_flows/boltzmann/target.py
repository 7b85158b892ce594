"""An energy as a target: checked, counted, at a temperature."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sbi_flows._validation import positive
from sbi_flows.boltzmann.coordinates import Coordinates
from sbi_flows.targets import Target
from sbi_flows.targets.evaluation import inside, where_inside

Energy = Callable[[Tensor], Tensor]


class BoltzmannTarget(Target):
    """``log_prob = -U(x) / T`` up to a constant. Energies that are NaN or infinite count as impossible configurations, and are counted.

    Parameters
    ----------
    energy : callable or Target
        ``(n, d)`` float64 tensor to ``(n,)``, in units of kT at temperature 1; of a target, U is minus its ``log_prob``.
    features : int, optional
        Read from ``energy.features`` by default.
    temperature : float
    names, support : optional
        As in :class:`sbi_flows.targets.Target`; those of a target given as the energy.
    coordinates : Coordinates, optional
        Columns of the target, in place of those of the energy; their volume is part of the density. Names and support are theirs.

    Attributes
    ----------
    temperature : float
    whole : int
        Columns of a configuration, as the energy sees it.
    n_evaluations, n_invalid : int
        Configurations at which the energy was evaluated, and at which it was NaN or minus infinity.

    Raises
    ------
    TypeError, ValueError
        If the energy is not callable, or its number of columns is not known.
    """

    def __init__(
        self, energy: Energy | Target, features: int | None = None, temperature: float = 1.0,
        names: Sequence[str] | None = None, support: Any = None, coordinates: Coordinates | None = None,
    ):  # fmt: skip
        if not callable(energy) and not isinstance(energy, Target):
            raise TypeError(f"Expected energy to be a function of a tensor (n, d), or a Target; got a {type(energy).__name__}.")
        own = getattr(energy, "features", None)
        if own is None and features is None:
            raise ValueError("Expected to be told the number of coordinates: pass features=, as this energy has no attribute of that name.")
        if own is not None and features is not None and int(own) != int(features):
            raise ValueError(f"Expected features to be those of the energy, {own}; got {features}. Leave features out.")
        if isinstance(energy, Target):
            names, support = names or energy.names, energy.support if support is None else support
        width = int(positive("features", own if features is None else features, integer=True))
        if coordinates is not None and coordinates.whole != width:
            raise ValueError(
                f"Expected coordinates of configurations with {width} columns, as the energy takes; these are of {coordinates.whole}."
            )
        if coordinates is not None and support is not None:
            raise ValueError("Expected either support or coordinates, which have a support of their own; got both.")
        self.whole, self.coordinates = width, coordinates
        self.whole_names = tuple(f"x{i}" for i in range(width)) if names is None else tuple(map(str, names))
        if coordinates is None:
            super().__init__(width, names, support)
        else:
            super().__init__(coordinates.features, coordinates.names, coordinates.support)
        self.energy, self.temperature = energy, float(positive("temperature", temperature))
        self._function: Energy = (lambda x: -energy.log_prob(x)) if isinstance(energy, Target) else energy
        self.n_evaluations = self.n_invalid = 0

    def configurations(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Rows ``y (n, features)`` as the energy sees them, ``(n, whole)``, and ``ln |volume|`` of the coordinates there ``(n,)``."""
        return (y, y.new_zeros(len(y))) if self.coordinates is None else self.coordinates.to_configurations(y)

    def rows(self, x: Tensor) -> Tensor:
        """Configurations ``x (n, whole)`` as rows of the target ``(n, features)``."""
        return x if self.coordinates is None else self.coordinates.from_configurations(x)

    def reduced_energy(self, x: Tensor) -> Tensor:
        """``U / T`` ``(n,)`` of configurations ``x (n, whole)``; +inf where the energy has no value."""
        values = where_inside(self._function, x, None, "energy")
        invalid = torch.isnan(values) | (values == -math.inf)
        self.n_evaluations += len(x)
        self.n_invalid += int(invalid.sum())
        return torch.where(invalid, math.inf, values) / self.temperature

    def log_prob(self, x):
        x = self._checked(x)
        return where_inside(self._inside, x, inside(x, self._columns), "energy")

    def _inside(self, y: Tensor) -> Tensor:
        x, log_volume = self.configurations(y)
        return log_volume - self.reduced_energy(x)

    def at(self, temperature: float) -> BoltzmannTarget:
        """The same energy at another temperature, with counts of its own."""
        other = copy.copy(self)
        other.temperature, other.n_evaluations, other.n_invalid = float(positive("temperature", temperature)), 0, 0
        return other

    @property
    def notes(self) -> tuple[str, ...]:
        told = () if not isinstance(self.energy, Target) else self.energy.notes
        if not self.n_invalid:
            return told
        counted = f"{self.n_invalid} of {self.n_evaluations} configurations"
        return (*told, f"the energy was NaN or -inf at {counted}, which counted as impossible")


def check_energy(target: BoltzmannTarget, x: Tensor) -> None:
    """Raise where an energy cannot be trained on: no finite value at any row of ``x``, no gradient, or one of the wrong shape.

    Raises
    ------
    ValueError
        Saying what came and what to do.
    """
    value, gradient = target.log_prob_and_grad(x)
    good = torch.isfinite(value)
    if not bool(good.any()):
        raise ValueError(
            f"Expected a finite energy at some of {len(x)} configurations to start from; it is NaN or infinite at all of them. "
            "Do atoms overlap there? Pass start=, configurations without overlaps."
        )
    if gradient.shape != x.shape:
        raise ValueError(f"Expected forces of shape {tuple(x.shape)}; got {tuple(gradient.shape)}.")
    bad = int((~torch.isfinite(gradient[good])).any(-1).sum())
    if bad > 0.5 * int(good.sum()):
        raise ValueError(
            f"Expected finite forces where the energy is finite; at {bad} of {int(good.sum())} configurations they are NaN or infinite. "
            "A where() over an undefined branch gives such gradients: clamp the argument before the function that fails."
        )
