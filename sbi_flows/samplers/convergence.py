"""Whether chains have forgotten where they started, and how many independent draws they are worth."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sbi_flows.results import Reliability

MIN_ESS = 400
_FEW_CHAINS = 8
_LEAST = 8  # draws of a chain, to say anything of it


@dataclass(frozen=True)
class Convergence:
    """Diagnostics of chains, one entry a parameter; of an angle, the worse of its cosine and sine.

    Attributes
    ----------
    rhat : ndarray (d,)
        Rank-normalised split R-hat (of one chain: of its halves); near 1 when the chains agree with each other and each with itself.
    ess_bulk, ess_tail : ndarray (d,)
        Effective numbers of independent draws for the centre, and for the 5 % and 95 % quantiles.
    reliability : Reliability
    """

    rhat: np.ndarray
    ess_bulk: np.ndarray
    ess_tail: np.ndarray
    reliability: Reliability


def convergence(
    samples: np.ndarray,
    names: Sequence[str],
    *,
    circular: Sequence[bool] | None = None,
    max_rhat: float | str = "auto",
    min_ess: float = MIN_ESS,
) -> Convergence:
    """R-hat and effective sample sizes by ArviZ, with a verdict.

    Parameters
    ----------
    samples : ndarray (chain, draw, d)
    names : sequence of str
    circular : sequence of bool, optional
        Which columns are angles of period 2 pi.
    max_rhat : float or "auto"
        What the verdict asks for. R-hat of chains in equilibrium is about ``1 + 1 / (2 m)`` where half a chain is worth m independent
        draws. "auto" is 1.01 for up to eight chains, the usual rule; and 1.05, that is m = 10, for more, which then are short.
    min_ess : float
        Of all chains together.

    Examples
    --------
    >>> draws = np.random.default_rng(0).normal(size=(4, 500, 1))
    >>> convergence(draws, ["mu"]).reliability.ok
    True

    References
    ----------
    Vehtari, Gelman, Simpson, Carpenter & Bürkner 2021, "Rank-normalization, folding, and localization: an improved R-hat", Bayesian
    Analysis 16(2).
    """
    chains, draws, d = samples.shape
    if draws < _LEAST:
        unknown = np.full(d, np.nan)
        few = f"each chain has only {draws} draws, too few to see whether it has converged: raise n_steps, or lower thin"
        return Convergence(unknown, unknown, unknown, Reliability.from_reasons([few]))
    rhat, bulk, tail = np.array([_worst([_diagnose(view) for view in views]) for views in _views(samples, circular)]).T
    wanted = float(max_rhat) if max_rhat != "auto" else 1.01 if chains <= _FEW_CHAINS else 1.05
    stuck = int((np.ptp(samples, axis=1) == 0).all(axis=-1).sum())
    return Convergence(rhat, bulk, tail, _verdict(rhat, np.minimum(bulk, tail), names, chains, stuck, wanted, min_ess))


def bulk_ess(samples: np.ndarray, *, circular: Sequence[bool] | None = None) -> np.ndarray:
    """``ess_bulk`` of :func:`convergence` alone, ``(d,)``, for a fourth of the price."""
    if samples.shape[1] < _LEAST:
        return np.full(samples.shape[-1], np.nan)
    return np.array([min(_ess(view) for view in views) for views in _views(samples, circular)])


def _views(samples: np.ndarray, circular: Sequence[bool] | None) -> list[list[np.ndarray]]:
    """Of every column what chains must agree about, ``(chain, draw)``."""
    chains, draws, d = samples.shape
    if chains == 1:
        # ArviZ wants two: then the halves of one chain are what must agree.
        samples = samples[:, : draws // 2 * 2].reshape(2, draws // 2, d)
    angles = [False] * d if circular is None else circular
    columns = np.moveaxis(samples, -1, 0)
    return [[np.cos(column), np.sin(column)] if angle else [column] for column, angle in zip(columns, angles, strict=True)]


def _diagnose(draws: np.ndarray) -> tuple[float, float, float]:
    import arviz as az

    if np.ptp(draws) == 0:
        return np.nan, np.nan, np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ArviZ's own about short chains, on which the verdict below has its say
        rhat, quantiles = float(az.rhat(draws)), [float(az.ess(draws, method="quantile", prob=p)) for p in (0.05, 0.95)]
    return rhat, _ess(draws), float(np.min(quantiles))


def _ess(draws: np.ndarray) -> float:
    import arviz as az

    if np.ptp(draws) == 0:
        return np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(az.ess(draws))


def _worst(views: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    rhat, bulk, tail = zip(*views, strict=True)
    return np.max(rhat), np.min(bulk), np.min(tail)


def _verdict(rhat, ess, names, chains: int, stuck: int, max_rhat: float, min_ess: float) -> Reliability:
    reasons = []
    if stuck:
        reasons.append(f"{stuck} of {chains} chains never moved: start them elsewhere, or give them more warm-up")
    # Written so that NaN counts against.
    apart = np.flatnonzero(~(rhat <= max_rhat))
    if len(apart):
        worst = apart[np.argmax(np.nan_to_num(rhat[apart], nan=np.inf))]
        reasons.append(
            f"chains disagree about {len(apart)} of {len(rhat)} parameters, most about {names[worst]} (R-hat {rhat[worst]:.3f}, "
            f"wanted {max_rhat}): run longer, or jump between modes with a flow proposal"
        )
    few = np.flatnonzero(~(ess >= min_ess))
    if len(few):
        worst = few[np.argmin(np.nan_to_num(ess[few], nan=0.0))]
        reasons.append(f"effective sample size of {names[worst]} is {ess[worst]:.0f}, wanted {min_ess:.0f}: run longer")
    return Reliability.from_reasons(reasons)
