"""Paths from noise to data: ``x_t = alpha(t) data + sigma(t) noise``, noise at t = 0 and data at t = 1."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Path(ABC):
    """``alpha`` and ``sigma`` of time, and their derivatives."""

    @abstractmethod
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``alpha, sigma, dalpha/dt, dsigma/dt``, each of the shape of ``t``."""

    def preconditioning(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``drift, gain, scale``: the velocity is ``drift x + gain net(scale x)``.

        For data and noise of unit variance ``scale`` gives the net an input of unit variance, ``drift x`` is the exact velocity
        of Gaussian data, and what is left for the net to predict, ``(sigma data - alpha noise) scale``, has unit variance.
        """
        alpha, sigma, d_alpha, d_sigma = self.coefficients(t)
        variance = alpha.square() + sigma.square()
        scale = variance.rsqrt()
        return (alpha * d_alpha + sigma * d_sigma) / variance, (d_alpha * sigma - alpha * d_sigma) * scale, scale


class Straight(Path):
    """Straight lines at constant speed, ``alpha = t, sigma = 1 - t``: the optimal-transport path of Lipman et al. 2023."""

    def coefficients(self, t):
        one = torch.ones_like(t)
        return t, 1 - t, one, -one


class VariancePreserving(Path):
    """``alpha = sin(pi t / 2), sigma = cos(pi t / 2)``: data of unit variance keep it. Nichol & Dhariwal 2021's schedule."""

    def coefficients(self, t):
        half = 0.5 * math.pi
        alpha, sigma = torch.sin(half * t), torch.cos(half * t)
        return alpha, sigma, half * sigma, -half * alpha


PATHS: dict[str, Path] = {"straight": Straight(), "variance-preserving": VariancePreserving()}
