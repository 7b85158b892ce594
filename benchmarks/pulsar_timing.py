"""Pulsar timing: speed of the exact likelihood, and evidences and marginals by ways that share nothing but that likelihood.

Run from the repository root, with ``SBI_FLOWS_DATA`` set:

    python -m benchmarks.pulsar_timing speed
    python -m benchmarks.pulsar_timing importance --models smbhb,power_law --draws 30000
    python -m benchmarks.pulsar_timing mcmc --models power_law --seconds 300
    python -m benchmarks.pulsar_timing compare

``importance`` is :func:`sbi_flows.physics.pta.timing_refine.refined` from the prior, without a network. ``mcmc`` is a Markov chain that
shares none of it: random walks of every pulsar's noise and of the source in turn, on the likelihood without correlations, whose ends are
accepted or not by the ratio of the two likelihoods (Liu 2001, "surrogate transitions"). It goes on from where it stopped. Draws are kept
in ``--folder``.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sbi_flows.diagnostics import hellinger, hellinger_floor
from sbi_flows.physics.pta import DEFAULT_MODELS, timing_likelihood
from sbi_flows.physics.pta.timing import OWN, TimingTarget
from sbi_flows.physics.pta.timing_cube import Cube
from sbi_flows.physics.pta.timing_refine import refined
from sbi_flows.results import WeightedSamples
from sbi_flows.weights import autocorrelation_time

_CHAINS = 128
_KEPT_EVERY = 40  # draws: a run that is stopped loses no more
_SWEEPS = 5  # of all parameters between two looks at the correlated likelihood
_BURN = 120  # draws of each chain in which steps are learned, and which are left out


def speed(batches: tuple[int, ...] = (64, 256, 1024)) -> None:
    """Milliseconds an evaluation: processor time and wall time, least of five."""
    target = timing_likelihood()
    generator = torch.Generator().manual_seed(0)
    theta = target.prior.sample(max(batches), generator).double()
    theta[:, 0], theta[:, 1] = -14.2, 3.2
    print(f"{torch.get_num_threads()} thread(s), 10 pulsars, Hellings-Downs; ms an evaluation: processor, wall")
    for n in batches:
        for name, call in (("value", target.log_likelihood), ("gradient", target.log_prob_and_grad)):
            spent = []
            for _ in range(5):
                cpu, wall = time.process_time(), time.perf_counter()
                call(theta[:n])
                spent.append((time.process_time() - cpu, time.perf_counter() - wall))
            cpu, wall = np.min(spent, axis=0) / n * 1e3
            print(f"  batch {n:5d} {name:9s} {cpu:.3f} {wall:.3f}", flush=True)


def importance(folder: Path, model: str, draws: int, seed: int) -> None:
    """Weighted draws from the prior onwards, kept in ``folder``."""
    target = timing_likelihood(spectrum=model)
    cpu, wall = time.process_time(), time.perf_counter()
    found = refined(Cube(target, target.model.prior.features), n_samples=draws, random_state=seed)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    np.savez(folder / f"importance_{model}.npz", samples=found.samples, log_weights=found.log_weights, cpu=cpu)
    print(
        f"{model}: ln Z {found.log_z:.3f} +- {found.log_z_err:.3f}, ESS {found.ess:.0f} of {draws}, k {found.pareto_k:.2f}, "
        f"processor {cpu:.0f} s, wall {wall:.0f} s   {found.reliability}",
        flush=True,
    )


def mcmc(folder: Path, model: str, seconds: float, seed: int) -> None:
    """Chains from where they were left, or from the prior, for so many seconds of processor time."""
    target = timing_likelihood(spectrum=model)
    path = folder / f"mcmc_{model}.npz"
    chain = _Surrogate(Cube(target, target.model.prior.features), path, seed)
    began = time.process_time()
    while time.process_time() - began < seconds:
        chain.step()
        if len(chain.rows) % _KEPT_EVERY == 0:
            chain.save(path)
    chain.save(path)
    share = chain.accepted / max(chain.proposed, 1)
    print(f"{model}: {_CHAINS} chains of {len(chain.rows)} draws; ends accepted {share:.0%}", flush=True)


class _Surrogate:
    """Sweeps of random walks on the uncorrelated likelihood, ends accepted by the correlated one, all chains at once, on the cube."""

    def __init__(self, cube: Cube, path: Path, seed: int):
        self.cube, self.target = cube, cube.target
        self.accepted = self.proposed = 0
        self.rows: list[np.ndarray] = []
        self.generator = torch.Generator().manual_seed(seed)
        if path.is_file():
            with np.load(path) as stored:
                self.rows = list(np.swapaxes(stored["rows"], 0, 1))
                self.x, self.source_step, self.own_step = (torch.from_numpy(stored[key]) for key in ("x", "source_step", "own_step"))
            self.generator.manual_seed(seed + len(self.rows))
        else:
            self.x = torch.rand(_CHAINS, cube.features, generator=self.generator, dtype=torch.float64)
            self.source_step = 0.1 * torch.eye(cube.width, dtype=torch.float64)
            self.own_step = torch.full((self.target.n_pulsars,), 0.15, dtype=torch.float64)
        self.apart = self._apart(self.x)
        self.tied = self._tied(self.x)

    def _theta(self, x: Tensor) -> Tensor:
        """Own noise, like the source, is uniform between 0 and 1 here."""
        low, span = _own_box(self.target)
        return self.cube.to_user(torch.cat([x[:, : self.cube.width], low + span * x[:, self.cube.width :]], dim=1))

    def _apart(self, x: Tensor) -> Tensor:
        return self.target.log_likelihood_apart(self._theta(x))

    def _tied(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.target.log_likelihood(self._theta(x))

    def step(self) -> None:
        """A draw of every chain; the steps are learned in the first draws, which :func:`compare` leaves out."""
        x, apart = self.x.clone(), self.apart.clone()
        if 20 < len(self.rows) < _BURN:
            self._learn()
        x, apart = self._own(x, apart)
        for _ in range(_SWEEPS):  # the same forward and back, as a surrogate must be
            x, apart = self._source(x, apart)
            x, apart = self._own(x, apart)
        tied = self._tied(x)
        ratio = (tied - apart.sum(1)) - (self.tied - self.apart.sum(1))
        # While chains come from the prior the two likelihoods differ by anything; the surrogate alone brings them near.
        taken = (torch.rand(len(x), generator=self.generator, dtype=torch.float64).log() < ratio) | (len(self.rows) < _BURN // 2)
        self.x = torch.where(taken[:, None], x, self.x)
        self.apart = torch.where(taken[:, None], apart, self.apart)
        self.tied = torch.where(taken, tied, self.tied)
        self.accepted, self.proposed = self.accepted + int(taken.sum()), self.proposed + len(x)
        self.rows.append(self._theta(self.x).numpy())

    def _own(self, x: Tensor, apart: Tensor) -> tuple[Tensor, Tensor]:
        """Every pulsar's noise at once, each accepted by itself: given the source they are independent here."""
        n, p, width = len(x), self.target.n_pulsars, self.cube.width
        # One step in five is a fresh draw of the prior, which crosses the plateau of noise too faint to matter.
        step = self.own_step[:, None] * torch.randn(n, p, 2, generator=self.generator, dtype=torch.float64)
        fresh = torch.rand(n, p, 1, generator=self.generator, dtype=torch.float64) < 0.2
        old = x[:, width:].unflatten(1, (p, 2))
        proposed = torch.where(fresh, torch.rand(n, p, 2, generator=self.generator, dtype=torch.float64), old + step)
        inside = ((proposed > 0) & (proposed < 1)).all(-1)
        moved = torch.cat([x[:, :width], torch.where(inside[..., None], proposed, old).flatten(1)], dim=1)
        values = self._apart(moved)
        taken = inside & (torch.rand(n, p, generator=self.generator, dtype=torch.float64).log() < values - apart)
        if len(self.rows) < _BURN:
            local = (taken & ~fresh[..., 0]).sum(0) / (~fresh[..., 0]).sum(0)
            self.own_step *= torch.exp(0.2 * (local - 0.35))
        own = torch.where(taken[..., None], proposed, old)
        return torch.cat([x[:, :width], own.flatten(1)], dim=1), torch.where(taken, values, apart)

    def _source(self, x: Tensor, apart: Tensor) -> tuple[Tensor, Tensor]:
        """The source's parameters together, by their covariance in the first draws; a step in five is five times as wide."""
        n, width = len(x), self.cube.width
        wide = 1 + 4 * (torch.rand(n, 1, generator=self.generator, dtype=torch.float64) < 0.2)
        step = torch.randn(n, width, generator=self.generator, dtype=torch.float64) @ self.source_step.mT
        proposed = x[:, :width] + wide * step
        inside = ((proposed > 0) & (proposed < 1)).all(-1)
        moved = torch.cat([torch.where(inside[:, None], proposed, x[:, :width]), x[:, width:]], dim=1)
        values = self._apart(moved)
        taken = inside & (torch.rand(n, generator=self.generator, dtype=torch.float64).log() < (values - apart).sum(1))
        return torch.where(taken[:, None], moved, x), torch.where(taken[:, None], values, apart)

    def _learn(self) -> None:
        """The covariance of the chains as they stand, while nothing counts yet."""
        centred = self.x[:, : self.cube.width] - self.x[:, : self.cube.width].mean(0)
        covariance = centred.mT @ centred / len(centred) + 1e-8 * torch.eye(self.cube.width, dtype=torch.float64)
        self.source_step = 1.2 / math.sqrt(self.cube.width) * torch.linalg.cholesky(covariance)

    def save(self, path: Path) -> None:
        steps = {"source_step": self.source_step.numpy(), "own_step": self.own_step.numpy()}
        np.savez(path, rows=np.stack(self.rows, axis=1), x=self.x.numpy(), **steps)


