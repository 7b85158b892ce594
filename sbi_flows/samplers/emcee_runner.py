"""emcee as a reference: an ensemble run until it has mixed, under the interface of our own samplers."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import emcee
import numpy as np
import torch

from sbi_flows._random import RandomState, numpy_generator, torch_generator
from sbi_flows._validation import as_rows, positive
from sbi_flows.bijections.support import parse_support
from sbi_flows.results import Chains, Reliability
from sbi_flows.samplers.run import judge
from sbi_flows.samplers.unseen import told
from sbi_flows.targets import Target, as_target

MIN_TAUS = 50  # a run shorter than this many autocorrelation times cannot measure its own autocorrelation time
_STARTS = 20  # draws of the prior, a walker, among which their starts are chosen
_MIN_ACCEPTANCE = 0.02
_MAX_RHAT = 1.05  # between walkers: twice the excess that is left after 50 autocorrelation times
_COMPARED = 200  # draws of each walker, about, that tell whether they agree


def run_emcee(
    target: Target,
    init: Any = None,
    *,
    n_walkers: int | None = None,
    moves: Sequence[Any] | None = None,
    n_burn_in: int = 500,
    min_ess: float = 4000,
    min_steps: int = 500,
    max_steps: int = 20_000,
    max_draws: int = 40_000,
    random_state: RandomState = None,
) -> Chains:
    """Sample a target with emcee, all walkers in one batch, until the ensemble has the effective size asked for.

    Walkers move in the user's own parameters, with no density outside the support; an angle is kept in one period.

    Parameters
    ----------
    target : Target
    init : array_like (n_walkers, d), optional
        By default draws of the prior, chosen by their likelihoods, so that every mode they find starts with its share of walkers.
    n_walkers : int, optional
        ``max(4 d, 40)`` by default, or as many as ``init`` has rows.
    moves : sequence of (emcee move, weight) pairs, optional
        emcee's stretch move by default; see :class:`FlowMove`.
    n_burn_in : int
        Steps dropped at the start; raised to ten autocorrelation times if that is more.
    min_ess : float
        The run goes on until every parameter has this effective size and the run 50 autocorrelation times.
    min_steps, max_steps : int
        Kept steps at least, and where to give up; the verdict then says so.
    max_draws : int
        The chains are thinned to about this many draws, and to one draw in half an autocorrelation time at most.
    random_state : optional

    Returns
    -------
    Chains
        Walkers ``(walker, draw, d)``, with ``ensemble=True``. ``info`` holds ``tau`` (a tuple, in steps), ``ess`` (before thinning),
        ``acceptance``, ``n_steps``, ``n_burn_in``, ``thin``, ``n_evaluations`` (all, burn-in and choice of starts included), ``seconds``.

    Raises
    ------
    ValueError
        When there are no points to start from: no ``init`` and no prior, too few of its draws with a density, rows of ``init`` that have
        none (outside the support, say), or fewer different rows than two a parameter.

    Examples
    --------
    >>> from sbi_flows.distributions import BoxUniform
    >>> from sbi_flows.targets import posterior
    >>> target = posterior(lambda x: -0.5 * x.square().sum(-1), BoxUniform([-5.0, -5.0], [5.0, 5.0]))
    >>> chains = run_emcee(target, min_ess=500, random_state=0)
    >>> bool(abs(chains.samples.std() - 1) < 0.2), chains.info["n_evaluations"] > 20_000
    (True, True)

    References
    ----------
    Foreman-Mackey, Hogg, Lang & Goodman 2013, "emcee: the MCMC hammer", arXiv:1202.3665.
    """
    for name, value in (("n_burn_in", n_burn_in), ("min_steps", min_steps), ("max_steps", max_steps), ("max_draws", max_draws)):
        positive(name, value, integer=True)
    positive("min_ess", min_ess)
    if max_steps < min_steps:
        raise ValueError(f"Expected max_steps of at least min_steps; got {max_steps} and {min_steps}.")
    began = time.perf_counter()
    density = _Counted(as_target(target))
    rng = numpy_generator(random_state)
    start = _starts(target, density, n_walkers, rng) if init is None else density.in_one_period(_given(init, target, n_walkers))
    log_prob = density(start)
    _check_starts(start, log_prob, target)
    sampler = emcee.EnsembleSampler(len(start), target.features, density, vectorize=True, moves=moves)
    state = emcee.State(start, log_prob=log_prob, random_state=np.random.RandomState(rng.integers(2**31)).get_state())
    state = sampler.run_mcmc(state, n_burn_in)
    sampler.reset()
    before = density.n_evaluations, density.n_invalid
    tau = _run_until_mixed(sampler, state, min_ess, min_steps, max_steps)
    chains, reasons = _record(sampler, target, tau, n_burn_in, min_ess, max_steps, max_draws)
    info = {
        "sampler": f"emcee {emcee.__version__}",
        "random_state": random_state if isinstance(random_state, int | np.integer) else None,
        **chains.info,
        "n_evaluations": density.n_evaluations,
        "n_gradients": 0,
        "seconds": time.perf_counter() - began,
    }
    n, n_invalid = density.n_evaluations - before[0], density.n_invalid - before[1]
    missing, holes = told(n_invalid, n, "proposals after burn-in", chains.info["acceptance"])
    verdict = Reliability.from_reasons([*missing, *reasons], [*holes, *target.notes])
    return Chains(
        chains.samples, chains.names, chains.log_posterior, chains.log_likelihood, ensemble=True, reliability=verdict, info=info
    )


class _Counted:
    """The target's log-density for emcee: rows of numpy in, a number a row out, which is never NaN or +inf."""

    def __init__(self, target: Target):
        self.target = target
        self.n_evaluations = self.n_invalid = 0
        columns = parse_support(target.support, target.features, target.names)
        circular = [column.kind == "circular" for column in columns]
        self._low = np.array([c.low if angle else -np.inf for c, angle in zip(columns, circular, strict=True)])
        self._high = np.array([c.high if angle else np.inf for c, angle in zip(columns, circular, strict=True)])

    def in_one_period(self, theta: np.ndarray) -> np.ndarray:
        """``theta (n, d)`` with its angles brought into their period."""
        angle = np.isfinite(self._low)
        low, period = self._low[angle], (self._high - self._low)[angle]
        moved = theta.copy()
        moved[:, angle] = low + np.mod(theta[:, angle] - low, period)
        # Rounding may land on the upper end, which is the lower one.
        return np.where(moved >= self._high, self._low, moved)

    def __call__(self, theta: np.ndarray) -> np.ndarray:
        self.n_evaluations += len(theta)
        with torch.no_grad():
            values = self.target.log_prob(torch.from_numpy(np.ascontiguousarray(theta, dtype=np.float64))).numpy().copy()
        wrong = np.isnan(values) | (values == np.inf)
        self.n_invalid += int(wrong.sum())
        outside = ((theta < self._low) | (theta >= self._high)).any(axis=1)
        values[wrong | outside] = -np.inf
        return values


