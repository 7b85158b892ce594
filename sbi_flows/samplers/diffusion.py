"""``diffusion_sampler``: a diffusion from a normal to a target, learned from the log-density alone, its path weights exact."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sbi_flows._random import RandomState, randn, torch_generator
from sbi_flows._threads import one_thread
from sbi_flows._validation import choose, positive
from sbi_flows.nn import ResidualNet
from sbi_flows.samplers.normal_path import NormalPath, has_second_derivatives, log_normal, trainable
from sbi_flows.samplers.path_sampler import Ends, PathSampler, finished, starting_weights
from sbi_flows.samplers.path_training import fit_paths, path_kl
from sbi_flows.samplers.sub_trajectories import PieceBalance
from sbi_flows.targets import Target

_WAVES = 4  # sines and cosines of the time that networks see
_MOST_NOISE, _LEAST_NOISE = 0.2, 1e-3  # variance of the first and last step, before training
_STEEPEST = 4.0  # root mean square of the drift by the target's slope, in standard deviations of the step
_WIDTHS = (0.05, 0.1, 0.2, 0.4, 0.8)  # of the target's modes, tried before training
_TRIED = 200  # paths


class Steps(NamedTuple):
    """What is fixed or trained for each step, all ``(K, d)``.

    Attributes
    ----------
    decay : Tensor
        ``sqrt(1 - alpha)``, by which the backward step shrinks, with variance ``alpha``.
    alpha, variance : Tensor
        Variance of the backward and of the forward step.
    gain : Tensor
        Share of the target's slope in the drift.
    """

    decay: Tensor
    alpha: Tensor
    variance: Tensor
    gain: Tensor


class DiffusionSampler(PathSampler):
    """Steps of a diffusion whose drift is a network that sees the target's slope; see :func:`diffusion_sampler`.

    The backward transitions are those of an Ornstein-Uhlenbeck process, which forgets the target and ends in the normal; the forward ones
    learn to run it in reverse.

    Parameters
    ----------
    path : NormalPath
    n_times : int
        Steps K from the normal to the target.
    hidden : sequence of int
    attached : bool
        Whether gradients along whole paths pass through the target's slope.
    generator : torch.Generator
        Draws the initial weights.
    """

    method = "diffusion"

    def __init__(self, path: NormalPath, n_times: int, hidden: Sequence[int], attached: bool, generator: torch.Generator):
        super().__init__(path)
        d = path.features
        self.n_times, self.attached = n_times, attached
        time_of = torch.arange(n_times + 1, dtype=torch.float64) / n_times
        fall = torch.cos(0.5 * math.pi * time_of[:-1]).square()
        alpha = _LEAST_NOISE + (_MOST_NOISE - _LEAST_NOISE) * fall
        self._alpha = nn.Parameter(torch.logit(alpha)[:, None].repeat(1, d))
        self._more_noise = nn.Parameter(torch.zeros(n_times, d, dtype=torch.float64))
        self._gain = nn.Parameter(torch.zeros(n_times, d, dtype=torch.float64))
        self._power = nn.Parameter(torch.zeros(n_times, dtype=torch.float64))
        self.log_z = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.drift = ResidualNet(2 * d, d, hidden, 2 * _WAVES, generator).double()
        self.potential = ResidualNet(d, 1, hidden, 2 * _WAVES, generator).double()
        waves = torch.arange(1, _WAVES + 1, dtype=torch.float64) * 0.5 * math.pi
        self.register_buffer("_times", torch.cat([torch.sin(waves[:, None] * time_of), torch.cos(waves[:, None] * time_of)]))

    _times: Tensor

    @torch.no_grad()
    def prepare(self, generator: torch.Generator) -> None:
        """Begin with drifts that would be right for normal modes of one width, the one with the best bound on ln Z."""
        bounds = []
        for width in _WIDTHS:
            self._assume(width)
            log_weights = self._drawn(_TRIED, generator).log_weights
            bounds.append(float(trainable(log_weights).mean()))
        self._assume(_WIDTHS[int(np.argmax(bounds))])

    def _assume(self, width: float) -> None:
        """For a normal of variance w, of which ``kept`` is left under the noise, ``w kept / (w kept + 1 - kept)`` of its slope is right."""
        kept = (1 - torch.sigmoid(self._alpha[:, 0])).flip(0).cumprod(0).flip(0)
        share = width**2 * kept / (width**2 * kept + 1 - kept)
        self._gain.copy_(share[:, None])
        self._power.copy_(share)

    def steps(self) -> Steps:
        """All steps as they are now."""
        alpha = torch.sigmoid(self._alpha)
        return Steps((1 - alpha).sqrt(), alpha, alpha * self._more_noise.exp(), self._gain)

    # --- Transitions ---------------------------------------------------------------------------------------------------------

    def mean(self, y: Tensor, score: Tensor, k: Tensor, steps: Steps) -> Tensor:
        """Mean ``(n, d)`` of the forward step ``k (n,)`` from ``y (n, d)``, where the target's slope is ``score (n, d)``."""
        decay, spread = steps.decay[k], steps.variance[k].sqrt()
        push = 2 * (1 - decay) * steps.gain[k] * (score + y) / spread
        # Bounded before the root, whose slope is infinite at zero: a target that is the normal itself gives no push at all.
        size = push.square().mean(-1, keepdim=True).clamp(min=_STEEPEST**2).sqrt()
        push = push * (_STEEPEST / size)
        learned = self.drift(torch.cat([y, push], 1).mT, self._times[:, k]).mT
        return decay * y + spread * (push + learned)

    def log_ratio(self, y: Tensor, moved: Tensor, mean: Tensor, k: Tensor, steps: Steps) -> Tensor:
        """``ln B(y | moved) - ln F(moved | y)`` of the step ``k``, ``(n,)``."""
        alpha, variance = steps.alpha[k], steps.variance[k]
        back = (y - steps.decay[k] * moved).square() / alpha + alpha.log()
        forth = (moved - mean).square() / variance + variance.log()
        return 0.5 * (forth - back).sum(-1)

    def log_flow(self, y: Tensor, log_target: Tensor, k: Tensor) -> Tensor:
        """Learned log-density ``(n,)``, up to ln Z, of where paths should be before step ``k``; exact at both ends."""
        first, last = k == 0, k == self.n_times
        power = self._power[k.clamp(max=self.n_times - 1)]
        learned = self.log_z + self.potential(y.mT, self._times[:, k])[0]
        between = torch.lerp(log_normal(y), log_target, power) + learned
        return torch.where(last, log_target, torch.where(first, log_normal(y) + self.log_z, between))

    # --- Paths ---------------------------------------------------------------------------------------------------------------

    def forward_from(self, y, generator):
        steps = self.steps()
        log_weights = starting_weights(y)
        for step in range(self.n_times):
            k = torch.full((len(y),), step)
            mean = self.mean(y, self._score(y), k, steps)
            moved = mean + steps.variance[step].sqrt() * randn(y.shape, generator, dtype=y.dtype)
            log_weights = log_weights + self.log_ratio(y, moved, mean, k, steps)
            y = moved
        return Ends(y, finished(log_weights + self.path.log_prob(y)))

    def backward_from(self, y, generator):
        steps = self.steps()
        log_weights = self.path.log_prob(y)
        for step in reversed(range(self.n_times)):
            k = torch.full((len(y),), step)
            before = steps.decay[step] * y + steps.alpha[step].sqrt() * randn(y.shape, generator, dtype=y.dtype)
            mean = self.mean(before, self._score(before), k, steps)
            log_weights = log_weights + self.log_ratio(before, y, mean, k, steps)
            y = before
        return Ends(y, finished(log_weights + starting_weights(y)))

    def _score(self, y: Tensor) -> Tensor:
        return self.path.value_and_score(y, self.attached and torch.is_grad_enabled())[1]


