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
from sbi_flows.samplers.convergence import Convergence, convergence
from sbi_flows.samplers.files import load_run, save_run
from sbi_flows.samplers.kernel import Info, Kernel
from sbi_flows.targets import Target, unconstrained


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
        Such as ``RandomWalk()`` or ``IndependentMetropolis(flow)``.
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
        bits as if it had never been interrupted; if it holds another, ``ValueError``.
    save_seconds : float
        Least time between two writes; 0 writes after every step.
    progress : bool
        Show a progress bar on standard error.

    Returns
    -------
    Chains
        ``samples (n_chains, n_steps // thin, d)``, the target's ``log_prob`` as ``log_posterior``, acceptance in ``stats``, and a
        verdict from R-hat and effective sample sizes in ``reliability``.

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
    if n_steps < thin:
        raise ValueError(f"Expected n_steps of at least thin; got n_steps={n_steps} and thin={thin}, which keep no draw.")
    start = _starting_points(init, target)
    space = unconstrained(target, start)
    run = _Run(kernel, space, start, n_warmup, n_steps // thin, thin)
    run.begin(torch_generator(random_state), None if path is None else Path(path), _seed_word(random_state))
    run.go(save_seconds, progress)
    return run.chains()


_STAT = "stats."
_MEANS = ("acceptance", "energy_error")  # over the steps of a draw; of all else their sum is recorded


def _told(info: Info) -> dict[str, Tensor]:
    """What is recorded of a step; ``accepted`` is what acceptance is the mean of, and ``invalid`` is counted for the whole run."""
    values = info._asdict()
    return {name: value for name, value in values.items() if value is not None and name not in ("accepted", "invalid")}


class _Run:
    """The chains between two steps: the kernel's state, the generator, and what has been recorded."""

    def __init__(self, kernel: Kernel, space: Target, start: Tensor, n_warmup: int, n_draws: int, thin: int):
        self.kernel, self.space, self.start = kernel, space, start
        self.n_warmup, self.n_draws, self.thin = n_warmup, n_draws, thin
        self.total = n_warmup + n_draws * thin
        n = len(start)
        self.arrays = {
            "samples": np.zeros((n_draws, n, space.features)),
            "log_prob": np.zeros((n_draws, n)),
            "invalid": np.zeros(n, dtype=np.int64),
        }

    def begin(self, generator: torch.Generator, path: Path | None, seed: int | None) -> None:
        """The state at the start, or that of the file."""
        self.generator, self.path, self.done = generator, path, 0
        self.description = {
            "kernel": type(self.kernel).__name__,
            "names": list(self.space.user.names),
            "n_chains": len(self.start),
            "n_warmup": self.n_warmup,
            "n_draws": self.n_draws,
            "thin": self.thin,
            "random_state": seed,
            "init (checksum)": zlib.crc32(self.start.numpy().tobytes()),
        }
        _check_start(self.space.user.log_prob(self.start))
        self.state = self.kernel.init(self.space.from_user(self.start), self.space)
        self.stream = generator.get_state()
        if path is None:
            return
        if path.exists():
            self.done, self.arrays, self.state = load_run(path, self.description, self.state, generator)
            self.stream = generator.get_state()
        elif not path.absolute().parent.is_dir():
            raise FileNotFoundError(f"Expected an existing folder to write {path.name} in; {path.absolute().parent} does not exist.")

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
        samples = self.arrays["samples"].transpose(1, 0, 2).copy()
        log_prob = self.arrays["log_prob"].T.copy()
        notes = [*_notes(int(self.arrays["invalid"].sum()), self.total * len(self.start)), *user.notes]
        recorded = user.recorded(torch.from_numpy(samples.reshape(-1, user.features))).numpy().reshape(samples.shape)
        return Chains(
            samples=recorded,
            names=user.names,
            # Where results show other parameters than those of the density, it is not a density of what they show.
            log_posterior=log_prob if user.same_parameters else None,
            log_likelihood=None if user.prior is None else log_prob - _log_prior(user.prior, samples),
            stats={name.removeprefix(_STAT): array.T.copy() for name, array in self.arrays.items() if name.startswith(_STAT)},
            reliability=Reliability.from_reasons(judge(samples, user).reliability.reasons, notes),
        )

    def _step(self) -> None:
        state, info = self.kernel.step(self.state, self.space, self.generator)
        if self.done < self.n_warmup:
            state = self.kernel.adapt(state, info, self.space, (self.done + 1) / self.n_warmup)
        else:
            self._record(state, info, self.done - self.n_warmup)
        self.arrays["invalid"] += info.invalid.numpy()
        # Of the last whole step: one that an interrupt cuts short has drawn numbers already.
        self.state, self.done, self.stream = state, self.done + 1, self.generator.get_state()

    def _record(self, state: Any, info: Info, step: int) -> None:
        draw = step // self.thin
        for name, value in _told(info).items():
            self._stat(name, value)[draw] += (value / self.thin if name in _MEANS else value).numpy()
        if (step + 1) % self.thin:
            return
        user, log_det = self.space.to_user(state.position)
        self.arrays["samples"][draw] = user.numpy()
        self.arrays["log_prob"][draw] = (state.log_prob - log_det).numpy()

    def _stat(self, name: str, value: Tensor) -> np.ndarray:
        """The record of one entry of ``Info``, begun when a kernel first tells it."""
        dtype = float if value.is_floating_point() else np.int64
        return self.arrays.setdefault(_STAT + name, np.zeros((self.n_draws, len(self.start)), dtype=dtype))

    def _save(self, path: Path) -> None:
        save_run(path, self.description, self.done, self.arrays, self.state, self.stream)


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
    user = target.user
    columns = parse_support(user.support, user.features)
    circular = [column.kind == "circular" for column in columns]
    period = np.array([column.high - column.low if angle else 2 * np.pi for column, angle in zip(columns, circular, strict=True)])
    return convergence(samples * (2 * np.pi / period), user.names, circular=circular, max_rhat=max_rhat)


def _log_prior(prior: Distribution, samples: np.ndarray) -> np.ndarray:
    rows = torch.from_numpy(samples.reshape(-1, samples.shape[-1]))
    return prior.log_prob(rows).numpy().reshape(samples.shape[:2])


def _notes(n_invalid: int, n_steps: int) -> list[str]:
    if not n_invalid:
        return []
    return [f"{n_invalid} of {n_steps} proposals had a log-density of NaN or +inf and were rejected: the target has holes there"]


def _seed_word(random_state: RandomState) -> int | None:
    return int(random_state) if isinstance(random_state, int | np.integer) else None