def _own_box(target: TimingTarget) -> tuple[Tensor, Tensor]:
    low, high = (torch.tensor([entry[side] for entry in OWN] * target.n_pulsars, dtype=torch.float64) for side in (1, 2))
    return low, high - low


def prior_ratio(folder: Path) -> None:
    """ln Z of black-hole binaries over that of any power law, from chains of the latter alone: the mean ratio of the two priors."""
    path = folder / "mcmc_power_law.npz"
    if not path.is_file():
        return
    narrow, wide = (timing_likelihood(spectrum=model).model.prior for model in ("smbhb", "power_law"))
    with np.load(path) as stored:
        rows = torch.from_numpy(stored["rows"][:, _BURN:, : wide.features])
    ratio = torch.exp(narrow.log_prob(rows.flatten(0, 1)) - wide.log_prob(rows.flatten(0, 1))).unflatten(0, rows.shape[:2]).numpy()
    error = ratio.std() / ratio.mean() * math.sqrt(autocorrelation_time(ratio) / ratio.size)
    print(f"ln B of smbhb against power_law from the MCMC of power_law: {math.log(ratio.mean()):.3f} +- {error:.3f}")


def compare(folder: Path, models: list[str]) -> None:
    """Marginals of the two ways beside each other, and one ln B that no importance weight enters."""
    prior_ratio(folder)
    for model in models:
        path, other = folder / f"importance_{model}.npz", folder / f"mcmc_{model}.npz"
        if not (path.is_file() and other.is_file()):
            continue
        names = timing_likelihood(spectrum=model).names
        with np.load(path) as a, np.load(other) as b:
            weighted = WeightedSamples(a["samples"], a["log_weights"], names)
            rows = b["rows"][:, _BURN:]
        ess = np.array([rows[..., 0].size / autocorrelation_time(rows[..., j]) for j in range(rows.shape[-1])])
        distance = hellinger(weighted.samples, rows.reshape(-1, rows.shape[-1]), weights_x=weighted.weights)
        floor = hellinger_floor(weighted.ess, float(ess.min()))
        print(
            f"{model}: importance ESS {weighted.ess:.0f}, MCMC ESS {ess.min():.0f}-{ess.max():.0f}; Hellinger mean {distance.mean():.3f}, "
            f"largest {distance.max():.3f} ({names[int(distance.argmax())]}), floor {floor:.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "importance", "mcmc", "compare"])
    parser.add_argument("--models", default=",".join(DEFAULT_MODELS))
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/results/pulsar_timing"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.folder.mkdir(parents=True, exist_ok=True)
    models = given.models.split(",")
    if given.what == "speed":
        speed()
    elif given.what == "compare":
        compare(given.folder, models)
    else:
        for model in models:
            if given.what == "importance":
                importance(given.folder, model, given.draws, given.seed)
            else:
                mcmc(given.folder, model, given.seconds, given.seed)


if __name__ == "__main__":
    main()
