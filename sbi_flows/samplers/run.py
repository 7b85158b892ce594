"""``run_chains``: many chains of one kernel side by side, warmed up, recorded, and judged."""

from __future__ import annotations

import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sbi_flows._random import RandomState, torch_generator
from sbi_flows._validation import as_float, positive
from sbi_flows.bijections.support import parse_support
from sbi_flows.distributions import Distribution
from sbi_flows.results import Chains, Reliability
from sbi_flows.samplers.convergence import Convergence, bulk_ess, convergence
from sbi_flows.samplers.files import load_run, save_run, settings_of
from sbi_flows.samplers.kernel import Info, Kernel, as_kernel
from sbi_flows.samplers.record import Counted, Record, remarks
from sbi_flows.samplers.unseen import at_the_ends, heavy_tails, reach_of_starts
from sbi_flows.targets import Target, as_target, unconstrained


@torch.no_grad()
def run_chains(
    kernel: Kernel,
    target: Target,
    init: Any,
    *,
    n_steps: int,
    n_warmup: int,
    thin: int = 1,
    random_state: RandomState = None,
    path: str | Path | None = None,
    save_seconds: float = 10.0,
    progress: bool = False,
) -> Chains:
    """Run a kernel from the given points, all chains in one batch.

    Chains run on the real line whatever the support (:func:`sbi_flows.targets.unconstrained`); starting points and draws are in the
    user's own parameters. The kernel learns in warm-up only, so that the draws come from one fixed, valid Markov chain.

    Parameters
    ----------
    kernel : Kernel
        Such as ``NUTS()``, ``RandomWalk()``, ``IndependentMetropolis(flow)`` or a ``Mixed`` of them.
    target : Target
    init : array_like (n_chains, d)
        Where the chains start.
    n_steps : int
        Steps after warm-up.
    n_warmup : int
        Steps before, which are not kept.
    thin : int
        One draw is kept in so many steps.
    random_state : int, generator or None
    path : path, optional
        HDF5 file in which the run is kept as it goes. If it is there already and holds this run, the run goes on from it, to the same
        bits as if it had never been interrupted; so it does with more ``n_steps`` than before, as if they had been asked for at once. If
        it holds another, ``ValueError``. :func:`sbi_flows.load_chains` reads it.
    save_seconds : float
        Least time between two writes; 0 writes after every step.
    progress : bool
        Show a progress bar on standard error.

    Returns
    -------
    Chains
        ``samples (n_chains, n_steps // thin, d)``, the target's ``log_prob`` as ``log_posterior``, acceptance,
        evaluations and what else the kernel tells in ``stats``, all evaluations there were in ``info``, and a verdict from R-hat,
        effective sample sizes and the kernel's own troubles in ``reliability``.

    Raises
    ------
    ValueError
        If a chain starts where the target has no density, or settings are out of range.

    Examples
    --------
    >>> from sbi_flows.samplers import RandomWalk
    >>> from sbi_flows.targets import from_log_prob
    >>> target = from_log_prob(lambda x: -x[:, 0], 1, names=["t"], support=(0, float("inf")))
    >>> chains = run_chains(RandomWalk(), target, np.ones((20, 1)), n_steps=400, n_warmup=100, random_state=0)
    >>> bool(abs(chains.samples.mean() - 1) < 0.2)
    True
    """
    positive("n_steps", n_steps, integer=True)
    positive("n_warmup", n_warmup, integer=True, zero=True)
    positive("thin", thin, integer=True)
    positive("save_seconds", save_seconds, zero=True)
    if path is not None and Path(path).suffix == ".zarr":
        raise ValueError(f"Expected the path of an HDF5 file, such as {Path(path).with_suffix('.h5').name}; got {Path(path).name}.")
    if n_steps < thin:
        raise ValueError(f"Expected n_steps of at least thin; got n_steps={n_steps} and thin={thin}, which keep no draw.")
    as_kernel(kernel)
    start = _starting_points(init, as_target(target))
    space = unconstrained(target, start)
    run = _Run(kernel, space, start, n_warmup, n_steps // thin, thin)
    run.begin(torch_generator(random_state), None if path is None else Path(path), random_state)
    run.go(save_seconds, progress)
    return run.chains()


class _Run:
    """The chains between two steps: the kernel's state, the generator, and what has been recorded."""

    def __init__(self, kernel: Kernel, space: Target, start: Tensor, n_warmup: int, n_draws: int, thin: int):
        self.kernel, self.space, self.start = kernel, space, start
        self.n_warmup, self.n_draws, self.thin = n_warmup, n_draws, thin
        self.total = n_warmup + n_draws * thin
        self.record = Record(len(start), n_draws, thin, space.features)

    def begin(self, generator: torch.Generator, path: Path | None, random_state: RandomState) -> None:
        """The state at the start, or that of the file."""
        seed = int(random_state) if isinstance(random_state, int | np.integer) else None
        given = seed is None and random_state is not None
        state = zlib.crc32(generator.get_state().numpy().tobytes()) if given else None
        self.generator, self.path, self.done = generator, path, 0
        self.description = {
            "kernel": type(self.kernel).__name__,
            "kernel's settings": settings_of(self.kernel),
            "names": list(self.space.user.names),
            "n_chains": len(self.start),
            "n_warmup": self.n_warmup,
            "n_draws": self.n_draws,
            "thin": self.thin,
            "support": [str(entry) for entry in self.space.user.support],
            "random_state": seed,
            "random_state (checksum of a generator's state)": state,
            "init (checksum)": zlib.crc32(self.start.numpy().tobytes()),
        }
        at_start = self.space.user.log_prob(self.start)
        _check_start(at_start)
        # A changed likelihood must not get another one's draws; nine digits, as the last bits are not the target's.
        self.description["target (checksum of its density at init)"] = zlib.crc32(" ".join(f"{v:.9g}" for v in at_start.tolist()).encode())
        counted = Counted(self.space)
        self.state = self.kernel.init(self.space.from_user(self.start), counted)
        n = len(self.start)
        # One evaluation each has been spent on looking at the start.
        self.record.start(1 + -(-counted.n_evaluations // n), -(-counted.n_gradients // n))
        self.stream = generator.get_state()
        if path is None:
            return
        if path.exists():
            self.done, arrays, self.state = load_run(path, self.description, self.state, generator)
            self.record.resume(arrays)
            self.stream = generator.get_state()
            self._check_same_target(path)
        elif not path.absolute().parent.is_dir():
            raise FileNotFoundError(f"Expected an existing folder to write {path.name} in; {path.absolute().parent} does not exist.")

    def _check_same_target(self, path: Path) -> None:
        """The checksum is of the density at the start: one that was changed elsewhere shows where the chains have come to."""
        now, then = self.space.log_prob(self.state.position), self.state.log_prob
        away = ~torch.isclose(now, then, rtol=1e-6, atol=1e-6)
        if bool(away.any()):
            row = int(away.nonzero()[0])
            raise ValueError(
                f"{path} holds a run of another target: at {int(away.sum())} of the {len(now)} places where its chains were last, the "
                f"log-density was other than it is ({float(then[row]):.6g}, now {float(now[row]):.6g}, in chain {row}). Delete it to start "
                "afresh, or give another path."
            )

    def go(self, save_seconds: float, progress: bool) -> None:
        """All steps that are left."""
        last = time.perf_counter()
        saved = self.done
        try:
            for _ in tqdm(range(self.done, self.total), desc="chains", unit="step", disable=not progress):
                self._step()
                if self.path is not None and time.perf_counter() - last >= save_seconds:
                    self._save(self.path)
                    saved, last = self.done, time.perf_counter()
        finally:
            # On Ctrl-C or an error of the target, too, nothing that was drawn is lost.
            if self.path is not None and self.done > saved:
                self._save(self.path)

    def chains(self) -> Chains:
        """The record, with its verdict."""
        user = self.space.user
        samples = self.record.arrays["samples"].transpose(1, 0, 2).copy()
        log_prob = self.record.arrays["log_prob"].T.copy()
        stats, ensemble = self.record.stats(), getattr(self.kernel, "ensemble", False)
        reasons, notes = remarks(stats, int(self.record.arrays["invalid"].sum()), self.n_draws * self.thin * len(self.start), ensemble)
        flat = torch.from_numpy(samples.reshape(-1, user.features))
        positions = self.space.from_user(flat).view(samples.shape)
        heavy, n_looked = heavy_tails(positions, self.space)
        reasons += [*at_the_ends(positions, self.space), *heavy]
        costs = self.record.costs()
        costs["n_evaluations"] += n_looked
        notes += reach_of_starts(self.space.from_user(self.start), positions, self.space)
        recorded = user.recorded(flat).numpy().reshape(samples.shape)
        return Chains(
            samples=recorded,
            names=user.names,
            # Where results show other parameters than those of the density, it is not a density of what they show.
            log_posterior=log_prob if user.same_parameters else None,
            log_likelihood=None if user.prior is None else log_prob - _log_prior(user.prior, samples),
            ensemble=ensemble,
            stats=stats,
            reliability=Reliability.from_reasons([*judge(samples, user).reliability.reasons, *reasons], [*notes, *user.notes]),
            info={"sampler": type(self.kernel).__name__, "n_warmup": self.n_warmup, "thin": self.thin, **costs},
        )

    def _step(self) -> None:
        state, info = self.kernel.step(self.state, self.space, self.generator)
        if self.done < self.n_warmup:
            state = self.kernel.adapt(state, info, self.space, (self.done + 1) / self.n_warmup)
            self.record.warmup_step(info)
        else:
            self._keep(state, info, self.done - self.n_warmup)
        # Of the last whole step: one that an interrupt cuts short has drawn numbers already.
        self.state, self.done, self.stream = state, self.done + 1, self.generator.get_state()

    def _keep(self, state: Any, info: Info, step: int) -> None:
        self.record.step(info, step // self.thin)
        if (step + 1) % self.thin == 0:
            user, log_det = self.space.to_user(state.position)
            self.record.draw(step // self.thin, user, state.log_prob - log_det)

    def _save(self, path: Path) -> None:
        about = {"ensemble": getattr(self.kernel, "ensemble", False), "same_parameters": self.space.user.same_parameters}
        save_run(path, self.description, about, self.done, self.record.arrays, self.state, self.stream)


def _starting_points(init: Any, target: Target) -> Tensor:
    start = as_float(init, "init").double()
    d = target.user.features
    if start.ndim != 2 or start.shape[1] != d or not len(start):
        hint = "For a single chain pass init[None]." if tuple(start.shape) == (d,) else "Rows are chains."
        raise ValueError(f"Expected init of shape (n_chains, {d}); got {tuple(start.shape)}. {hint}")
    return start.contiguous()


def _check_start(log_prob: Tensor) -> None:
    bad = ~torch.isfinite(log_prob)
    if bool(bad.any()):
        raise ValueError(
            f"Expected every chain to start where the target has a finite log-density; {int(bad.sum())} of {len(bad)} do not, the "
            f"first is row {int(bad.nonzero()[0])} with {float(log_prob[bad][0])}. Start from draws of the prior that have."
        )


def judge(samples: np.ndarray, target: Target, *, max_rhat: float | str = "auto") -> Convergence:
    """:func:`convergence` of draws ``(chain, draw, d)`` in the user's parameters; angles of any period are brought to one of 2 pi."""
    circular, scale = _angles(target.user)
    return convergence(samples * scale, target.user.names, circular=circular, max_rhat=max_rhat)


def worth(samples: np.ndarray, target: Target) -> float:
    """The smallest bulk effective size that :func:`judge` would find, of the parameters that move at all; else 0."""
    circular, scale = _angles(target.user)
    sizes = bulk_ess(samples * scale, circular=circular)
    return float(np.nanmin(sizes)) if np.isfinite(sizes).any() else 0.0


def _angles(target: Target) -> tuple[list[bool], np.ndarray]:
    """Which columns are angles, and what brings their period to 2 pi."""
    columns = parse_support(target.support, target.features)
    circular = [column.kind == "circular" for column in columns]
    period = np.array([column.high - column.low if angle else 2 * np.pi for column, angle in zip(columns, circular, strict=True)])
    return circular, 2 * np.pi / period


def _log_prior(prior: Distribution, samples: np.ndarray) -> np.ndarray:
    rows = torch.from_numpy(samples.reshape(-1, samples.shape[-1]))
    return prior.log_prob(rows).numpy().reshape(samples.shape[:2])
