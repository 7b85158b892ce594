"""What is kept of a run's steps, and what it says about them in words."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from sbi_flows.samplers.kernel import Info
from sbi_flows.samplers.unseen import told
from sbi_flows.targets import Target

_MEANS = ("acceptance", "energy_error")  # over the steps of a draw; of all else the sum is kept
_SUMS = ("n_evaluations", "n_gradients", "divergent", "saturated")
_STAT, _WARMUP, _TURNS = "stats.", "warmup.", "turns."
_DIVERGENT = 1e-3  # share of trajectories above which draws are not trusted; fewer are noted
_ACCEPTED = 0.01  # mean acceptance below which a chain is all but stuck


class Record:
    """Arrays that grow a step at a time, and go into the file of a run as they are.

    Attributes
    ----------
    arrays : dict of str to ndarray
        ``samples (draw, chain, d)``, ``log_prob (draw, chain)``, and by prefix: ``stats.`` a draw, ``warmup.`` a chain, ``turns.`` of the
        kernels of a mixture a draw.
    """

    def __init__(self, n_chains: int, n_draws: int, thin: int, features: int):
        self.n_chains, self.n_draws, self.thin = n_chains, n_draws, thin
        self.arrays = {
            "samples": np.zeros((n_draws, n_chains, features)),
            "log_prob": np.zeros((n_draws, n_chains)),
            "invalid": np.zeros(n_chains, dtype=np.int64),
        }

    def resume(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over the arrays of a run of as many draws or fewer."""
        self.arrays = {
            name: array if name == "invalid" or name.startswith(_WARMUP) else _lengthened(array, self.n_draws)
            for name, array in arrays.items()
        }

    def start(self, n_evaluations: int, n_gradients: int) -> None:
        """Evaluations a chain before the first step."""
        self.arrays[_WARMUP + "n_evaluations"] = np.full(self.n_chains, n_evaluations)
        self.arrays[_WARMUP + "n_gradients"] = np.full(self.n_chains, n_gradients)

    def warmup_step(self, info: Info) -> None:
        """Sums over the warm-up."""
        for name in _SUMS:
            value = getattr(info, name)
            if value is not None:
                total = self.arrays.setdefault(_WARMUP + name, np.zeros(self.n_chains, dtype=np.int64))
                total += value.cpu().numpy()

    def step(self, info: Info, draw: int) -> None:
        """One step of the draw of that number."""
        for name in _SUMS:
            value = getattr(info, name)
            if value is not None:
                self._stat(name, np.int64)[draw] += value.cpu().numpy()
        for name in _MEANS:
            value = getattr(info, name)
            if value is not None:
                self._stat(name, np.float64)[draw] += value.cpu().numpy() / self.thin
        for kernel, acceptance in (info.by_kernel or {}).items():
            self._stat(f"acceptance_{kernel}", np.float64)[draw] += acceptance.cpu().numpy()
            self.arrays.setdefault(_TURNS + kernel, np.zeros(self.n_draws, dtype=np.int64))[draw] += 1
        self.arrays["invalid"] += info.invalid.cpu().numpy()

    def draw(self, number: int, position: Tensor, log_prob: Tensor) -> None:
        self.arrays["samples"][number] = position.cpu().numpy()
        self.arrays["log_prob"][number] = log_prob.cpu().numpy()

    def stats(self) -> dict[str, np.ndarray]:
        """By name, ``(chain, draw)``."""
        stats = {name.removeprefix(_STAT): array.T.copy() for name, array in self.arrays.items() if name.startswith(_STAT)}
        for name, turns in self.arrays.items():
            if name.startswith(_TURNS):
                key = f"acceptance_{name.removeprefix(_TURNS)}"
                # A kernel that had no turn in a draw has no acceptance there.
                stats[key] = np.where(turns > 0, stats[key] / np.maximum(turns, 1), np.nan)
        return stats

    def costs(self) -> dict[str, int]:
        """Evaluations and gradients of all chains together: all there were, and those of the start and the warm-up."""
        costs = {}
        for kind in ("evaluations", "gradients"):
            before = int(self.arrays[f"{_WARMUP}n_{kind}"].sum())
            costs[f"n_{kind}"] = before + int(self.arrays.get(f"{_STAT}n_{kind}", np.zeros(1)).sum())
            costs[f"n_warmup_{kind}"] = before
        return costs

    def _stat(self, name: str, dtype: type) -> np.ndarray:
        """Begun when a kernel first tells of it."""
        return self.arrays.setdefault(_STAT + name, np.zeros((self.n_draws, self.n_chains), dtype=dtype))


