"""Pairs of parameters and simulations as users bring them: checked, named, failed ones kept out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sbi_flows._validation import as_float
from sbi_flows.distributions import Distribution
from sbi_flows.inference.pairs import off_prior

# With fewer the held-out tenth, which decides when to stop, is a handful of rows.
_FEW = 200
_MANY_FAILED = 0.1


@dataclass(frozen=True)
class Simulations:
    """Parameters inside the prior and what the simulator made of them.

    Attributes
    ----------
    theta : ndarray (n, d)
    x : ndarray (n, ...)
        NaN marks missing values.
    n_failed : int
        Rows that were left out.
    reasons : tuple of str
        Against theta as draws of the prior.
    """

    theta: np.ndarray
    x: np.ndarray
    n_failed: int
    reasons: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.theta)

    def only(self, good: np.ndarray) -> Simulations:
        """Those where ``good (n,)``; the others count as failed."""
        return Simulations(self.theta[good], self.x[good], self.n_failed + int((~good).sum()), self.reasons)

    def followed_by(self, other: Simulations) -> Simulations:
        """Both, these first."""
        theta, x = np.concatenate([self.theta, other.theta]), np.concatenate([self.x, other.x])
        return Simulations(theta, x, self.n_failed + other.n_failed, (*self.reasons, *other.reasons))


def remarks(simulations: Simulations) -> tuple[list[str], list[str]]:
    """Reasons against a result that rests on these simulations, and notes: too few of them, too many that failed."""
    n, failed = len(simulations), simulations.n_failed
    reasons, notes = list(simulations.reasons), []
    if n < _FEW:
        reasons.append(
            f"{n} simulations are few: the posterior may be little more than the prior, or too narrow. Simulate more (1000 is a "
            "start), and check it by diagnostics.sbc"
        )
    if failed:
        what = f"{failed} of {n + failed} simulations failed and were left out"
        if failed > _MANY_FAILED * (n + failed):
            reasons.append(
                f"{what}: the posterior is that of a model in which what fails is impossible; look at one failed simulation to see why"
            )
        else:
            notes.append(what)
    return reasons, notes


def read_names(values: Any) -> list[str] | None:
    """Column names of a DataFrame, index of a Series, else None."""
    if hasattr(values, "columns"):
        return [str(name) for name in values.columns]
    if hasattr(values, "index") and hasattr(values, "to_numpy"):
        return [str(name) for name in values.index]
    return None


def in_order(values: Any, names: Sequence[str] | None, what: str) -> Any:
    """A DataFrame's columns (a Series' entries) in the order of ``names``; anything else as it is."""
    own = read_names(values)
    if own is None or names is None or own == list(names):
        return values
    if sorted(own) != sorted(names):
        raise ValueError(f"Expected the columns of {what} to be {', '.join(names)}; got {', '.join(own)}. Rename or select them.")
    array = values.to_numpy()
    return array[..., [own.index(name) for name in names]]


def read_theta(theta: Any, prior: Distribution, names: Sequence[str] | None) -> np.ndarray:
    """Parameters as float64 ``(n, d)``; one parameter may come as ``(n,)``."""
    array = as_float(in_order(theta, names, "theta"), "theta").double().cpu().numpy()
    d = prior.features
    if array.ndim == 1 and d == 1:
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] != d:
        hint = "For a single parameter vector pass theta[None]." if array.shape == (d,) else "One column a parameter."
        raise ValueError(f"Expected theta of shape (n, {d}) to match the prior; got {array.shape}. {hint}")
    return array


def read_simulations(theta: Any, x: Any, prior: Distribution, names: Sequence[str], *, from_prior: bool) -> Simulations:
    """Check pairs and leave failed ones out; with ``from_prior`` theta, that of failed ones included, should follow the prior.

    Raises
    ------
    ValueError
        Shapes that do not match, parameters outside the prior, or no simulation that succeeded.
    """
    x, given = as_float(x, "x").double().cpu().numpy(), tuple(as_float(theta, "theta").shape)
    if 0 in given or not x.size:
        raise ValueError(f"Expected simulations; got none: theta of shape {given} and x of shape {x.shape}.")
    if len(given) == 2 and given[1] != prior.features and x.shape == (given[0], prior.features):
        raise ValueError(
            f"Expected fit(theta, x) with theta of shape (n, {prior.features}) to match the prior; got theta of shape {given} and x of "
            f"shape {x.shape}. Are they the wrong way around?"
        )
    theta = read_theta(theta, prior, names)
    if x.ndim == 0 or len(x) != len(theta):
        raise ValueError(
            f"Expected one simulation for each of the {len(theta)} rows of theta; got x of shape {x.shape}. "
            "The first axis of x counts simulations."
        )
    x = x[:, None] if x.ndim == 1 else x
    flat = x.reshape(len(x), -1)
    good = np.isfinite(theta).all(axis=1) & ~np.isinf(flat).any(axis=1) & ~np.isnan(flat).all(axis=1)
    if good.sum() < 2:
        raise ValueError(
            f"Expected at least two simulations that succeeded; got {good.sum()} of {len(good)}: the others hold infinities, or NaN in "
            "theta or throughout x. Run the simulator on one row of theta and look at what it returns."
        )
    check_inside(theta, good, prior, names)
    stuck = np.flatnonzero(np.ptp(theta[good], axis=0) == 0)
    if len(stuck):
        which = ", ".join(f"{names[j]} = {theta[good][0, j]:g}" for j in stuck[:3])
        raise ValueError(
            f"Expected theta drawn from the prior; all simulations have {which}. If it is known, build it into the simulator and leave it "
            "out of theta and the prior."
        )
    finite = np.isfinite(theta).all(axis=1)
    reasons = off_prior(theta[finite], prior, names) if from_prior else []
    return Simulations(theta[good], x[good], int((~good).sum()), tuple(reasons))


def check_inside(theta: np.ndarray, good: np.ndarray, prior: Distribution, names: Sequence[str]) -> None:
    """ValueError if any of the ``good (n,)`` rows of ``theta (n, d)`` lies where the prior's density is zero."""
    outside = np.zeros(len(theta), dtype=bool)
    outside[good] = ~np.isfinite(prior.log_prob(torch.from_numpy(theta[good])).cpu().numpy())
    if not outside.any():
        return
    row = int(np.flatnonzero(outside)[0])
    point = ", ".join(f"{name} = {value:g}" for name, value in zip(names[:6], theta[row], strict=False))
    raise ValueError(
        f"Expected theta drawn from the prior; {outside.sum()} of {len(theta)} rows lie where its density is zero, the first row {row}: "
        f"{point}. Its support: {dict(zip(names, prior.support, strict=True))}. "
        "Check the order and units of the columns, or give the prior that was used."
    )
