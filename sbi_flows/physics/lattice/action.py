"""What a lattice theory is to a sampler: an action, its force, and what is measured on a field."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sbi_flows._random import rand, randn
from sbi_flows.targets import Target


class Action(ABC):
    """A Euclidean action ``S`` of batches of fields; fields have the density ``exp(-S)``.

    Attributes
    ----------
    shape : tuple of int
        Of one field: a batch is ``(n, *shape)``, float64 for exact work.
    circular : bool
        Whether field values are angles, of period 2 pi.
    """

    shape: tuple[int, ...]
    circular: bool

    @abstractmethod
    def action(self, field: Tensor) -> Tensor:
        """``S`` ``(n,)`` of fields ``(n, *shape)``."""

    @abstractmethod
    def force(self, field: Tensor) -> Tensor:
        """``-dS/dfield``, ``(n, *shape)``."""

    def action_and_force(self, field: Tensor) -> tuple[Tensor, Tensor]:
        """Both, for theories in which that costs less than one after the other."""
        return self.action(field), self.force(field)

    @abstractmethod
    def observables(self, field: Tensor) -> dict[str, Tensor]:
        """Named measurements, each ``(n,)``."""

    @property
    def features(self) -> int:
        """Numbers in one field."""
        return math.prod(self.shape)

    def physical(self, field: Tensor) -> Tensor:
        """The field that observables are functions of: here the field itself."""
        return field

    def hot_start(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` random fields: uniform angles, or standard normals."""
        shape = (n, *self.shape)
        if self.circular:
            return (2 * rand(shape, generator, dtype=torch.float64) - 1) * math.pi
        return randn(shape, generator, dtype=torch.float64)

    def cold_start(self, n: int) -> Tensor:
        """``n`` fields of zeros."""
        return torch.zeros((n, *self.shape), dtype=torch.float64)

    def target(self) -> Target:
        """The same as a target of flattened fields, for :func:`sbi_flows.run_chains` and every kernel of ``samplers``."""
        return FieldTarget(self)

    def check(self, field: Tensor) -> None:
        """``ValueError`` unless ``field`` is a batch of this theory's fields."""
        if tuple(field.shape[1:]) != self.shape or field.ndim != len(self.shape) + 1:
            hint = "For a single field pass field[None]." if tuple(field.shape) == self.shape else "The first axis counts fields."
            raise ValueError(f"Expected fields of shape (n, {', '.join(map(str, self.shape))}); got {tuple(field.shape)}. {hint}")


class FieldTarget(Target):
    """``exp(-S)`` of flattened fields, with the gradient in closed form; made by :meth:`Action.target`."""

    def __init__(self, theory: Action):
        super().__init__(theory.features, support="circular" if theory.circular else "real")
        self.theory = theory

    def log_prob(self, x):
        return -self.theory.action(self._fields(x))

    def log_prob_and_grad(self, x):
        action, force = self.theory.action_and_force(self._fields(x))
        return -action, force.reshape(len(x), -1)

    def _fields(self, x: Tensor) -> Tensor:
        return self._checked(x).reshape(len(x), *self.theory.shape)
