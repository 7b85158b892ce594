"""dynesty as a reference: nested sampling of a target with a prior, under the interface of our own samplers."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
import torch

from sbi_flows._random import RandomState, numpy_generator
from sbi_flows._validation import positive
from sbi_flows.bijections.support import parse_support
from sbi_flows.results import Evidence, Reliability, WeightedSamples
from sbi_flows.samplers.unseen import told
from sbi_flows.targets import LogDensity, Target, as_target, cube_transform
from sbi_flows.weights import kish_ess

_NO_LIKELIHOOD = -1e300  # dynesty takes no infinities


def run_dynesty(
    target: Target,
    *,
    n_live: int = 500,
    dlogz: float = 0.01,
    bound: str = "multi",
    sample: str = "auto",
    max_calls: int | None = None,
    transform: LogDensity | None = None,
    random_state: RandomState = None,
) -> tuple[WeightedSamples, Evidence]:
    """Sample a target with dynesty's static nested sampler, likelihood by likelihood.

    Parameters
    ----------
    target : Target
        With a prior.
    n_live : int
        Live points; the error of ln Z falls as the root of their number.
    dlogz : float
        The run ends when the live points can add no more than this to ln Z.
    bound, sample : str
        dynesty's ways to bound the live points and to draw new ones.
    max_calls : int, optional
        Likelihood calls at most, those of the first live points among them; a point that is under way is finished. More than ``n_live``.
    transform : callable, optional
        The unit cube ``(n, d)`` to parameters, as tensors; found for boxes, normals, scipy columns and products of these
        (:func:`sbi_flows.targets.cube_transform`).
    random_state : optional

    Returns
    -------
    draws : WeightedSamples
        Dead points with their weights, in the user's parameters; ``log_z`` and its error are dynesty's own, as in ``evidence``. ``info``
        holds ``n_evaluations`` and ``seconds``.
    evidence : Evidence
        With dynesty's own error, which counts the randomness of the shrinkage only: not a mode that no live point has met, nor the
        correlation of draws by short walks.

    Raises
    ------
    ImportError
        If dynesty is not installed.
    ValueError
        If the target has no prior, or ``max_calls`` leaves none beyond the live points.
    TypeError
        If the prior has no transform from the cube and none is given.

    Examples
    --------
    >>> from sbi_flows.distributions import BoxUniform
    >>> from sbi_flows.targets import posterior
    >>> target = posterior(lambda x: -0.5 * x.square().sum(-1), BoxUniform([-5.0], [5.0]))
    >>> draws, evidence = run_dynesty(target, n_live=100, random_state=0)                                   # doctest: +SKIP
    >>> abs(evidence.log_z - np.log(np.sqrt(2 * np.pi) / 10)) < 4 * evidence.log_z_err                      # doctest: +SKIP
    True

    References
    ----------
    Speagle 2020, "dynesty: a dynamic nested sampling package", arXiv:1904.02180; Skilling 2006, Bayesian Analysis 1.
    """
    try:
        import dynesty
    except ImportError as error:
        raise ImportError("run_dynesty needs dynesty: pip install 'sbi_flows[dynesty]'.") from error
    positive("n_live", n_live, integer=True)
    positive("dlogz", dlogz)
    if max_calls is not None and not max_calls > n_live:
        raise ValueError(f"Expected max_calls above n_live = {n_live}, whose points are evaluated first; got {max_calls}.")
    target = as_target(target)
    if target.prior is None:
        raise ValueError("Expected a target with a prior, over which nested sampling goes: make it with targets.posterior.")
    transform = cube_transform(target.prior) if transform is None else transform
    likelihood = _Counted(target)
    began = time.perf_counter()
    sampler = dynesty.NestedSampler(
        likelihood,
        _one_row(transform),
        target.features,
        nlive=n_live,
        bound=bound,
        sample=sample,
        periodic=_periodic(target, transform) or None,
        rstate=numpy_generator(random_state),
    )
    # It divides by differences of likelihoods that may be equal, on plateaus.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The sampling was stopped short", category=UserWarning)  # the verdict says so
        # It does not count the calls that its first live points took.
        calls_left = None if max_calls is None else max(max_calls - likelihood.n_evaluations, 1)
        sampler.run_nested(dlogz=dlogz, maxcall=calls_left, print_progress=False)
        results = sampler.results
    info = {
        "sampler": f"dynesty {dynesty.__version__}",
        "random_state": random_state if isinstance(random_state, int | np.integer) else None,
        "n_live": n_live,
        "n_evaluations": likelihood.n_evaluations,
        "n_gradients": 0,
        "seconds": time.perf_counter() - began,
    }
    reasons = [] if calls_left is None else _cut_short(results, n_live, calls_left, dlogz)
    missing, holes = told(likelihood.n_invalid, likelihood.n_evaluations, "points")
    return _record(results, target, info, Reliability.from_reasons([*missing, *reasons], [*holes, *target.notes]))


def _cut_short(results: Any, n_live: int, calls_left: int, dlogz: float) -> list[str]:
    """By dynesty's own two criteria, as they stood when the last point died: after it the live ones are added as they are."""
    died = len(results.logl) - n_live
    remaining = np.logaddexp(0.0, np.max(results.logl) + results.logvol[died - 1] - results.logz[died - 1])
    if np.sum(results.ncall[:died]) <= calls_left or remaining < dlogz:
        return []
    return [f"max_calls ended the run with {remaining:.2g} of ln Z still in its live points (dlogz = {dlogz:g} asked for): raise it"]