def _starts(target: Target, density: _Counted, n_walkers: int | None, rng: np.random.Generator) -> np.ndarray:
    """Prior draws chosen with weights L, flattened just enough that no walker starts on another; the burn-in mends that."""
    if target.prior is None:
        raise ValueError("Expected init, the walkers' starting points (n_walkers, d): this target has no prior to draw them from.")
    n = _walkers(n_walkers, target.features)
    theta = target.prior.sample(_STARTS * n, torch_generator(int(rng.integers(2**31)))).double()
    excess = density(theta.numpy()) - target.prior.log_prob(theta).numpy()
    log_weights = np.where(np.isfinite(excess), excess, -np.inf)
    found = int(np.isfinite(log_weights).sum())
    if found < n:
        raise ValueError(f"Only {found} of {len(theta)} prior draws have a likelihood above zero, fewer than the {n} walkers: pass init.")
    weights = np.exp(log_weights - log_weights.max())
    while weights.sum() ** 2 < n * np.square(weights).sum():
        weights = np.sqrt(weights)
    return theta.numpy()[rng.choice(len(theta), n, replace=False, p=weights / weights.sum())]


def _given(init: Any, target: Target, n_walkers: int | None) -> np.ndarray:
    start = as_rows(init, "init", target.features).double().numpy()
    if n_walkers is not None and n_walkers != len(start):
        raise ValueError(f"Expected init with n_walkers={n_walkers} rows; got {len(start)}. Leave n_walkers out.")
    _walkers(len(start), target.features)
    return start


def _check_starts(start: np.ndarray, log_prob: np.ndarray, target: Target) -> None:
    """Walkers stand still where there is no density, and between equal points."""
    without = np.flatnonzero(log_prob == -np.inf)
    if len(without):
        row = int(without[0])
        point = ", ".join(f"{name}={value:.6g}" for name, value in zip(target.names[:6], start[row], strict=False))
        raise ValueError(
            f"Expected every walker to start where the target has a density; {len(without)} of {len(start)} rows of init have none, the "
            f"first is row {row} ({point}{', ...' if target.features > 6 else ''}): it is outside the support, or the density is zero or "
            "not a number there. Start from points that have one, or leave init out to start from draws of the prior."
        )
    _, rows, counts = np.unique(start, axis=0, return_index=True, return_counts=True)
    if len(rows) < 2 * target.features:
        most = int(np.argmax(counts))
        raise ValueError(
            f"Expected at least {2 * target.features} different rows of init, two a parameter; {len(start)} rows hold {len(rows)}, and row "
            f"{rows[most]} is there {counts[most]} times. Walkers move along lines through each other: scatter them about the point, as "
            "point + 0.01 * scale * rng.normal(size=(n_walkers, d))."
        )


