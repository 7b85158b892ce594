"""Chains and sequential Monte Carlo of the timing likelihood, which importance weights and networks have no part in.

The moves are those of :class:`sbi_flows.physics.pta.timing_sweeps.PulsarSweeps`: every pulsar's noise and the source in turn, by random
walks on the likelihood without correlations. What correlations change is accepted, or weighed, at the end.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from sbi_flows.physics.pta import timing_likelihood
from sbi_flows.physics.pta.timing import TimingTarget
from sbi_flows.physics.pta.timing_sweeps import Moves, PulsarSweeps, SweepState, better_steps
from sbi_flows.targets import unconstrained
from sbi_flows.weights import kish_ess, log_mean_exp

_CHAINS = 128
_KEPT_EVERY = 40  # draws: a run that is stopped loses no more
_ALONE = 300  # sweeps without correlations that bring chains from the prior to where these change little
BURN = 120  # draws of each chain in which steps are learned, and which are left out
_RUNS = 3  # of sequential Monte Carlo, each from draws of the prior of its own
_LEFT = 0.5  # effective share of the particles at the next power
_MOVES = 12  # sweeps at each power; with five, runs differed by twice what their weights say


def mcmc(folder: Path, model: str, seconds: float, seed: int) -> None:
    """Chains from where they were left, or from the prior, for so many seconds of processor time."""
    target = timing_likelihood(spectrum=model)
    path = folder / f"mcmc_{model}.npz"
    chain = _Surrogate(target, path, seed)
    began = time.process_time()
    while time.process_time() - began < seconds:
        chain.step()
        if len(chain.rows) % _KEPT_EVERY == 0:
            chain.save(path)
    chain.save(path)
    share = chain.accepted / max(chain.proposed, 1)
    print(f"{model}: {_CHAINS} chains of {len(chain.rows)} draws; ends accepted {share:.0%}", flush=True)


class _Surrogate:
    """The chains of :class:`PulsarSweeps`, kept in a file."""

    def __init__(self, target: TimingTarget, path: Path, seed: int):
        self.kernel, self.space = PulsarSweeps(target), unconstrained(target)
        self.accepted = self.proposed = 0
        self.rows: list[np.ndarray] = []
        self.generator = torch.Generator().manual_seed(seed)
        if path.is_file():
            with np.load(path) as stored:
                self.rows = list(np.swapaxes(stored["rows"], 0, 1))
                self.state = SweepState(*(torch.from_numpy(stored[name]) for name in SweepState._fields))
            self.generator.manual_seed(seed + len(self.rows))
        else:
            x, step = _without_correlations(Moves(target), self.generator)
            self.state = self.kernel.init(self.space.from_user(x), self.space)._replace(step=step)

    def step(self) -> None:
        """A draw of every chain; the kernel learns in the first draws, which are left out of what is compared."""
        state, info = self.kernel.step(self.state, self.space, self.generator)
        n = len(self.rows) + 1
        self.state = self.kernel.adapt(state, info, self.space, n / BURN) if n <= BURN else state
        self.accepted, self.proposed = self.accepted + int(info.accepted.sum()), self.proposed + _CHAINS
        self.rows.append(self.space.to_user(self.state.position)[0].numpy())

    def save(self, path: Path) -> None:
        np.savez(path, rows=np.stack(self.rows, axis=1), **{name: value.numpy() for name, value in self.state._asdict().items()})


def _without_correlations(moves: Moves, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Where chains from the prior come to, ``(_CHAINS, d)``, and the steps they learned."""
    x, step = torch.rand(_CHAINS, moves.features, generator=generator, dtype=torch.float64), moves.first_steps()
    apart = moves.apart(x)
    for _ in range(_ALONE):
        x, apart = moves.source(x, apart, moves.factor(x), generator)
        x, apart, share = moves.own(x, apart, step, generator)
        step = better_steps(step, share)
    return moves.theta(x), step


def tempered(folder: Path, model: str, particles: int, seed: int) -> None:
    """ln Z by sequential Monte Carlo from the prior: the uncorrelated likelihood to rising powers, then the mean ratio of the two.

    The error is that of the mean of independent runs by their scatter, with Student's factor for so few, or what the weights of all steps
    say where that is larger: three runs may agree by luck.
    """
    target = timing_likelihood(spectrum=model)
    cpu = time.process_time()
    generator = torch.Generator().manual_seed(seed)
    runs = [_risen(Moves(target), particles, generator) for _ in range(_RUNS)]
    log_z = np.array([found[0] for found in runs])
    ratios = np.concatenate([found[2] for found in runs])
    mean = float(log_mean_exp(log_z))
    scatter = float(stats.t.ppf(0.84, _RUNS - 1)) * float(np.std(np.exp(log_z - mean), ddof=1))
    error = max(scatter, math.sqrt(float(np.mean([found[4] for found in runs])))) / math.sqrt(_RUNS)
    cpu = time.process_time() - cpu
    np.savez(folder / f"tempered_{model}.npz", samples=np.concatenate([found[1] for found in runs]), log_weights=ratios, log_z=log_z)
    print(
        f"{model}: ln Z {mean:.3f} +- {error:.3f} from runs of {', '.join(f'{value:.2f}' for value in log_z)}; {runs[0][3]} powers, "
        f"ESS of the last ratio {kish_ess(ratios):.0f} of {len(ratios)}, processor {cpu:.0f} s",
        flush=True,
    )


def _risen(moves: Moves, n: int, generator: torch.Generator) -> tuple[float, np.ndarray, np.ndarray, int, float]:
    """ln Z, theta of the particles, the log-ratios of the two likelihoods there, the number of powers, and the variance of ln Z."""
    x, step = torch.rand(n, moves.features, generator=generator, dtype=torch.float64), moves.first_steps()
    apart, power, log_z, powers, variance = moves.apart(x), 0.0, 0.0, 0, 0.0
    while power < 1:
        values = apart.sum(1)
        rise = _next(values, 1 - power)
        log_weights = rise * values
        log_z += float(torch.logsumexp(log_weights, 0)) - math.log(n)
        variance += 1 / kish_ess(log_weights.numpy()) - 1 / n
        kept = _systematic(torch.softmax(log_weights, 0), generator)
        x, apart, power, powers = x[kept], apart[kept], power + rise, powers + 1
        factor = moves.factor(x)
        for _ in range(_MOVES):
            x, apart = moves.source(x, apart, factor, generator, power)
            x, apart, share = moves.own(x, apart, step, generator, power)
            step = better_steps(step, share)
    with torch.no_grad():
        ratio = (moves.target.log_likelihood(moves.theta(x)) - apart.sum(1)).numpy()
    variance += 1 / kish_ess(ratio) - 1 / n
    return log_z + float(log_mean_exp(ratio)), moves.theta(x).numpy(), ratio, powers, variance


def _next(values: Tensor, left: float) -> float:
    """The rise of the power that leaves a given share of the particles effective."""

    def share(rise: float) -> float:
        return kish_ess((rise * values).numpy()) / len(values)

    if share(left) >= _LEFT:
        return left
    low, high = 0.0, left
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if share(middle) > _LEFT else (low, middle)
    return max(low, 1e-12)


def _systematic(shares: Tensor, generator: torch.Generator) -> Tensor:
    places = (torch.arange(len(shares), dtype=torch.float64) + torch.rand(1, generator=generator, dtype=torch.float64)) / len(shares)
    return torch.searchsorted(shares.cumsum(0), places).clamp(max=len(shares) - 1)