def _record(results: Any, target: Target, info: dict[str, Any], verdict: Reliability) -> tuple[WeightedSamples, Evidence]:
    import pandas as pd

    points = torch.from_numpy(np.asarray(results.samples, dtype=np.float64))
    # So scaled that the mean weight is Z, as that of importance weights.
    log_weights = np.asarray(results.logwt, dtype=np.float64) + np.log(len(points))
    log_z, error = float(results.logz[-1]), float(results.logzerr[-1])
    share = kish_ess(log_weights) / len(points)
    row = {"log_z": log_z, "log_z_err": error, "ess": share, "pareto_k": np.nan, "n_evaluations": info["n_evaluations"]}
    table = pd.DataFrame([row], index=["nested sampling"])
    evidence = Evidence(log_z, error, "nested sampling", share, np.nan, verdict, table, target.names, info)
    return WeightedSamples(target.recorded(points).numpy(), log_weights, target.names, verdict, info, evidence), evidence


class _Counted:
    """ln L of one point for dynesty, counted."""

    def __init__(self, target: Target):
        self.target = target
        self.n_evaluations = self.n_invalid = 0

    def __call__(self, theta: np.ndarray) -> float:
        self.n_evaluations += 1
        with torch.no_grad():
            value = float(self.target.log_likelihood(torch.from_numpy(np.ascontiguousarray(theta, dtype=np.float64))[None]))
        if np.isnan(value) or value == np.inf:
            self.n_invalid += 1
            return _NO_LIKELIHOOD
        return max(value, _NO_LIKELIHOOD)


def _one_row(transform: LogDensity):
    def point(u: np.ndarray) -> np.ndarray:
        return transform(torch.from_numpy(np.array(u, dtype=np.float64))[None])[0].numpy()

    return point


def _periodic(target: Target, transform: LogDensity) -> list[int]:
    """Angles whose whole period is the image of their edge of the cube, so that they may go round in it."""
    columns = parse_support(target.support, target.features, target.names)
    low, high = transform(torch.stack([torch.zeros(target.features), torch.ones(target.features)]).double()).tolist()
    whole = [
        j for j, column in enumerate(columns)
        if column.kind == "circular" and np.allclose([low[j], high[j]], [column.low, column.high], rtol=0, atol=1e-9 * (high[j] - low[j]))
    ]
    # dynesty 3.1 fails where no column has ends; without being told of the circle it is right, if less quick.
    return whole if len(whole) < target.features else []
