"""Samplers whose draws are the ends of random paths, each with the exact weight of its path."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from sbi_flows._random import RandomState, randn, torch_generator
from sbi_flows._threads import one_thread
from sbi_flows._validation import as_rows, positive
from sbi_flows.results import Evidence, Reliability, WeightedSamples
from sbi_flows.samplers.normal_path import NormalPath, log_normal
from sbi_flows.samplers.path_check import against_paths

_AT_ONCE = 2000  # paths
_LARGEST_GAP = 1.0  # nats between the bounds on ln Z


class Ends(NamedTuple):
    """Where paths ended, and the log of their weights: the target's density of the path over the sampler's.

    Attributes
    ----------
    y : Tensor (n, d)
    log_weights : Tensor (n,)
    """

    y: Tensor
    log_weights: Tensor


class PathSampler(nn.Module, ABC):
    """Random paths from a standard normal to a target.

    A path y0, ..., yK has density q = N(y0) F(y1 | y0) ... F(yK | yK-1) and is given the weight p(yK) B(yK-1 | yK) ... B(y0 | y1) / q,
    with backward transitions B that integrate to one. So the weight's mean is the integral Z of p, and weighted ends follow p, however
    badly F and B are chosen or trained.

    Attributes
    ----------
    path : NormalPath
    reliability : Reliability
        Of the training.
    info : dict
        ``n_training_evaluations``, ``n_training_gradients`` and ``training_seconds``.

    References
    ----------
    Wu, Köhler & Noé 2020, "Stochastic normalizing flows", arXiv:2002.06707; Nilmeier, Crooks, Minh & Chodera 2011, "Nonequilibrium
    candidate Monte Carlo is an efficient tool for equilibrium simulation", PNAS 108.
    """

    data_dtype = torch.float64
    method: str

    def __init__(self, path: NormalPath):
        super().__init__()
        self.path = path
        self.reliability = Reliability(True)
        self.info: dict[str, Any] = {"n_training_evaluations": 0, "n_training_gradients": 0, "training_seconds": 0.0}

    @abstractmethod
    def forward_from(self, y: Tensor, generator: torch.Generator) -> Ends:
        """Paths from draws of the normal ``y (n, d)``; differentiable in the parameters where gradients are on."""

    @abstractmethod
    def backward_from(self, y: Tensor, generator: torch.Generator) -> Ends:
        """Paths by the backward transitions from points ``y (n, d)`` of the target; the weights are those of the paths run forward."""

    # --- Answers -------------------------------------------------------------------------------------------------------------

    def sample(self, n_samples: int = 10_000, random_state: RandomState = None) -> WeightedSamples:
        """Ends of fresh paths with their weights.

        Parameters
        ----------
        n_samples : int
        random_state : int, generator or None

        Returns
        -------
        WeightedSamples
            ``log_z`` is unbiased before its logarithm is taken. ``info`` holds what the draws and their check cost (``n_evaluations``,
            ``n_gradients``, ``seconds``), what training cost, and ``lower_bound``: the mean log-weight, below ln Z on average.
        """
        positive("n_samples", n_samples, integer=True)
        generator = torch_generator(random_state)
        before, began = (self.path.n_evaluations, self.path.n_gradients), time.perf_counter()
        with one_thread(), torch.no_grad():
            sizes = [min(_AT_ONCE, n_samples - first) for first in range(0, n_samples, _AT_ONCE)]
            parts = [self._drawn(n, generator) for n in sizes]
        y, log_weights = (torch.cat(values) for values in zip(*parts, strict=True))
        if not bool((log_weights > -torch.inf).any()):
            raise ValueError(
                f"Expected a target above zero somewhere; it is zero or has no value at the ends of all {n_samples} paths "
                f"({self.path.n_invalid} times it was NaN or +inf so far). Begin nearer to it: start= or scale=."
            )
        with one_thread():
            reasons = against_paths(self.path, y, log_weights, lambda rows, noise: self.backward_from(rows, noise).log_weights, generator)
        info = {
            "sampler": self.method,
            "n_evaluations": self.path.n_evaluations - before[0],
            "n_gradients": self.path.n_gradients - before[1],
            "seconds": time.perf_counter() - began,
            "lower_bound": float(log_weights.mean()),
            **self.info,
        }
        user = self.path.recorded(self.path.to_user(y)[0])
        return WeightedSamples(user.numpy(), log_weights.numpy(), self.path.names, self._verdict(reasons), info)

    def evidence(self, n_samples: int = 10_000, random_state: RandomState = None, samples: Any = None) -> Evidence:
        """ln of the target's integral, from fresh paths.

        Parameters
        ----------
        n_samples : int
        random_state : int, generator or None
        samples : array_like (m, d), optional
            Draws of the target from elsewhere. Paths run back from them give an upper bound; one far above the lower bound tells of a
            mode that no path reaches, which the weights of paths cannot.
        """
        generator = torch_generator(random_state)
        drawn = self.sample(n_samples, generator)
        reasons = list(drawn.reliability.reasons)
        rows = {"paths": (drawn.log_z, drawn.log_z_err), "lower bound": _mean(drawn.log_weights)}
        cost = drawn.info["n_evaluations"]
        if samples is not None:
            before = self.path.n_evaluations
            rows["upper bound"] = upper = _mean(self._weights_of(samples, generator))
            cost += self.path.n_evaluations - before
            gap = upper[0] - rows["paths"][0]
            if not gap < _LARGEST_GAP + 4 * upper[1]:
                reasons.append(
                    f"the samples given lie, on average, where paths come {gap:.2g} nats too rarely: the sampler misses a mode or a tail. "
                    "Begin wider (scale= or start=), train with samples=, or use smc"
                )
        ess = drawn.ess / n_samples
        by_method = pd.DataFrame(
            [
                {"log_z": value, "log_z_err": error, "ess": ess, "pareto_k": drawn.pareto_k, "n_evaluations": cost}
                for value, error in rows.values()
            ],
            index=list(rows),
        )
        verdict = Reliability.from_reasons(reasons, drawn.reliability.notes)
        info = {**drawn.info, "n_evaluations": cost}
        return Evidence(*rows["paths"], "paths", ess, drawn.pareto_k, verdict, by_method, drawn.names, info)

    def _drawn(self, n: int, generator: torch.Generator) -> Ends:
        y = randn((n, self.path.features), generator, dtype=torch.float64)
        return self.forward_from(y, generator)

    @torch.no_grad()
    def _weights_of(self, samples: Any, generator: torch.Generator) -> np.ndarray:
        y = self.path.from_user(as_rows(samples, "samples", self.path.features).double())
        return self.backward_from(y, generator).log_weights.numpy()

    def note(self, text: str) -> None:
        """Add a note to the verdict."""
        self.reliability = Reliability.from_reasons(self.reliability.reasons, [*self.reliability.notes, text])

    def close_books(self, began: float) -> None:
        """All that has been evaluated so far was for training, which began at ``began`` of ``time.perf_counter``."""
        self.info = {
            "n_training_evaluations": self.path.n_evaluations,
            "n_training_gradients": self.path.n_gradients,
            "training_seconds": time.perf_counter() - began,
        }

    def _verdict(self, reasons: Sequence[str]) -> Reliability:
        notes = [*self.reliability.notes, *self.path.notes, "weights cannot tell of a mode that no path has reached"]
        if self.path.n_invalid:
            notes.append(f"the density was NaN or +inf at {self.path.n_invalid} of {self.path.n_evaluations} points, which counted as zero")
        return Reliability.from_reasons([*self.reliability.reasons, *reasons], notes)


def starting_weights(y: Tensor) -> Tensor:
    """What the start of a path takes from its log-weight, ``(n,)``."""
    return -log_normal(y)


def finished(log_weights: Tensor) -> Tensor:
    """A path that left the numbers behind has no weight."""
    return torch.where(torch.isnan(log_weights) | (log_weights == torch.inf), -torch.inf, log_weights)


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(np.mean(values)), float(np.std(values) / np.sqrt(len(values))) if np.isfinite(values).all() else np.inf