def _walkers(n_walkers: int | None, features: int) -> int:
    if n_walkers is None:
        return max(4 * features, 40)
    if n_walkers < 2 * features:
        raise ValueError(f"Expected at least {2 * features} walkers, two a parameter; got {n_walkers}.")
    return n_walkers


def _run_until_mixed(sampler: emcee.EnsembleSampler, state: Any, min_ess: float, min_steps: int, max_steps: int) -> np.ndarray:
    """Autocorrelation times ``(d,)`` in steps, at the end."""
    chunk = min_steps
    while True:
        state = sampler.run_mcmc(state, chunk)
        tau = np.maximum(sampler.get_autocorr_time(quiet=True, tol=0), 1.0)
        longest, steps = float(tau.max()), sampler.iteration
        needed = max(MIN_TAUS * longest, min_ess * longest / sampler.nwalkers)
        if steps >= needed or steps >= max_steps or not np.isfinite(longest):
            return tau
        # The estimate of tau grows as the run lengthens; a step beyond what it asks for saves a round.
        chunk = int(min(max(1.1 * needed - steps, 200), max_steps - steps))


def _record(
    sampler: emcee.EnsembleSampler, target: Target, tau: np.ndarray, n_burn_in: int, min_ess: float, max_steps: int, max_draws: int
) -> tuple[Chains, list[str]]:
    """What is kept, and what speaks against it."""
    steps, n_walkers, longest = sampler.iteration, sampler.nwalkers, float(tau.max())
    extra_burn_in = max(0, int(10 * longest) - n_burn_in) if math.isfinite(longest) else 0
    kept = steps - min(extra_burn_in, steps // 2)
    thin = max(int(longest / 2), -(-kept * n_walkers // max_draws), 1) if math.isfinite(longest) else 1
    samples = np.ascontiguousarray(sampler.get_chain(discard=steps - kept, thin=thin).swapaxes(0, 1))
    log_prob = sampler.get_log_prob(discard=steps - kept, thin=thin).T.copy()
    rows = torch.from_numpy(samples.reshape(-1, target.features))
    log_likelihood = None
    if target.prior is not None:
        log_likelihood = log_prob - target.prior.log_prob(rows).numpy().reshape(log_prob.shape)
    ess, acceptance = kept * n_walkers / longest, float(np.mean(sampler.acceptance_fraction))
    chains = Chains(
        samples=target.recorded(rows).numpy().reshape(samples.shape),
        names=target.names,
        log_posterior=log_prob if target.same_parameters else None,
        log_likelihood=log_likelihood,
        info={
            "tau": tuple(tau.tolist()),
            "ess": ess,
            "acceptance": acceptance,
            "n_steps": steps,
            "n_burn_in": n_burn_in + steps - kept,
            "thin": thin,
        },
    )
    reasons = _reasons(ess, min_ess, kept / longest, acceptance, max_steps)
    if math.isfinite(longest):
        reasons += _apart(sampler.get_chain(discard=steps - kept, thin=max(1, kept // _COMPARED)).swapaxes(0, 1), target)
    return chains, reasons


def _reasons(ess: float, min_ess: float, n_taus: float, acceptance: float, max_steps: int) -> list[str]:
    reasons = []
    if not np.isfinite(ess):
        return ["the chains have no measurable autocorrelation time: walkers are stuck"]
    if ess < 0.9 * min_ess:
        reasons.append(f"the chains hold {ess:.0f} independent draws, {min_ess:.0f} were asked for, after {max_steps} steps")
    if n_taus < 0.9 * MIN_TAUS:
        reasons.append(f"the chains are {n_taus:.0f} autocorrelation times long, at least {MIN_TAUS} are needed")
    if acceptance < _MIN_ACCEPTANCE:
        reasons.append(f"only {acceptance:.1%} of the moves were accepted")
    return reasons


def _apart(samples: np.ndarray, target: Target) -> list[str]:
    """Walkers ``(walker, draw, d)`` that disagree: autocorrelation times, taken within each, do not see that they never meet."""
    rhat = judge(samples, target).rhat
    # Written so that NaN counts against.
    apart = np.flatnonzero(~(rhat <= _MAX_RHAT))
    if not len(apart):
        return []
    worst = apart[np.argmax(np.nan_to_num(rhat[apart], nan=np.inf))]
    return [
        f"walkers disagree about {len(apart)} of {len(rhat)} parameters, most about {target.names[worst]} (R-hat {rhat[worst]:.3f}, "
        f"wanted {_MAX_RHAT}): groups of them stay where they started, so that the masses of modes are those of the starts. Run longer, "
        "or cross with FlowMove or FlowSampler"
    ]
