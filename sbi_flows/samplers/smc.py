"""``smc``: from the prior to the posterior and its evidence, without a starting point."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from sbi_flows._random import RandomState, torch_generator
from sbi_flows._threads import one_thread
from sbi_flows._validation import positive
from sbi_flows.flows import Flow, build, nsf
from sbi_flows.results import Evidence, Reliability, SMCResult, WeightedSamples
from sbi_flows.samplers.flow_smc import FlowAscent, ascend_by_flows
from sbi_flows.samplers.kernel import Kernel
from sbi_flows.samplers.random_walk import RandomWalk
from sbi_flows.samplers.tempered_path import TemperedPath
from sbi_flows.samplers.unseen import reach
from sbi_flows.samplers.waste_free import FORGOTTEN, Ascent, ascend
from sbi_flows.targets import Target
from sbi_flows.weights import largest_pareto_k, log_mean_exp

_CHAINS = 400  # at each temperature, without a flow, where the user does not say
_PRIOR_DRAWS = 5  # a chain, 2 a draw of a flow: they must find every mode
_SHARE = 0.5  # of the particles that a rise of the power leaves: by a fifth, ln Z of a normal in 5 columns was off by .47, by a half by .14
_RUNS, _LEAST_CHAINS = 4, 20
_STUDENT = 1.2  # what 68 % of t with three degrees of freedom stay within
_DISAGREE = 2.5  # times what they state that runs scatter by: once in 3000, if they were right
_LEAST_MOVES, _MOST_MOVES = 5, 60  # of each chain; 5 more a parameter at most
_DRAWS = 2000  # of each flow
_LAYERS, _HIDDEN = 2, (64, 64)
# Branches that grow later lie 16 standard deviations out at first (Rosenbrock-10): beyond its bound a spline is straight.
_BOUND, _BINS = 15.0, 16
_LARGEST_ERROR, _MUCH = 0.25, 0.05  # masses of separate modes are about as uncertain as ln Z
# Efficiency on the way below which mass was lost: Rosenbrock-10 runs with stages of .02, .03 and .09 had ln Z wrong by .41, .21 and .16.
_LOST = 0.15
_SAME, _MADE_GOOD = 1.1, 0.3  # until the power has risen by so much, and the efficiency that says that a flow has learned what was heavy


def smc(
    target: Target,
    *,
    n_particles: int | str = "auto",
    flow: str | Flow | Mapping[str, Any] | None = "auto",
    kernel: Kernel | str = "auto",
    random_state: RandomState = None,
) -> SMCResult:
    """Sequential Monte Carlo from the prior: draws of the posterior and ln Z.

    The power of the likelihood rises from 0 to 1 in steps that leave the particles effective. With a flow, one that is fitted to all points
    so far proposes at each power, and ln Z comes from an importance sample of the last one (:mod:`sbi_flows.samplers.flow_smc`): that
    spares evaluations, where they cost more than milliseconds. Without, a kernel moves particles until they have forgotten where they
    started, and ln Z is the product of the ratios on the way (:mod:`sbi_flows.samplers.waste_free`), averaged over four independent runs,
    whose scatter is its error.

    Parameters
    ----------
    target : Target
        With a prior.
    n_particles : int or "auto"
        Draws of each flow, by default 2000 and a hundred a parameter if that is more; or twice the chains at each power of each of four
        runs, by default 400 and ten a parameter if that is more. What no draw of the prior is near is not found: more particles find more.
    flow : "auto", Flow, mapping or None
        "auto" is a spline flow; a flow (copied), or the ``spec`` of one; None for none.
    kernel : Kernel or "auto"
        What moves particles without a flow; "auto" is ``RandomWalk()``. A kernel given by the user, with ``flow="auto"``, means none.
    random_state : int, generator or None

    Returns
    -------
    SMCResult
        Draws with weights, ``evidence``, the likelihood's evaluations counted, and a verdict.

    Raises
    ------
    ValueError
        If the target has no prior, no draw of it has a likelihood above zero, or settings are out of range.

    Examples
    --------
    >>> from sbi_flows.distributions import BoxUniform
    >>> from sbi_flows.targets import posterior
    >>> target = posterior(lambda x: -0.5 * (x / 0.1).square().sum(-1), BoxUniform([-1.0] * 2, [1.0] * 2))
    >>> result = smc(target, flow=None, random_state=0)
    >>> bool(abs(result.evidence.log_z - np.log(2 * np.pi * 0.01 / 4)) < 5 * result.evidence.log_z_err)
    True

    References
    ----------
    Dau & Chopin 2022, "Waste-free sequential Monte Carlo", J. R. Statist. Soc. B 84; Cornuet, Marin, Mira & Robert 2012, "Adaptive
    multiple importance sampling", Scandinavian J. Statist. 39; Karamanis, Beutler, Peacock, Nabergoj & Seljak 2022, "Accelerating
    astronomical and cosmological inference with preconditioned Monte Carlo", arXiv:2207.05652.
    """
    path, generator, d = TemperedPath(target), torch_generator(random_state), target.features
    n = None if n_particles == "auto" else int(positive("n_particles", n_particles, integer=True))
    if isinstance(kernel, str) and kernel != "auto":
        raise ValueError(f"Expected kernel to be 'auto' or a kernel such as RandomWalk(); got {kernel!r}.")
    by_kernel = flow is None or (flow == "auto" and not isinstance(kernel, str))
    if not by_kernel and not isinstance(kernel, str):
        raise ValueError("Expected a flow or a kernel to move the particles; got both. Leave out one of them.")
    with one_thread():
        if by_kernel:
            return _by_kernel(path, n or max(_CHAINS, 10 * d), RandomWalk() if isinstance(kernel, str) else kernel, generator)
        n = n or max(_DRAWS, 100 * d)
        return _by_flow(path, ascend_by_flows(path, n, 2 * n, _flow(flow, target, generator), generator), 2 * n)


def _flow(flow: Any, target: Target, generator: torch.Generator) -> Flow:
    if isinstance(flow, Flow):
        chosen = copy.deepcopy(flow)
    elif isinstance(flow, Mapping):
        chosen = build(flow, generator)
    elif flow == "auto":
        return ascending_flow(target, generator)
    else:
        raise ValueError(f"Expected flow to be 'auto', None, a flow such as nsf({target.features}), or the spec of one; got {flow!r}.")
    if chosen.features != target.features or chosen.context_features:
        raise ValueError(f"Expected a flow of {target.features} features without context; got one of {chosen.features}.")
    return chosen


def ascending_flow(target: Target, generator: torch.Generator) -> Flow:
    """The spline flow that follows a posterior from its prior."""
    return nsf(target.features, layers=_LAYERS, hidden=_HIDDEN, bins=_BINS, bound=_BOUND, support=target.support, generator=generator)


def _by_kernel(path: TemperedPath, n_chains: int, kernel: Kernel, generator: torch.Generator) -> SMCResult:
    each = max(_LEAST_CHAINS, n_chains // 2)
    moves = {"least_moves": _LEAST_MOVES, "most_moves": _MOST_MOVES + 5 * path.features}
    runs = [ascend(path, each, _PRIOR_DRAWS * each, kernel, generator, ess=each, share=_SHARE, **moves) for _ in range(_RUNS)]
    log_zs, stated = np.array([run.log_ratios.sum() for run in runs]), np.array([_spread(run) for run in runs])
    log_z = float(log_mean_exp(log_zs))
    scatter = float(np.std(np.exp(log_zs - log_z), ddof=1))
    # Of four numbers' scatter a standard error is Student's t, of three degrees of freedom.
    error = max(math.sqrt(np.mean(stated**2) / _RUNS), _STUDENT * scatter / math.sqrt(_RUNS))
    reasons, notes = _by_kernel_remarks(runs, error)
    if scatter > max(_DISAGREE * float(np.sqrt(np.mean(stated**2))), 0.1):
        shown = ", ".join(f"{value:.2f}" for value in log_zs)
        reasons.append(
            f"{_RUNS} runs from draws of the prior of their own disagree by more than errors of {stated.mean():.2g}: ln Z is {shown}. "
            "What some of them missed all may have: use a flow, or more particles"
        )
    verdict = _verdict(path, reasons, notes, _RUNS * _PRIOR_DRAWS * each, float(min(run.acceptances[-1] for run in runs)))
    x = torch.cat([run.particles.x for run in runs]).numpy()
    rows = np.array([len(run.particles.x) for run in runs])
    log_weights = np.repeat(log_zs + np.log(len(x) / (_RUNS * rows)), rows)
    samples = WeightedSamples(x, log_weights, path.names, verdict)
    table = _table({"product": (log_z, error, samples.ess / len(x), -np.inf, path.n_evaluations)})
    evidence = Evidence(log_z, error, "product", samples.ess / len(x), -np.inf, verdict, table, path.names)
    longest = max(runs, key=lambda run: len(run.powers))
    return SMCResult(samples, evidence, longest.powers, longest.acceptances, path.n_evaluations, verdict)


def _by_kernel_remarks(runs: list[Ascent], error: float) -> tuple[list[str], list[str]]:
    """What speaks against the runs, and notes."""
    reasons = [f"the error of ln Z is {error:.2g}: use more particles"] if error > _LARGEST_ERROR else []
    tails, powers = (np.concatenate([getattr(run, name) for run in runs]) for name in ("tails", "powers"))
    worst = int(np.argmax(tails))
    if tails[worst] > largest_pareto_k(min(len(run.particles.x) for run in runs)):
        reasons.append(
            f"weights at power {powers[worst]:.2g} have Pareto k = {tails[worst]:.2f}: the likelihood is largest where hardly any particle "
            "was, and more of it may have been missed. Use a flow, or more particles"
        )
    remembered = np.concatenate([run.remembered for run in runs]) > FORGOTTEN
    told = (
        f"at {remembered.sum()} of {len(remembered)} temperatures of {len(runs)} runs chains remembered where they started: what the "
        "prior's draws did not find may be missing, and masses of separate modes are those that they gave them"
    )
    if remembered.mean() > 0.5:
        return [*reasons, f"{told}. Use a flow, a kernel with gradients, or more particles"], []
    return reasons, [told] if remembered.any() else []


def _spread(ascent: Ascent) -> float:
    """Standard error of ln Z: where chains remember their starts, errors of successive temperatures may be one and the same, and add up."""
    total, run = 0.0, 0.0
    for variance, remembered in zip(ascent.variances, ascent.remembered, strict=True):
        run += math.sqrt(variance)
        if remembered <= FORGOTTEN:
            total, run = total + run**2, 0.0
    return math.sqrt(total + run**2)


def _by_flow(path: TemperedPath, ascent: FlowAscent, n_prior: int) -> SMCResult:
    drawn = WeightedSamples(ascent.x.numpy(), ascent.log_weights.numpy(), path.names)
    # Mass that the flows miss is unknown to the weights: it has been looked for no better than the chains' own error.
    log_z, error = drawn.log_z, max(drawn.log_z_err, ascent.missed.error)
    k, share = drawn.pareto_k, drawn.ess / len(drawn.samples)
    reasons = list(drawn.reliability.reasons)
    if ascent.thin > _MUCH:
        reasons.append(
            f"{ascent.thin:.0%} of the posterior, as the particles on the way tell it, lies where the last flow has less than a hundredth "
            "of its density: use more particles, or flow=None"
        )
    if ascent.missed.real:
        reasons.append(
            "chains that start from the draws find mass where the flows have next to none, or none where they have some: ln Z would be "
            f"{ascent.missed.log_ratio:+.2g} +- {ascent.missed.error:.1g} from the one given, or further. Use more particles, or flow=None"
        )
    reasons += [f"{reason}. Use more particles" for reason in ascent.climbed.reasons()]
    lost, notes = _poor_stages(ascent), []
    if lost:
        power, efficiency, recovered = lost
        told = f"at power {power:.2g} the flow's draws were worth {efficiency:.1%} of their number"
        if recovered:
            notes.append(f"{told}: a flow trained on them did better at that power before it rose")
        else:
            reasons.append(
                f"{told}: a part of the posterior may have been lost there, unseen by the error of ln Z. Use more particles"
            )
    pooled, pooled_ess = ascent.pool.log_z(1.0), max(ascent.pool.ess(1.0), 1e-300)
    verdict = _verdict(path, reasons, notes, n_prior, 1.0)
    rows = {
        "importance": (log_z, error, share, k, len(drawn.samples)),
        # Its shares of the temperatures came from the same points: for comparison only.
        "recycled": (pooled, pooled_ess**-0.5, pooled_ess / len(ascent.pool.x), np.nan, path.n_evaluations - len(drawn.samples)),
    }
    evidence = Evidence(log_z, error, "importance", share, k, verdict, _table(rows), path.names)
    samples = WeightedSamples(drawn.samples, drawn.log_weights, path.names, verdict)
    return SMCResult(samples, evidence, ascent.powers, ascent.efficiencies, path.n_evaluations, verdict)


def _verdict(path: TemperedPath, reasons: list[str], notes: list[str], n_prior: int, acceptance: float) -> Reliability:
    missing, holes = path.told(acceptance)
    return Reliability.from_reasons([*missing, *reasons], [*holes, *notes, reach(n_prior)])


def _poor_stages(ascent: FlowAscent) -> tuple[float, float, bool] | None:
    """Power and efficiency of the worst stage of poor draws, and whether flows trained on them did well before the power rose further.

    One that was never made good comes first.
    """
    powers, efficiencies = ascent.powers, ascent.efficiencies
    found = []
    for i in np.flatnonzero(efficiencies < _LOST):
        after = efficiencies[i + 1 :][powers[i + 1 :] <= _SAME * powers[i]]
        found.append((bool(len(after) and after.max() >= _MADE_GOOD), float(efficiencies[i]), float(powers[i])))
    if not found:
        return None
    recovered, efficiency, power = min(found)
    return power, efficiency, recovered


def _table(rows: Mapping[str, tuple[float, ...]]) -> pd.DataFrame:
    return pd.DataFrame.from_dict(rows, orient="index", columns=["log_z", "log_z_err", "ess", "pareto_k", "n_evaluations"])