def _lengthened(array: np.ndarray, n: int) -> np.ndarray:
    return np.concatenate([array, np.zeros((n - len(array), *array.shape[1:]), array.dtype)])


class Counted(Target):
    """A target that counts how often it is asked; for what a kernel does before its first step."""

    def __init__(self, target: Target):
        super().__init__(target.features, target.names, target.support, target.prior)
        self._target = target
        self.n_evaluations = self.n_gradients = 0

    @property
    def user(self) -> Target:
        return self._target.user

    def log_prob(self, x: Tensor) -> Tensor:
        self.n_evaluations += len(x)
        return self._target.log_prob(x)

    def log_likelihood(self, x: Tensor) -> Tensor:
        self.n_evaluations += len(x)
        return self._target.log_likelihood(x)

    def log_prob_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.n_evaluations += len(x)
        self.n_gradients += len(x)
        return self._target.log_prob_and_grad(x)

    def to_user(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._target.to_user(x)

    def from_user(self, x: Tensor) -> Tensor:
        return self._target.from_user(x)


def remarks(stats: Mapping[str, np.ndarray], n_invalid: int, n_steps: int, ensemble: bool) -> tuple[list[str], list[str]]:
    """Reasons against the draws, and notes on them.

    Parameters
    ----------
    stats : mapping of str to ndarray (chain, draw)
    n_invalid, n_steps : int
        Proposals at which the target had no value, and steps, of all chains together. Not those of the warm-up, whose first steps
        may go astray.
    ensemble : bool
        Whether the chains are walkers of one ensemble.
    """
    reasons: list[str] = []
    notes: list[str] = []
    means = stats["acceptance"].mean(axis=1)
    missing, holes = hole_remarks(stats, n_invalid, n_steps)
    stuck = int((means < _ACCEPTED).sum())
    if stuck:
        reasons.append(
            f"{stuck} of {len(means)} chains accepted less than {_ACCEPTED:.0%} of their proposals: give them more warm-up or shorter "
            "steps, or a proposal closer to the target"
        )
    for name, values in stats.items():
        if name.startswith("acceptance_") and np.nanmean(values) < _ACCEPTED:
            kernel = name.removeprefix("acceptance_")
            notes.append(f"{np.nanmean(values):.2%} of the proposals of {kernel} were accepted: they cost evaluations and hardly help")
    more, remarks_on_length = _trajectories(stats)
    if ensemble:
        notes.append("the chains are walkers of one ensemble, not independent: R-hat and effective sizes are those of chains that were")
    return [*missing, *reasons, *more], [*holes, *notes, *remarks_on_length]


def hole_remarks(stats: Mapping[str, np.ndarray], n_invalid: int, n_steps: int) -> tuple[list[str], list[str]]:
    """Those of :func:`remarks` on proposals at which the target had no value."""
    valid = float(np.mean(stats["acceptance"])) * n_steps / max(n_steps - n_invalid, 1)
    return told(n_invalid, n_steps, acceptance=min(valid, 1.0))


def _trajectories(stats: Mapping[str, np.ndarray]) -> tuple[list[str], list[str]]:
    reasons: list[str] = []
    notes: list[str] = []
    divergent, saturated = (float(stats[name].mean()) if name in stats else 0.0 for name in ("divergent", "saturated"))
    if divergent:
        told = (
            f"{int(stats['divergent'].sum())} trajectories diverged ({divergent:.2%} a draw): where the target is narrow, draws may be "
            "missing; raise target_acceptance, reparametrise, or run in the latent space of a flow (targets.pulled_back)"
        )
        (reasons if divergent > _DIVERGENT else notes).append(told)
    if saturated:
        notes.append(
            f"{int(stats['saturated'].sum())} trajectories ({saturated:.2%} a draw) were cut off at the greatest length allowed: the draws "
            "are valid but slow to move; raise max_depth or max_steps, or run in the latent space of a flow (targets.pulled_back)"
        )
    return reasons, notes