def diffusion_sampler(
    target: Target,
    *,
    n_times: int = 32,
    hidden: Sequence[int] = (64, 64),
    training: str = "pieces",
    piece: int = 8,
    n_steps: int = 1000,
    batch_size: int = 256,
    learning_rate: float = 3e-3,
    start: Any = None,
    scale: float | None = None,
    random_state: RandomState = None,
    progress: bool = False,
) -> DiffusionSampler:
    """Train a diffusion to carry a normal to a log-density.

    Parameters
    ----------
    target : Target
        With gradients, without angles.
    n_times : int
        Steps of the diffusion: evaluations of the target, with gradient, that a draw costs.
    hidden : sequence of int
        Of the networks.
    training : {"pieces", "paths"}
        "pieces" balances pieces of paths against a learned density of where paths should be; nothing is differentiated through a path, a
        batch of paths serves several steps, and modes are not dropped for being rare. "paths" minimises the divergence of whole paths.
    piece : int
        Steps of a piece.
    n_steps, batch_size, learning_rate
        Of training, in pieces or paths a step; ``n_steps=0`` leaves annealed Langevin dynamics.
    start, scale : optional
        Where paths begin: see :class:`sbi_flows.samplers.normal_path.NormalPath`. The prior, where there is one, by default.
    random_state : int, generator or None
    progress : bool
        Show a progress bar on standard error.

    Returns
    -------
    DiffusionSampler
        ``sample`` and ``evidence`` give weighted draws and ln Z, each with its verdict.

    Raises
    ------
    ValueError
        If the target has angles or no gradient, nothing says where to begin, or settings are out of range.

    Examples
    --------
    >>> from sbi_flows.targets import from_log_prob
    >>> target = from_log_prob(lambda x: -0.5 * ((x - 1) / 0.5).square().sum(-1), 2)
    >>> sampler = diffusion_sampler(target, n_times=8, n_steps=20, scale=1.0, random_state=0)
    >>> sampler.sample(500, random_state=1).samples.shape
    (500, 2)

    References
    ----------
    Zhang & Chen 2022, "Path integral sampler: a stochastic control approach for sampling", arXiv:2111.15141; Vargas, Grathwohl & Doucet
    2023, "Denoising diffusion samplers", arXiv:2302.13834; Zhang, Chen, Liu, Courville & Bengio 2024, "Diffusion generative flow samplers:
    improving learning signals through partial trajectory optimization", arXiv:2310.02679.
    """
    for name, value in {"n_times": n_times, "piece": piece, "batch_size": batch_size}.items():
        positive(name, value, integer=True)
    positive("n_steps", n_steps, integer=True, zero=True)
    positive("learning_rate", learning_rate)
    choose("training", training, ["pieces", "paths"])
    generator, began = torch_generator(random_state), time.perf_counter()
    path = NormalPath(target, start, scale, generator)
    with one_thread():
        tried = torch.zeros(2, path.features, dtype=torch.float64)
        attached = training == "paths" and has_second_derivatives(path, tried)
        sampler = DiffusionSampler(path, n_times, hidden, attached, generator)
        sampler.prepare(generator)
        if n_steps:
            loss = path_kl if training == "paths" else PieceBalance(min(piece, n_times))
            fit_paths(sampler, loss, None, n_steps, batch_size, learning_rate, generator, progress)
    if training == "paths" and not attached:
        sampler.note("the target's gradient cannot be differentiated again: training took it as a constant")
    sampler.close_books(began)
    return sampler
